//! Clients, a gateway, and a server on the internet.
//!
//! ```text
//!  client 0 --+                      gateway                          internet
//!  under0     |  192.0.2.0/24   +---------------+  203.0.113.0/24   +---------------+
//!  192.0.2.10 +--- br0 ---------+ lan0     up0  +-------------------+ net0          |
//!  client 1 --+   (in gateway)  | 192.0.2.1  .1 |  2001:db8:1::/64  | .2   ::2      |
//!  192.0.2.11                   | rw0 10.99.0.1 |                   | TCP 8080: whom |
//!  rw0 10.99.0.2, .3 ...        +---------------+                   | it talks to   |
//!                                                                   +---------------+
//! ```

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, Namespace, wait_until};

pub(crate) const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");
/// The gateway's interface towards the internet, and its addresses there.
pub(crate) const EGRESS: &str = "up0";
pub(crate) const UPLINK_V4: &str = "203.0.113.1";
pub(crate) const UPLINK_V6: &str = "2001:db8:1::1";
/// The server's addresses.
pub(crate) const INTERNET_V4: &str = "203.0.113.2";
pub(crate) const INTERNET_V6: &str = "2001:db8:1::2";
/// The gateway's address towards the clients, outside the tunnel.
pub(crate) const GATEWAY_OUTER: &str = "192.0.2.1";

const SERVER_PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(20);

/// Field order: daemons and namespaces end before the lab's directory goes.
pub(crate) struct Hosts {
    daemons: Vec<Option<Process>>,
    pub(crate) clients: Vec<Namespace>,
    pub(crate) gateway: Namespace,
    pub(crate) internet: Namespace,
    keys: Vec<String>,
    section: String,
    /// Lines for each client's `[[peer]]` in the gateway's file.
    pub(crate) policies: Vec<String>,
    /// More peers of the gateway.
    pub(crate) more: String,
    pub(crate) directory: PathBuf,
    _lab: Lab,
}

impl Hosts {
    /// Two clients, and a gateway whose file has `section`. Nothing runs yet. `None`, with a printed line, where the
    /// process may not.
    pub(crate) fn new(section: &str) -> Option<Hosts> {
        Hosts::with_clients(2, section)
    }

    pub(crate) fn with_clients(count: usize, section: &str) -> Option<Hosts> {
        for program in ["nft", "python3"] {
            if Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .status()
                .is_err()
            {
                println!("skipped: needs {program}");
                return None;
            }
        }
        let lab = Lab::new()?;
        let directory = lab.directory.clone();
        let id = lab.a.name.trim_end_matches("-a").to_owned();
        let named = |host: &str| Namespace::new(format!("{id}-{host}"));
        let [gateway, internet] = ["gateway", "internet"].map(named);
        let clients: Vec<Namespace> = (0..count).map(|i| named(&format!("client{i}"))).collect();
        // A new namespace has it as this machine has it.
        for key in [
            "ipv4/conf/all",
            "ipv4/conf/default",
            "ipv6/conf/all",
            "ipv6/conf/default",
        ] {
            gateway.run(&["sh", "-c", &format!("echo 0 > /proc/sys/net/{key}/forwarding")]);
        }
        gateway.ip(&["link", "add", "br0", "type", "bridge"]);
        gateway.ip(&["address", "add", &format!("{GATEWAY_OUTER}/24"), "dev", "br0"]);
        gateway.ip(&["link", "set", "br0", "up"]);
        for (i, client) in clients.iter().enumerate() {
            let port = format!("lan{i}");
            gateway.ip(&[
                "link",
                "add",
                &port,
                "type",
                "veth",
                "peer",
                "name",
                "under0",
                "netns",
                &client.name,
            ]);
            gateway.ip(&["link", "set", &port, "master", "br0", "up"]);
            client.ip(&["address", "add", &format!("192.0.2.{}/24", 10 + i), "dev", "under0"]);
            client.ip(&["link", "set", "under0", "up"]);
        }
        gateway.ip(&[
            "link",
            "add",
            EGRESS,
            "type",
            "veth",
            "peer",
            "name",
            "net0",
            "netns",
            &internet.name,
        ]);
        for (host, interface, addresses) in [
            (&gateway, EGRESS, [UPLINK_V4, UPLINK_V6]),
            (&internet, "net0", [INTERNET_V4, INTERNET_V6]),
        ] {
            host.ip(&["address", "add", &format!("{}/24", addresses[0]), "dev", interface]);
            host.ip(&[
                "address",
                "add",
                &format!("{}/64", addresses[1]),
                "dev",
                interface,
                "nodad",
            ]);
            host.ip(&["link", "set", interface, "up"]);
        }
        // As an internet provider's router would be; nobody is there.
        gateway.ip(&["route", "add", "default", "via", INTERNET_V4]);
        gateway.ip(&["-6", "route", "add", "default", "via", INTERNET_V6]);
        serve_callers_addresses(&internet);
        let keys = (0..=count).map(|_| tool(&["genkey"], "")).collect();
        Some(Hosts {
            daemons: (0..=count).map(|_| None).collect(),
            clients,
            gateway,
            internet,
            keys,
            section: section.to_owned(),
            policies: vec![String::new(); count],
            more: String::new(),
            directory,
            _lab: lab,
        })
    }

