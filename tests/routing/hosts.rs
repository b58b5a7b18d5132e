//! Three hosts, and who answers where.
//!
//! ```text
//!  +----- client -----+         +------------- router --------------+         +----- server -----+
//!  | under0 192.0.2.1 +---------+ .254                              +---------+ up0 198.51.100.2 |
//!  |   2001:db8:1::1  |         | ::254     forwards between them   |         |   2001:db8:2::2  |
//!  | rw0    10.99.0.1 |         |                                   |         | rw0    10.99.0.2 |
//!  |          fd99::1 |         | 203.0.113.1 2001:db8:f::1         |         | 203.0.113.1 ...  |
//!  +------------------+         +-----------------------------------+         +------------------+
//! ```
//!
//! The router and the server both have the addresses of [`FAR`] and tell who they are on port 7: packets to them that go
//! through the tunnel come to the server, others to the router.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, Namespace, run, wait_until};

pub(crate) const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");
/// The tunnel's interface at both ends.
pub(crate) const INTERFACE: &str = "rw0";
/// The client's interface to the router.
pub(crate) const UNDERLAY: &str = "under0";
/// Addresses that both the router and the server have: twice two networks.
pub(crate) const FAR: [&str; 4] = ["203.0.113.1", "198.18.0.1", "2001:db8:f::1", "2001:db8:e::1"];
/// The server's outer addresses.
pub(crate) const SERVER: [&str; 2] = ["198.51.100.2", "2001:db8:2::2"];
/// Until something slow must have happened on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const PORT: u16 = 51820;

/// The three hosts, with the server's daemon running.
pub(crate) struct Hosts {
    /// Field order: daemons end before their namespaces go.
    _server: Daemon,
    pub(crate) client_key: String,
    server_public: String,
    pub(crate) router: Namespace,
    /// What the listeners live by.
    _alive: Arc<()>,
    pub(crate) lab: Lab,
}

impl Hosts {
    /// Builds them. `None`, with a printed line, where the process may not.
    pub(crate) fn new() -> Option<Hosts> {
        let lab = Lab::new()?;
        let router = Namespace::new(format!("{}-r", lab.a.name));
        lab.a.ip(&["link", "delete", UNDERLAY]);
        join(
            (&lab.a, UNDERLAY),
            (&router, "r0"),
            ["192.0.2.1/24", "2001:db8:1::1/64"],
            ["192.0.2.254/24", "2001:db8:1::254/64"],
        );
        join(
            (&lab.b, "up0"),
            (&router, "r1"),
            ["198.51.100.2/24", "2001:db8:2::2/64"],
            ["198.51.100.254/24", "2001:db8:2::254/64"],
        );
        for (host, v4, v6) in [
            (&lab.a, "192.0.2.254", "2001:db8:1::254"),
            (&lab.b, "198.51.100.254", "2001:db8:2::254"),
        ] {
            host.ip(&["route", "add", "default", "via", v4]);
            host.ip(&["-6", "route", "add", "default", "via", v6]);
        }
        for sysctl in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            router.run(&["sysctl", "-qw", sysctl]);
        }
        let alive = Arc::new(());
        for (host, name) in [(&router, "router"), (&lab.b, "server")] {
            for address in FAR {
                host.ip(&["address", "add", address, "dev", "lo", "nodad"]);
            }
            tell_who(host, name, &alive);
        }
        let [client_key, server_key] = [(); 2].map(|()| run(&["wg", "genkey"]).trim().to_owned());
        let [client_public, server_public] = [&client_key, &server_key].map(|key| public_of(key));
        let config = format!(
            "[interface]\nname = \"{INTERFACE}\"\nprivate_key = \"{server_key}\"\nlisten_port = {PORT}\n\
             addresses = [\"10.99.0.2/24\", \"fd99::2/64\"]\nworkers = 1\nstate_dir = \"{0}/server.state\"\n\
             control_socket = \"{0}/server.sock\"\n\n[[peer]]\npublic_key = \"{client_public}\"\n\
             allowed_ips = [\"10.99.0.1\", \"fd99::1\"]\n",
            lab.directory.display()
        );
        let path = write(&lab.directory.join("server.toml"), &config);
        let server_daemon = Daemon::start(lab.b.command(RINGWAY), &path);
        wait_until("the server", PATIENCE, || lab.directory.join("server.sock").exists());
        Some(Hosts {
            _server: server_daemon,
            client_key,
            server_public,
            router,
            _alive: alive,
            lab,
        })
    }

    pub(crate) fn client(&self) -> &Namespace {
        &self.lab.a
    }

    /// Writes the client's configuration: `interface` and `peer` are further lines of their sections.
    pub(crate) fn write_config(&self, endpoint: &str, interface: &str, peer: &str) -> PathBuf {
        let Hosts {
            client_key,
            server_public,
            ..
        } = self;
        let directory = self.lab.directory.display();
        let endpoint = SocketAddr::new(endpoint.parse().expect("an address"), PORT);
        let config = format!(
            "[interface]\nname = \"{INTERFACE}\"\nprivate_key = \"{client_key}\"\n\
             addresses = [\"10.99.0.1/24\", \"fd99::1/64\"]\nworkers = 1\nstate_dir = \"{directory}/client.state\"\n\
             control_socket = \"{directory}/client.sock\"\n{interface}\n\n\
             [[peer]]\npublic_key = \"{server_public}\"\nendpoint = \"{endpoint}\"\n{peer}\n"
        );
        write(&self.lab.directory.join("client.toml"), &config)
    }

    /// As [`Hosts::write_config`], in wg-quick's format.
    pub(crate) fn write_wg_quick(&self, name: &str, endpoint: &str, interface: &str, peer: &str) -> PathBuf {
        let Hosts {
            client_key,
            server_public,
            ..
        } = self;
        let endpoint = SocketAddr::new(endpoint.parse().expect("an address"), PORT);
        let config = format!(
            "[Interface]\nPrivateKey = {client_key}\nAddress = 10.99.0.1/24, fd99::1/64\n{interface}\n\
             [Peer]\nPublicKey = {server_public}\nEndpoint = {endpoint}\n{peer}\n"
        );
        write(&self.lab.directory.join(format!("{name}.conf")), &config)
    }

    /// Starts the client's daemon and waits until it serves its socket's requests, so that all is set up.
    pub(crate) fn start(&self, config: &Path) -> Daemon {
        let mut daemon = Daemon::start(self.client().command(RINGWAY), config);
        self.wait_until_up(&mut daemon);
        daemon
    }

    /// The daemon says so in its log once packets can pass.
    pub(crate) fn wait_until_up(&self, daemon: &mut Daemon) {
        wait_until("the client to be up", PATIENCE, || {
            assert!(daemon.is_running(), "it ended: {}", daemon.log());
            daemon.log().contains("up name=")
        });
    }

    /// Who answers the client at `address`; empty while nobody does.
    pub(crate) fn who(&self, address: &str) -> String {
        let address = SocketAddr::new(address.parse().expect("an address"), 7);
        self.client().enter(|| {
            let mut name = String::new();
            if let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = stream.read_to_string(&mut name);
            }
            name
        })
    }

    /// Waits until `name` answers at each of `addresses`.
    pub(crate) fn expect(&self, name: &str, addresses: &[&str]) {
        for address in addresses {
            let mut last = String::new();
            let deadline = std::time::Instant::now() + PATIENCE;
            while last != name && std::time::Instant::now() < deadline {
                last = self.who(address);
            }
            let routes = self.client().run(&["ip", "route", "get", address]);
            assert_eq!(last, name, "who answers at {address}: {routes}");
        }
    }

    /// All that could be left behind in the client's network: rules, routes, packet filters, a sysctl.
    pub(crate) fn state(&self) -> String {
        let commands: [&[&str]; 6] = [
            &["ip", "-4", "rule", "show"],
            &["ip", "-6", "rule", "show"],
            &["ip", "-4", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["nft", "list", "ruleset"],
            &["sysctl", "net.ipv4.conf.all.src_valid_mark"],
        ];
        commands.map(|command| self.client().run(command)).join("")
    }
}

