//! The rest of what README.md tells people to type: a tunnel by hand, by wg-quick, and as a service.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::hosts::RINGWAY;
use crate::lab::{Lab, wait_until};
use crate::readme::{Machine, blocks, commands};
use crate::says::assert_says;
use crate::{PATIENCE, ping_until};

/// What the other end's file says; its peer is `PEER`.
const OTHER_END: &str = "[interface]\n\
                         private_key_file = \"rw0.key\"\n\
                         listen_port = 51820\n\
                         addresses = [\"10.99.0.2/24\", \"fd99::2/64\"]\n\
                         [[peer]]\n\
                         name = \"a\"\n\
                         public_key = \"PEER\"\n\
                         allowed_ips = [\"10.99.0.1/32\", \"fd99::1/128\"]\n";
const RUN: &str = "ringway run rw0.toml";

fn lines(block: &str) -> Vec<&str> {
    block.lines().filter(|line| !line.is_empty()).collect()
}

/// The first machine's file, as the README has it.
fn file(other: &str) -> String {
    let [_, file, ..] = blocks("A tunnel by hand", ["sh", "toml", "sh", "sh", "sh", "sh", "toml", "sh"]);
    file.replace("the other machine's public key", other)
}

/// Two machines with keys; the second one has its file, and runs.
fn machines(lab: &Lab) -> ([Machine<'_>; 2], [String; 2]) {
    let [make_keys, ..] = blocks("A tunnel by hand", ["sh", "toml", "sh", "sh", "sh", "sh", "toml", "sh"]);
    let mut machines = [(&lab.a, "a"), (&lab.b, "b")].map(|(host, name)| Machine::new(host, &lab.directory, name));
    let keys = machines.each_ref().map(|machine| {
        let script = format!("mkdir -m 700 /etc/ringway && cd /etc/ringway\n{make_keys}");
        machine.run(&script).expect("a key").trim().to_owned()
    });
    machines[1].write_config(&OTHER_END.replace("PEER", &keys[0]));
    machines[1].start(RUN);
    (machines, keys)
}

/// Who types a command of the README's.
enum Typed {
    /// The test of this name.
    By(&'static str),
    /// No test, for a reason.
    ByNone(&'static str),
}

const SITES: Typed = Typed::By("two_sites_are_joined_by_the_files_and_commands_of_the_readme");
const CLIENT: Typed =
    Typed::By("the_readmes_gateway_and_client_serve_leak_nothing_and_survive_being_killed_in_each_phase");
const BY_HAND: Typed = Typed::By("a_tunnel_by_hand_is_looked_at_changed_and_taken_down_by_the_commands_of_the_readme");
const WG_QUICK: Typed = Typed::By("wg_quick_runs_ringway_by_the_command_of_the_readme");
const SERVICE: Typed = Typed::By("the_service_of_the_readme_runs_as_its_unit_says");

/// All of its commands, in their order.
const COMMANDS: [(&[&str], Typed); 12] = [
    (&["scripts/demo"], Typed::ByNone("a measurement: for people to look at")),
    (&["scripts/test"], Typed::ByNone("it runs this test")),
    (
        &[
            "mkdir -p -m 700 /etc/ringway && cd /etc/ringway",
            "(umask 077; ringway genkey > rw0.key); ringway pubkey < rw0.key",
            "ringway check rw0.toml",
            "ringway run rw0.toml",
        ],
        SITES,
    ),
    (
        &[
            "ringway check rw0.toml",
            "ringway run rw0.toml",
            "curl -sS http://www.example.com/",
            "ringway status rw0",
            "ringway leaktest rw0 --seconds 2",
        ],
        CLIENT,
    ),
    (&["ip route add 10.2.0.0/24 via 10.1.0.1", "ping -c 1 10.2.0.2"], SITES),
    (
        &[
            "(umask 077; ringway genkey > rw0.key); ringway pubkey < rw0.key",
            "ringway check rw0.toml",
            "ringway run rw0.toml",
            "ringway status",
            "ringway latency",
            "ringway top",
            "ringway stats",
            "ringway drops",
            "ringway explain 10.99.0.1 10.99.0.2 tcp 443",
            "ringway capture rw0 -w rw0.pcapng tcp port 443",
            "ringway doctor rw0.toml",
            "ringway up rw0",
            "ringway down rw0",
            "ringway reload rw0",
            "ringway apply new.toml --confirm 60s",
            "ringway peer add rw0 PUBLIC_KEY --name ann --allowed-ips 10.99.0.7/32",
            "ringway peer set rw0 ann --endpoint ann.example:51820",
            "ringway set mtu 1400 rw0",
            "ringway save rw0",
            "ringway upgrade rw0",
            "ringway leaktest rw0",
            "ringway unblock [rw0]",
        ],
        BY_HAND,
    ),
    (
        &["WG_QUICK_USERSPACE_IMPLEMENTATION=ringway-wg wg-quick up wg0"],
        WG_QUICK,
    ),
    (
        &["cargo install cargo-deb && cargo deb && apt install ./target/debian/ringway_*.deb"],
        Typed::ByNone("a release build; dist/check-deb installs its package"),
    ),
    (
        &["install -o ringway -g ringway -m 600 rw0.toml rw0.key /etc/ringway/"],
        SERVICE,
    ),
    (
        &["systemctl enable --now ringway@rw0"],
        Typed::ByNone("it takes systemd, which dist/check-deb boots for it"),
    ),
    (
        &["dist/check-deb", "dist/check-container"],
        Typed::ByNone("they take a release build and a Debian mirror"),
    ),
    (
        &[
            "scripts/compare --cases plain --measurements tcp_1 tcp_4 tcp_both_ways udp_64 ping rtt_bulk --seconds 2 --rounds 3",
            "scripts/compare --cases uso_off mtu_9000 peers_1000 --seconds 2 --rounds 3",
        ],
        Typed::ByNone("measurements of half an hour"),
    ),
];

#[test]
fn the_readme_has_no_command_that_no_test_runs_without_a_reason() {
    let known: Vec<&str> = COMMANDS.iter().flat_map(|(lines, _)| *lines).copied().collect();
    assert_eq!(
        commands(),
        known,
        "run what is new in a test, and name that in COMMANDS"
    );
    let sources = [
        include_str!("by_hand.rs"),
        include_str!("proof.rs"),
        include_str!("readme.rs"),
    ]
    .concat();
    for (lines, typed) in &COMMANDS {
        match typed {
            Typed::By(test) => assert!(
                sources.contains(&format!("\n#[test]\nfn {test}() {{\n")),
                "{test}: {lines:?}"
            ),
            Typed::ByNone(reason) => println!("not run: {lines:?}: {reason}"),
        }
    }
}

#[test]
fn a_tunnel_by_hand_is_looked_at_changed_and_taken_down_by_the_commands_of_the_readme() {
    let Some(lab) = Lab::new() else { return };
    let ([mut a, _b], keys) = machines(&lab);
    let [_, _, look, background, change, upgrade, full, leaks] =
        blocks("A tunnel by hand", ["sh", "toml", "sh", "sh", "sh", "sh", "toml", "sh"]);
    let own = file(&keys[1]);
    a.write_config(&own);
    let must = |a: &Machine<'_>, line: &str| a.run(line).unwrap_or_else(|told| panic!("{line}: {told}\n{}", a.log()));

    let [check, run, look @ ..] = &lines(&look)[..] else {
        panic!("README.md: {look}");
    };
    assert!(must(&a, check).contains("ok"));
    assert!(run.starts_with(RUN));
    a.start(run);
    for address in ["10.99.0.2", "fd99::2"] {
        ping_until(&lab.a, address);
    }
    for line in look {
        if line.contains("capture") {
            capture(&a, line);
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let expected = match words[1] {
            "status" => "(b)",
            "latency" => "tun_to_udp",
            "top" => "bit/s",
            "stats" => "handshakes: 1",
            "drops" => "rw0",
            "explain" => "passes",
            "doctor" => "peer b",
            command => panic!("README.md: what does {command} say?"),
        };
        let told = must(&a, line);
        assert!(told.contains(expected), "{line}: {told}");
    }
    a.end(Signal::SIGTERM);

    let [up, down] = &lines(&background)[..] else {
        panic!("README.md: {background}");
    };
    assert!(must(&a, up).contains("rw0 is up"));
    ping_until(&lab.a, "10.99.0.2");
    a.write("new.toml", &own.replace("[interface]\n", "[interface]\nmtu = 1380\n"));
    let ann = must(&a, "ringway genkey | ringway pubkey");
    for line in lines(&change) {
        must(&a, &line.replace("PUBLIC_KEY", ann.trim()));
        if line.contains("--confirm") {
            must(&a, "ringway confirm rw0");
        }
    }
    let saved = a.read("rw0.toml");
    for written in ["mtu = 1400", "name = \"ann\"", "\"ann.example:51820\""] {
        assert!(saved.contains(written), "{written}: {saved}");
    }
    assert!(must(&a, "ringway peer list rw0").contains("ann"));
    must(&a, "ringway peer remove rw0 ann");
    assert!(must(&a, &upgrade).contains("upgraded"));
    ping_until(&lab.a, "10.99.0.2");
    assert!(must(&a, down).contains("rw0 is down"));
    assert!(!lab.a.has_interface("rw0"));

    // All traffic through the tunnel: the file, with what its dots stand for.
    let mut full = full;
    for rest in [
        "private_key_file = \"rw0.key\"\naddresses = [\"10.99.0.1/24\"]",
        &format!("public_key = \"{}\"\nendpoint = \"192.0.2.2:51820\"", keys[1]),
    ] {
        full = full.replacen("# ...", rest, 1);
    }
    assert!(!full.contains("# ..."), "{full}");
    a.write("full.toml", &full);
    assert!(must(&a, "ringway check full.toml").contains("ok"));

    a.write_config(&own.replace("[interface]\n", "[interface]\nlockdown = true\n"));
    must(&a, up);
    ping_until(&lab.a, "10.99.0.2");
    let [test, lift] = &lines(&leaks)[..] else {
        panic!("README.md: {leaks}");
    };
    let told = must(&a, &test.replacen("rw0", "rw0 --seconds 1", 1));
    assert!(told.contains("no leak"), "{told}");
    let holds = || lab.a.run(&["nft", "list", "tables"]).contains("ringway-lockdown-rw0");
    let pid = "ringway status rw0 --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"pid\"])'";
    must(&a, &format!("kill -KILL $({pid})"));
    wait_until("the interface to go", PATIENCE, || !lab.a.has_interface("rw0"));
    assert!(holds());
    // The name may be left out.
    must(&a, &lift.replace(['[', ']'], ""));
    assert!(!holds());
}

/// Runs the line until it has seen a connection, and ends it as a person would.
fn capture(machine: &Machine<'_>, line: &str) {
    // Whoever types it ends it by Ctrl-C.
    let command = line.split('#').next().expect("split gives one at least");
    let mut capture = machine.spawn(&format!("exec timeout --preserve-status --signal=INT 2 {command}"));
    let other: SocketAddr = "10.99.0.2:443".parse().expect("an address");
    let mut status = None;
    wait_until("the end of the capture", PATIENCE, || {
        // Nobody listens there, and says so.
        let refused = || TcpStream::connect_timeout(&other, Duration::from_millis(200)).is_err();
        assert!(machine.network.enter(refused));
        status = capture.try_wait().expect("it is our child");
        status.is_some()
    });
    assert!(status.is_some_and(|status| status.success()), "{}", machine.log());
    let read = machine.run("tcpdump -n -r rw0.pcapng").expect("tcpdump is installed");
    assert!(read.contains("10.99.0.2.443: Flags [S]"), "{read}");
}

#[test]
fn wg_quick_runs_ringway_by_the_command_of_the_readme() {
    let Some(lab) = Lab::new() else { return };
    let probe = ["ip", "link", "add", "probe0", "type", "wireguard"];
    if lab.a.try_run(&probe).is_ok() || Command::new("wg-quick").arg("--help").output().is_err() {
        println!("skipped: needs wg-quick, and a kernel without WireGuard, which wg-quick prefers");
        return;
    }
    let ([a, _b], keys) = machines(&lab);
    let [up] = blocks("In place of wireguard-go", ["sh"]);
    let private = a.read("rw0.key");
    let text = format!(
        "[Interface]\nAddress = 10.99.0.1/24\nPrivateKey = {}\nListenPort = 51820\n\
         [Peer]\nPublicKey = {}\nEndpoint = 192.0.2.2:51820\nAllowedIPs = 10.99.0.2/32\n",
        private.trim(),
        keys[1]
    );
    a.write("../wireguard/wg0.conf", &text);
    a.run(&up).expect("it comes up");
    ping_until(&lab.a, "10.99.0.2");
    let shown = a.run("wg show wg0").expect("it is seen");
    assert!(
        shown.contains(&keys[1]) && shown.contains("latest handshake"),
        "{shown}"
    );
    a.run("wg-quick down wg0").expect("it goes down");
    assert!(!lab.a.has_interface("wg0"));
}

/// The unit, and what of it a process can be given without systemd.
struct Unit(String);

impl Unit {
    fn read(name: &str) -> Unit {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/systemd").join(name);
        Unit(fs::read_to_string(path).expect("the unit is there"))
    }

    fn get(&self, key: &str) -> &str {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("the unit has {key}="))
    }

    /// Shell that becomes what the unit runs by `key`: its user, its directories, its two capabilities.
    fn script(&self, key: &str, instance: &str) -> String {
        let [user, group] = [self.get("User"), self.get("Group")];
        let capabilities = |key| {
            let names = self.get(key).split(' ');
            let names = names.map(|name| name.trim_start_matches("CAP_").to_lowercase());
            names.fold("-all".to_owned(), |list, name| format!("{list},+{name}"))
        };
        let [ambient, bounding] = ["AmbientCapabilities", "CapabilityBoundingSet"].map(capabilities);
        let directory = |key: &str, parent: &str| {
            let mode = self.get(&format!("{key}Mode"));
            let path = format!("{parent}/{}", self.get(key));
            (format!("install -d -m {mode} -o {user} -g {group} {path}\n"), path)
        };
        let (make_run, run) = directory("RuntimeDirectory", "/run");
        let (make_state, state) = directory("StateDirectory", "/var/lib");
        assert_eq!(self.get("NoNewPrivileges"), "yes");
        let command = self.get(key).trim_start_matches('-').replace("%i", instance);
        format!(
            "{make_run}{make_state}umask {}\n\
             exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin RUNTIME_DIRECTORY={run} STATE_DIRECTORY={state} \
             setpriv --reuid={user} --regid={group} --init-groups --no-new-privs --inh-caps={ambient} \
             --ambient-caps={ambient} --bounding-set={bounding} {}",
            self.get("UMask"),
            installed(&command),
        )
    }
}

/// A command of the unit's, where [`install`] has put its program.
fn installed(command: &str) -> String {
    command.replace("/usr/bin/ringway", "/usr/local/bin/ringway")
}

/// As the package does: the user, and the directory for files; and shell that has the programs and the device where and as
/// everybody finds them. `None`, with a printed line, where this root is not allowed to.
fn install(machine: &Machine<'_>) -> Option<String> {
    let id = 64_998;
    for (file, line) in [
        (
            "../passwd",
            format!("ringway:x:{id}:{id}::/var/lib/ringway:/usr/sbin/nologin\n"),
        ),
        ("../group", format!("ringway:x:{id}:\n")),
    ] {
        // Where the package is installed there is one with another number.
        let others = machine.read(file);
        let others = others.lines().filter(|line| !line.starts_with("ringway:"));
        machine.write(
            file,
            &others.map(|line| format!("{line}\n")).chain([line]).collect::<String>(),
        );
    }
    // As udev makes it.
    let device = "mknod -m 666 /var/lib/tun c 10 200 && mount --bind /var/lib/tun /dev/net/tun && : <>/dev/net/tun";
    if let Err(told) = machine.run(&format!(
        "chown ringway:ringway /etc/ringway && chmod 700 /etc/ringway && {device}"
    )) {
        println!("skipped: this root gives away no files and makes no devices: {told}");
        return None;
    }
    let programs = Path::new(RINGWAY).parent().expect("a directory").display();
    Some(format!(
        "mount --bind {programs} /usr/local/bin\nmount --bind /var/lib/tun /dev/net/tun\n"
    ))
}

#[test]
fn the_service_of_the_readme_runs_as_its_unit_says() {
    let Some(lab) = Lab::new() else { return };
    let ([mut a, _b], keys) = machines(&lab);
    let [commands, _] = blocks("As a service", ["sh", "sh"]);
    let [package, put, enable] = &lines(&commands)[..] else {
        panic!("README.md: {commands}");
    };
    // These two need a build, and a systemd: dist/check-deb does both.
    assert!(package.starts_with("cargo install cargo-deb && cargo deb && apt install ./target/debian/ringway_*.deb"));
    assert!(enable.starts_with("systemctl enable --now ringway@rw0 "));

    let Some(mount) = install(&a) else { return };
    a.write("mine/rw0.toml", &file(&keys[1]));
    a.run(&format!("cp rw0.key mine/ && cd mine && {put} && cd .. && rm -r mine"))
        .unwrap_or_else(|told| panic!("{put}: {told}"));
    let unit = Unit::read("ringway@.service");
    a.start(&(mount.clone() + &unit.script("ExecStart", "rw0")));
    ping_until(&lab.a, "10.99.0.2");
    let status = a.run("ringway status rw0 --json").expect("root may ask");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let pid = status["pid"].as_u64().expect("a number");
    let process = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert_says(
        &process,
        &[
            "Uid:\t64998\t64998\t64998\t64998",
            "CapEff:\t0000000000001400",
            "CapBnd:\t0000000000001400",
            "NoNewPrivs:\t1",
        ],
    );
    let sockets = a.run("stat -c '%a %U %G' /run/ringway/rw0.sock").expect("it is there");
    assert_eq!(sockets.trim(), "660 ringway ringway");

    // Its files are its own to read again and to save.
    let text = a.read("rw0.toml");
    a.run("sed -i 's/^listen_port.*/&\\nmtu = 1300/' rw0.toml")
        .expect("root may");
    let reload = unit.get("ExecReload").replace("$MAINPID", &pid.to_string());
    a.run(&reload).expect("root may");
    let mtu = || lab.a.ip(&["link", "show", "rw0"]);
    wait_until("the reload", PATIENCE, || mtu().contains("mtu 1300"));
    a.run("ringway set mtu 1310 rw0 && ringway save rw0").expect("it may");
    assert_ne!(a.read("rw0.toml"), text);
    assert!(a.read("rw0.toml").contains("mtu = 1310"));
    a.end(Signal::SIGTERM);
    let log = a.log();
    assert!(
        !log.contains("ERROR") && !log.contains("WARN") && !log.contains("denied"),
        "{log}"
    );
    let state = a.run("stat -c '%U' /var/lib/ringway/rw0.state").expect("it is there");
    assert_eq!(state.trim(), "ringway");

    // Commands run as its user, also those that a killed daemon has not come to.
    let ended = "/var/lib/ringway/ended";
    a.run(&format!(
        "sed -i 's|^listen_port.*|&\\npost_down = [\"id -un >>{ended}\"]|' rw0.toml"
    ))
    .expect("root may");
    let kill = |a: &mut Machine<'_>| {
        a.start(&(mount.clone() + &unit.script("ExecStart", "rw0")));
        ping_until(&lab.a, "10.99.0.2");
        a.end(Signal::SIGKILL);
    };
    kill(&mut a);
    let script = mount.clone() + &unit.script("ExecStopPost", "rw0");
    let removed = a.run(&script).expect("it may");
    assert_says(&removed, &["removed the socket /run/ringway/rw0.sock"]);
    assert_eq!(a.run(&format!("cat {ended}")).expect("it ran"), "ringway\n");
    // Root would run what that user can have written.
    let forbidden = "rw0.toml belongs to the user 64998; run: chown root";
    for command in ["run rw0.toml", "up rw0"] {
        let told = a.run(&format!("ringway {command}")).expect_err("it has commands");
        assert!(told.contains(forbidden), "{told}");
    }
    kill(&mut a);
    let told = a.run("ringway cleanup rw0").expect_err("it has commands");
    assert_says(&told, &["removed the socket /run/ringway/rw0.sock", forbidden]);
    assert_eq!(a.run(&format!("cat {ended}")).expect("it ran once"), "ringway\n");
}

#[test]
fn systemd_takes_the_unit_and_says_what_the_readme_says_of_it() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return println!("skipped: systemd-analyze is not installed");
    }
    let directory = std::env::temp_dir().join(format!("ringway-unit-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("it can be made");
    let unit = directory.join("ringway@.service");
    let text = Unit::read("ringway@.service").0;
    fs::write(&unit, text.replace("/usr/bin/ringway", RINGWAY)).expect("it can be written");
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).arg(&unit).output();
        let output = output.expect("it has told its version");
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{arguments:?}: {}", text.concat());
        text.concat()
    };
    let verdict = analyze(&["verify", "--man=no"]);
    let exposure = analyze(&["security", "--offline=true"]);
    fs::remove_dir_all(&directory).expect("it is there");
    assert!(!verdict.contains("ringway@"), "{verdict}");
    // Versions of systemd differ by some tenths.
    let exposure = exposure.split("Overall exposure level for").nth(1).expect("a verdict");
    let level = exposure
        .split_whitespace()
        .nth(1)
        .and_then(|level| level.parse::<f32>().ok());
    assert!(level.is_some_and(|level| (2.0..3.0).contains(&level)), "{exposure}");
    let readme = include_str!("../../README.md");
    let said = "`systemd-analyze security --offline=true dist/systemd/ringway@.service` gives it an exposure of\n2.4.";
    assert!(readme.contains(said));
}
