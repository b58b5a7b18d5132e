//! A client, a gateway and a server on the internet with the programs that people use: dnsmasq, a web server, curl.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::capture::{Capture, Frame};
use crate::hosts::{Hosts, INTERNET_V4, INTERNET_V6, RINGWAY, UPLINK_V4, UPLINK_V6};
use crate::lab::{Namespace, wait_until};
use crate::readme::{Machine, blocks};
use crate::{PATIENCE, ping_until};

const RESOLVER: &str = "203.0.113.53";
const PAGE: &str = "what the server has";

/// The server's programs; killed on drop.
struct Servers(Vec<Child>);

impl Servers {
    fn start(host: &Namespace, directory: &Path) -> Servers {
        host.ip(&["address", "add", &format!("{RESOLVER}/24"), "dev", "net0"]);
        let pages = directory.join("pages");
        fs::create_dir_all(&pages).expect("it can be made");
        fs::write(pages.join("index.html"), PAGE).expect("it can be written");
        let large = File::create(pages.join("large")).and_then(|file| file.set_len(1 << 30));
        large.expect("it can be made");
        let log = |name: &str| File::create(directory.join(name)).expect("the log can be written");
        let mut resolver = host.command("dnsmasq");
        resolver.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--pid-file=",
        ]);
        resolver.args(["--user=root", "--bind-interfaces", "--log-queries", "--log-facility=-"]);
        resolver.args([
            format!("--listen-address={RESOLVER}"),
            format!("--address=/www.example.com/{INTERNET_V4}"),
            format!("--address=/www.example.com/{INTERNET_V6}"),
        ]);
        resolver.stderr(log("dns.log"));
        let mut web = host.command("python3");
        web.args(["-u", "-m", "http.server", "80", "--bind", "::", "--directory"]);
        web.arg(&pages).stdout(Stdio::null()).stderr(log("web.log"));
        Servers(
            [resolver, web]
                .map(|mut command| command.spawn().expect("setpriv is installed"))
                .into(),
        )
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.0 {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn has_programs() -> bool {
    for program in ["dnsmasq", "curl"] {
        let version = Command::new(program).arg("--version").stdout(Stdio::null()).status();
        if version.is_err() {
            println!("skipped: needs {program}");
            return false;
        }
    }
    Capture::is_possible()
}

/// Starts both, the gateway first, so that the client's first word is heard.
fn start_both(gateway: &mut Machine<'_>, client: &mut Machine<'_>) {
    let [_, _, run_gateway] = blocks("A gateway in five minutes", ["sh", "toml", "sh"]);
    let [_, run_client, _] = blocks("A client", ["toml", "sh", "sh"]);
    gateway.start(&run_gateway);
    wait_until("the gateway", PATIENCE, || gateway.run("ringway status rw0").is_ok());
    client.start(&run_client);
    ping_until(client.network, "10.99.0.1");
    wait_until_pages_come(client);
}

/// Waits until the page comes through the tunnel, by name, over both families.
fn wait_until_pages_come(client: &Machine<'_>) {
    for family in ["-4", "-6"] {
        let script = format!("curl {family} -sS --max-time 3 http://www.example.com/");
        let mut last = Err(String::new());
        wait_until(&format!("a page over IPv{}", &family[1..]), PATIENCE * 2, || {
            last = client.run(&script);
            last.as_deref() == Ok(PAGE)
        });
    }
}

#[test]
fn the_readmes_gateway_and_client_serve_leak_nothing_and_survive_being_killed_in_each_phase() {
    if !has_programs() {
        return;
    }
    let Some(hosts) = Hosts::with_clients(1, "") else {
        return;
    };
    let _servers = Servers::start(&hosts.internet, &hosts.directory);
    let read_log = |name: &str| fs::read_to_string(hosts.directory.join(name)).unwrap_or_default();
    wait_until("the resolver", PATIENCE, || read_log("dns.log").contains("started"));
    let [_, gateway_file, _] = blocks("A gateway in five minutes", ["sh", "toml", "sh"]);
    let [client_file, run_client, visit] = blocks("A client", ["toml", "sh", "sh"]);
    let mut gateway = Machine::new(&hosts.gateway, &hosts.directory, "gateway");
    let mut client = Machine::new(&hosts.clients[0], &hosts.directory, "client");
    let [gateway_key, client_key] = [&gateway, &client].map(Machine::make_key);
    gateway.write_config(&gateway_file.replace("the client's public key", &client_key));
    client.write_config(&client_file.replace("the gateway's public key", &gateway_key));
    for machine in [&gateway, &client] {
        wait_until("addresses to settle", PATIENCE, || {
            !machine.network.ip(&["-6", "address"]).contains("tentative")
        });
    }
    let before = [gateway.system(), client.system()];

    // Before any handshake: nobody is there.
    client.start(&run_client);
    wait_until("name servers of the tunnel", PATIENCE, || {
        client.system().contains(RESOLVER)
    });
    client.end(Signal::SIGKILL);
    assert!(
        client.system().contains("ringway-lockdown-rw0"),
        "the kill switch stands"
    );

    start_both(&mut gateway, &mut client);
    let text = client.run(&visit).expect("all of the README's commands succeed");
    assert!(text.contains(PAGE) && text.contains("gateway"), "{text}");
    for (log, seen) in [
        ("dns.log", format!("www.example.com from {UPLINK_V4}")),
        ("web.log", format!("::ffff:{UPLINK_V4} - ")),
        ("web.log", format!("{UPLINK_V6} - ")),
    ] {
        assert!(read_log(log).contains(&seen), "{seen}: {}", read_log(log));
    }
    assert!(!read_log("web.log").contains("10.99.0.2"), "masqueraded");

    // During a transfer, both at once; all that leaves the client meanwhile is the tunnel's.
    let capture = Capture::on(client.network, "under0", &["-Q", "out", "not", "arp"]);
    let mut transfer = client.spawn("exec curl -s --max-time 60 -o /dev/null http://www.example.com/large");
    let received = || {
        let text = client.network.ip(&["-s", "-j", "link", "show", "rw0"]);
        let links: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        links[0]["stats64"]["rx"]["bytes"].as_u64().unwrap_or_default()
    };
    wait_until("a part of the file", PATIENCE, || received() > 1 << 20);
    client.end(Signal::SIGKILL);
    gateway.end(Signal::SIGKILL);
    let cut_off = transfer.try_wait().expect("it is our child").is_none();
    let _ = transfer.kill();
    transfer.wait().expect("it is our child");
    assert!(cut_off, "it was in the middle of it");
    start_both(&mut gateway, &mut client);
    let strange: Vec<Frame> = capture
        .end()
        .into_iter()
        .filter(|frame| !frame.text.contains("> 192.0.2.1.51820: ") && !crate::lockdown::is_link_upkeep(frame))
        .collect();
    assert!(strange.is_empty(), "{strange:#?}");

    // In the middle of an end in good order, wherever that is then.
    for pause in [1, 10, 30] {
        for machine in [&client, &gateway] {
            machine.signal(Signal::SIGTERM);
        }
        thread::sleep(Duration::from_millis(pause));
        client.end(Signal::SIGKILL);
        gateway.end(Signal::SIGKILL);
        start_both(&mut gateway, &mut client);
    }

    client.end(Signal::SIGTERM);
    gateway.end(Signal::SIGTERM);
    for (machine, before) in [&gateway, &client].into_iter().zip(&before) {
        assert_eq!(&machine.system(), before, "all is as it was");
        let log = machine.log();
        assert!(!log.contains("ERROR") && !log.contains("denied"), "{log}");
    }
}

#[test]
fn wrong_files_are_refused_with_the_line_and_what_would_be_right() {
    let [_, gateway, _] = blocks("A gateway in five minutes", ["sh", "toml", "sh"]);
    let [client, ..] = blocks("A client", ["toml", "sh", "sh"]);
    let directory = std::env::temp_dir().join(format!("ringway-wrong-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("it can be made");
    let path = directory.join("rw0.toml");
    let key = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";
    let cases = [
        (
            &gateway,
            "[gateway]",
            "[gatway]",
            "6: gatway: unknown section; did you mean [gateway]?",
        ),
        (
            &gateway,
            "[gateway]",
            "[gateway]\negres = \"auto\"",
            "7: gateway.egres: unknown key; did you mean \"egress\"?",
        ),
        (
            &gateway,
            "[gateway]",
            "[gateway]\negress = \"eth0\"",
            "7: gateway.egress = \"eth0\": the egress is \"auto\", or a list of interfaces: [\"eth0\"]",
        ),
        (
            &gateway,
            "[gateway]",
            "[gateway]\nmasquerade = \"yes\"",
            "7: gateway.masquerade = \"yes\": expected one of: all, ipv4, ipv6, off",
        ),
        (
            &gateway,
            "[gateway]",
            "[gateway]\npeer_to_peer = [[\"lptop\"]]",
            "7: gateway.peer_to_peer[0][0] = \"lptop\": no peer has this name; did you mean \"laptop\"?",
        ),
        (
            &gateway,
            "[gateway]\n\n[[peer]]",
            "[[peer]]\ndeny = [\"10.0.0.0/8\"]",
            "7: peer[0].deny[0]: this says what the peer may reach through a gateway; it needs a section [gateway]",
        ),
        (
            &gateway,
            "[[peer]]",
            "[[peer]]\ndeny = [\"10.0.0.0/33\"]",
            "9: peer[0].deny[0] = \"10.0.0.0/33\": the prefix length of an IPv4 network is 0 to 32",
        ),
        (
            &gateway,
            "listen_port",
            "lockdown = true\nlisten_port",
            "7: gateway: a gateway lets its peers' packets out beside the tunnel, and lockdown = true lets nothing out \
             there; leave out one of both",
        ),
        (
            &client,
            "lockdown = true",
            "lockdown_keep = true",
            "5: interface.lockdown_keep: this belongs to the kill switch, which is off; write lockdown = true",
        ),
        (
            &client,
            "lockdown = true",
            "lockdown = true\nlockdown_outside = [\"LAN\"]",
            "6: interface.lockdown_outside[0] = \"LAN\": \"LAN\" is not an IP address; write for example \
             \"10.0.0.0/24\" or \"fd00::/64\"; or \"lan\"",
        ),
        (
            &client,
            "192.0.2.1:51820",
            "192.0.2.1",
            "10: peer[0].endpoint = \"192.0.2.1\": the port is missing; write for example \"192.0.2.1:51820\"",
        ),
        (
            &client,
            "\"203.0.113.53\"",
            "\"example.com\"",
            "4: interface.dns[0] = \"example.com\": a name server is an IP address, for example \"10.99.0.1\"",
        ),
    ];
    for (file, from, to, expected) in cases {
        assert!(file.contains(from), "{from}");
        let text = file
            .replacen(from, to, 1)
            .replace("private_key_file = \"rw0.key\"", &format!("private_key = \"{key}\""))
            .replace("the client's public key", key)
            .replace("the gateway's public key", key);
        // `run` reads it as `check` does, before it does anything.
        for command in ["check", "run"] {
            crate::hosts::write_private(&path, &text);
            let output = Command::new(RINGWAY).arg(command).arg(&path).output();
            let output = output.expect("the binary exists");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let line = format!("{}:{expected}\n", path.display());
            assert!(said.ends_with(&line), "{line}{said}");
            assert_eq!(output.status.code(), Some(3), "{said}");
        }
    }
    fs::remove_dir_all(&directory).expect("it is ours");
}