/// One `ringway run`; killed on drop.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// `command` is the program in its namespaces, or what starts it there.
    pub(crate) fn start(mut command: Command, config: &Path) -> Daemon {
        let log = config.with_extension("log");
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&log)
            .expect("the log can be written");
        command.arg("run").arg(config);
        command.stdout(file.try_clone().expect("a descriptor")).stderr(file);
        Daemon {
            child: command.spawn().expect("it is installed"),
            log,
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end_by(&mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(self.child.id().try_into().expect("process ids are positive i32"));
        kill(pid, signal).expect("it is our child");
        self.wait()
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the daemon's end", PATIENCE, || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("wait_until saw it")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; then both are errors of no interest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A veth between two hosts, up, with both families' addresses at both ends.
pub(crate) fn join(a: (&Namespace, &str), b: (&Namespace, &str), of_a: [&str; 2], of_b: [&str; 2]) {
    run(&[
        "ip", "link", "add", a.1, "netns", &a.0.name, "type", "veth", "peer", "name", b.1, "netns", &b.0.name,
    ]);
    for ((host, interface), addresses, link_local) in [(a, of_a, "fe80::1/64"), (b, of_b, "fe80::2/64")] {
        // A router asks for its neighbours from a link-local address, or not at all.
        for address in addresses.into_iter().chain([link_local]) {
            host.ip(&["address", "add", address, "dev", interface, "nodad"]);
        }
        // Addresses of the kernel's making come when they like.
        host.ip(&["link", "set", interface, "addrgenmode", "none", "up"]);
    }
}

/// Says `name` to whoever connects to port 7 in `host`, while `alive` is.
fn tell_who(host: &Namespace, name: &'static str, alive: &Arc<()>) {
    let any: IpAddr = "::".parse().expect("an address");
    let listener = host.enter(|| TcpListener::bind((any, 7)).expect("nobody else listens there"));
    listener.set_nonblocking(true).expect("a socket");
    let alive = Arc::downgrade(alive);
    thread::spawn(move || {
        while alive.strong_count() > 0 {
            match listener.accept() {
                Ok((mut stream, _)) => drop(stream.write_all(name.as_bytes())),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    });
}

/// Writes a file with keys in it.
pub(crate) fn write(path: &Path, text: &str) -> PathBuf {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("it can be written");
    path.to_owned()
}

fn public_of(key: &str) -> String {
    run(&["sh", "-c", &format!("echo {key} | wg pubkey")]).trim().to_owned()
}