    /// Starts the gateway, and all clients anew, which would take a while to notice that theirs is another gateway; waits
    /// until each has reached it.
    pub(crate) fn start(&mut self) {
        let config = self.write_gateway_config();
        self.daemons[0] = Some(Process::start(&self.gateway, &config));
        for i in 0..self.clients.len() {
            if let Some(client) = self.daemons[1 + i].take() {
                client.end_by(Signal::SIGTERM);
            }
            let config = self.write_client_config(i);
            self.daemons[1 + i] = Some(Process::start(&self.clients[i], &config));
        }
        for (i, client) in self.clients.iter().enumerate() {
            wait_until(&format!("client {i} to reach the gateway"), PATIENCE * 2, || {
                client.ping("10.99.0.1".parse().expect("an address"), 56)
            });
            // Routes go in one after the other; the last is the IPv6 default.
            wait_until("the client's routes", PATIENCE, || {
                client.ip(&["-6", "route", "show", "dev", "rw0"]).contains("2000::/3")
            });
        }
    }

    /// Gives the running gateway another file.
    pub(crate) fn reload(&mut self, section: &str) {
        self.section = section.to_owned();
        let socket = self.write_gateway_config().with_extension("sock");
        let socket = socket.to_str().expect("ASCII");
        self.gateway.run(&[RINGWAY, "reload", socket]);
    }

    /// Sends the gateway's daemon a signal and waits for its end.
    pub(crate) fn end_gateway(&mut self, signal: Signal) -> ExitStatus {
        self.daemons[0].take().expect("it runs").end_by(signal)
    }

    /// A client's addresses in the tunnel.
    pub(crate) fn inner(&self, client: usize) -> [IpAddr; 2] {
        ["10.99.0.", "fd99::"].map(|network| format!("{network}{}", 2 + client).parse().expect("an address"))
    }

    /// Whom the server on the internet talks to when a client calls it; none when it can't be reached.
    pub(crate) fn address_seen_from(&self, client: usize, server: &str) -> Option<String> {
        let server = SocketAddr::new(server.parse().expect("an address"), SERVER_PORT);
        self.clients[client].enter(|| {
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5)).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })
    }

    /// Whether the gateway forwards IPv4 and IPv6 that come in by an interface.
    pub(crate) fn is_forwarding(&self, interface: &str) -> [bool; 2] {
        let read = |key: &str| self.gateway.try_run(&["cat", &format!("/proc/sys/net/{key}")]);
        let ipv4 = read(&format!("ipv4/conf/{interface}/forwarding")).expect("there is such an interface");
        let ipv6 = read(&format!("ipv6/conf/{interface}/force_forwarding"))
            // Before Linux 6.17.
            .or_else(|_| read("ipv6/conf/all/forwarding"))
            .expect("there is IPv6");
        [ipv4, ipv6].map(|value| value.trim() == "1")
    }

    /// Carries out a script of nft on the gateway.
    pub(crate) fn nft(&self, script: &str) {
        self.gateway.run(&["nft", script]);
    }

    pub(crate) fn write_gateway_config(&self) -> PathBuf {
        let mut peers = self.more.clone();
        for (i, policy) in self.policies.iter().enumerate() {
            let public = tool(&["pubkey"], &self.keys[1 + i]);
            let address = 2 + i;
            // Writing to a String can't fail.
            let _ = write!(
                peers,
                "\n[[peer]]\nname = \"c{i}\"\npublic_key = \"{public}\"\n\
                 allowed_ips = [\"10.99.0.{address}/32\", \"fd99::{address}/128\"]\n{policy}\n"
            );
        }
        self.write_config(
            "gateway",
            0,
            "listen_port = 51820\naddresses = [\"10.99.0.1/24\", \"fd99::1/64\"]",
            &format!("{}\n{peers}", self.section),
        )
    }

    fn write_client_config(&self, i: usize) -> PathBuf {
        let public = tool(&["pubkey"], &self.keys[0]);
        let address = 2 + i;
        self.write_config(
            &format!("client{i}"),
            1 + i,
            &format!("addresses = [\"10.99.0.{address}/24\", \"fd99::{address}/64\"]"),
            &format!(
                "[[peer]]\npublic_key = \"{public}\"\nendpoint = \"{GATEWAY_OUTER}:51820\"\n\
                 allowed_ips = [\"10.99.0.0/24\", \"fd99::/64\", \"203.0.113.0/24\", \"198.51.100.0/24\", \
                 \"192.0.2.99/32\", \"2000::/3\"]\n"
            ),
        )
    }

    fn write_config(&self, name: &str, host: usize, interface: &str, rest: &str) -> PathBuf {
        let path = self.directory.join(format!("{name}.toml"));
        let control = path.with_extension("sock");
        let key = &self.keys[host];
        let text = format!(
            "[interface]\nname = \"rw0\"\nprivate_key = \"{key}\"\nworkers = 1\ncontrol_socket = \"{}\"\n\
             state_dir = \"{}\"\n{interface}\n{rest}",
            control.display(),
            path.with_extension("state").display(),
        );
        write_private(&path, &text);
        path
    }
}

pub(crate) fn write_private(path: &Path, text: &str) {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("the configuration can be written");
}

/// One `ringway run`; killed on drop.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Its log is beside its configuration.
    pub(crate) fn start(host: &Namespace, config: &Path) -> Process {
        let log = File::options()
            .create(true)
            .append(true)
            .open(config.with_extension("log"))
            .expect("the log can be written");
        let mut command = host.command(RINGWAY);
        command
            .arg("run")
            .arg(config)
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        Process {
            child: command.spawn().expect("setpriv and nsenter are installed"),
        }
    }

    pub(crate) fn end_by(mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(self.child.id().try_into().expect("process ids are positive i32"));
        kill(pid, signal).expect("it is our child");
        let mut status = None;
        wait_until(&format!("the end after {signal}"), PATIENCE, || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("wait_until saw it")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then both are errors of no interest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A TCP server that tells each caller the address that it sees, until the test's process ends.
fn serve_callers_addresses(host: &Namespace) {
    let listener = host.enter(|| TcpListener::bind(("::", SERVER_PORT)).expect("a free port"));
    thread::spawn(move || {
        while let Ok((mut stream, caller)) = listener.accept() {
            // A caller that hung up has seen enough.
            let _ = stream.write_all(caller.ip().to_canonical().to_string().as_bytes());
        }
    });
}

/// Runs `ringway` as a tool; its standard output without the newline.
pub(crate) fn tool(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(RINGWAY)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary under test exists");
    let mut stdin = child.stdin.take().expect("piped");
    // A program that reads no input may have ended before it is written.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("text");
    assert!(
        child.wait().expect("it is our child").success(),
        "ringway {arguments:?}"
    );
    line.trim_end().to_owned()
}

/// As keys are written.
pub(crate) fn base64(bytes: &[u8; 32]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
