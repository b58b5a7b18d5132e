//! ringway-wg at a and another implementation at b.
//!
//! ```text
//!  +----------- a ------------+                            +----------- b ------------+
//!  | 10.98.0.1     ringway-wg |                            | another        10.98.0.2 |
//!  | fd98::1            :51820|                            |:51821            fd98::2 |
//!  |                   under0 +----------------------------+ under0                   |
//!  +--------------------------+ 192.0.2.1        192.0.2.2 +--------------------------+
//!                               2001:db8::1    2001:db8::2
//! ```

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::device::{Device, Keys, RINGWAY_WG, unique_name};
use crate::lab::{Lab, Namespace, UNDERLAY, UNDERLAY_V4, wait_until};
use crate::peers::Implementation;

const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");

/// How often another program is started until it has come up.
const STARTS_MAX: usize = 3;
/// Enough for a handshake that is tried again after 5 s, twice, on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// a's and b's side of everything that comes in pairs.
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

/// Outer addresses over IPv6; those over IPv4 are the lab's.
pub(crate) const UNDERLAY_V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];
/// The ports that both ends begin with.
pub(crate) const PORTS: [u16; 2] = [51820, 51821];
pub(crate) const INNER_V4: [&str; 2] = ["10.98.0.1", "10.98.0.2"];
pub(crate) const INNER_V6: [&str; 2] = ["fd98::1", "fd98::2"];

/// What two ends are told of each other.
#[derive(Clone)]
pub(crate) struct Terms {
    /// a's and b's outer addresses.
    pub(crate) outer: [&'static str; 2],
    /// Where each end finds the other, if not at its address and port.
    pub(crate) ports: [u16; 2],
    /// Which ends know where the other one is; the other one has to wait.
    pub(crate) knows: [bool; 2],
    /// The preshared key that each end uses.
    pub(crate) preshared: [Option<String>; 2],
    /// Each end's persistent keepalive in seconds.
    pub(crate) keepalive: [Option<u16>; 2],
    /// Keys that each end takes for the other's, if not the right ones.
    pub(crate) mistaken: [Option<String>; 2],
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            outer: UNDERLAY_V4,
            ports: PORTS,
            knows: [true; 2],
            preshared: [None, None],
            keepalive: [None; 2],
            mistaken: [None, None],
        }
    }
}

/// Both ends. Field order: the programs end before the lab goes.
pub(crate) struct Pair {
    pub(crate) ends: [End; 2],
    terms: Terms,
    pub(crate) lab: Lab,
}

/// One end's program, in the foreground.
pub(crate) struct End {
    pub(crate) device: Device,
    child: Child,
    program: PathBuf,
    options: Vec<String>,
    side: usize,
}

impl Pair {
    /// Starts both; they don't know each other. `None`, with a printed line, where something is missing.
    pub(crate) fn start(other: &Implementation, suite: &str) -> Option<Pair> {
        Pair::start_with(other, other.options, suite)
    }

    /// As [`Pair::start`], with other options for the other program.
    pub(crate) fn start_with(other: &Implementation, options_of_b: &[&str], suite: &str) -> Option<Pair> {
        let program = other.find()?;
        let lab = lab()?;
        let options = ["--foreground", "--suite", suite];
        let a = End::start(&lab, A, RINGWAY_WG.into(), &options, 1);
        // ringway knows nobody yet and says nothing: who ends has done so by itself.
        let b = End::start(&lab, B, program, options_of_b, STARTS_MAX);
        Some(Pair {
            ends: [a, b],
            terms: Terms::default(),
            lab,
        })
    }

    /// As [`Pair::start`], and acquainted on `terms`.
    pub(crate) fn acquainted(other: &Implementation, suite: &str, terms: Terms) -> Option<Pair> {
        let mut pair = Pair::start(other, suite)?;
        pair.acquaint(terms);
        Some(pair)
    }

    /// Makes both ends forget each other and what they had in common, and know each other anew.
    pub(crate) fn acquaint(&mut self, terms: Terms) {
        for end in &self.ends {
            end.forget();
        }
        self.terms = terms;
        // Who can't begin must be ready before who can.
        let order = if self.terms.knows[A] { [B, A] } else { [A, B] };
        for side in order {
            self.introduce(side);
        }
    }

    /// Tells one end of the other.
    fn introduce(&self, side: usize) {
        let (terms, other) = (&self.terms, 1 - side);
        let key = terms.mistaken[side].as_ref();
        let key = key.unwrap_or(&self.ends[other].device.keys.public);
        let device = &self.ends[side].device;
        let allowed = format!("{}/32,{}/128", INNER_V4[other], INNER_V6[other]);
        let mut arguments = vec!["peer".to_owned(), key.clone(), "allowed-ips".into(), allowed];
        if terms.knows[side] {
            arguments.extend(["endpoint".into(), socket(terms.outer[other], terms.ports[other])]);
        }
        if let Some(preshared) = &terms.preshared[side] {
            arguments.extend(["preshared-key".into(), device.file("psk", preshared)]);
        }
        if let Some(seconds) = terms.keepalive[side] {
            arguments.extend(["persistent-keepalive".into(), seconds.to_string()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        device.wg("set", &arguments);
    }

    /// Kills one end and starts it anew, with the same keys and the same terms.
    pub(crate) fn restart(&mut self, side: usize) {
        self.ends[side].restart(&self.lab);
        self.introduce(side);
    }

    /// Has the other end see another port of one end's, which goes on with the sockets that it has: as if there were a NAT between
    /// them that has forgotten it.
    pub(crate) fn rewrite_port(&self, side: usize, seen: u16) {
        let port = PORTS[side];
        let rules = format!(
            "table inet moved {{
                chain out {{ type filter hook output priority mangle; udp sport {port} udp sport set {seen}; }}
                chain in {{ type filter hook prerouting priority mangle; udp dport {seen} udp dport set {port}; }}
            }}"
        );
        self.namespace(side).run(&["nft", &rules]);
    }

    /// a's or b's namespace.
    pub(crate) fn namespace(&self, side: usize) -> &Namespace {
        [&self.lab.a, &self.lab.b][side]
    }

    /// Whether a ping from `side` to the other end's `address` is answered.
    pub(crate) fn ping(&self, side: usize, address: &str, size: u32) -> bool {
        self.namespace(side).ping(ip(address), size)
    }

    /// [`Pair::ping`] where an answer is expected.
    pub(crate) fn answers(&self, side: usize, address: &str, size: u32) -> bool {
        self.namespace(side).answers(ip(address), size)
    }

    /// Pings from `side` until there is an answer.
    pub(crate) fn wait_for_answer(&self, side: usize) {
        let address = INNER_V4[1 - side];
        wait_until(&format!("an answer from {address}"), PATIENCE, || {
            self.ping(side, address, 56)
        });
    }

    /// Panics where a program has ended.
    pub(crate) fn assert_alive(&mut self) {
        for end in &mut self.ends {
            let status = end.child.try_wait().expect("it is our child");
            assert!(status.is_none(), "{} ended: {status:?}", end.program.display());
        }
    }

    /// When the latest handshake was, as ringway tells: since 1970.
    pub(crate) fn latest_handshake(&self) -> Duration {
        let state = self.ends[A].device.exchange("get=1\n\n");
        let value = |key: &str| {
            let line = state.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map_or(0, |number| number.parse().expect("a number"))
        };
        let nanos = value("last_handshake_time_nsec");
        Duration::new(
            value("last_handshake_time_sec"),
            nanos.try_into().expect("less than a second"),
        )
    }

    /// Where an end thinks that the other one is.
    pub(crate) fn endpoint_seen_by(&self, side: usize) -> String {
        let peer = self.ends[side].device.peer(&self.ends[1 - side].device.keys.public);
        peer.expect("they know each other")[2].clone()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if thread::panicking() {
            for end in &self.ends {
                println!("--- {}", end.program.display());
                println!("{}", end.device.try_wg("show", &[]).unwrap_or_else(|error| error));
            }
            let status = Command::new(RINGWAY)
                .args(["status", &self.ends[A].device.name])
                .output();
            println!(
                "{}",
                status.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout)
                    .into_owned())
            );
        }
    }
}

impl End {
    /// Starts a program, and starts it anew where it ends before it is ready; at most `tries` times in all.
    fn start(lab: &Lab, side: usize, program: PathBuf, options: &[&str], tries: usize) -> End {
        let options = options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
        let mut spawned = spawn(lab, side, &program, &options, unique_name(), Keys::new());
        for _ in 1..tries {
            let Err(why) = &spawned else { break };
            println!("{why}; nothing was tested yet, and it is started anew");
            spawned = spawn(lab, side, &program, &options, unique_name(), Keys::new());
        }
        let (device, child) = spawned.unwrap_or_else(|why| panic!("{why}"));
        End {
            device,
            child,
            program,
            options,
            side,
        }
    }

    /// As a crash and a restart.
    fn restart(&mut self, lab: &Lab) {
        self.kill();
        let namespace = [&lab.a, &lab.b][self.side];
        wait_until("the interface to go", PATIENCE, || {
            !namespace.has_interface(&self.device.name)
        });
        let (name, keys) = (self.device.name.clone(), self.device.keys.clone());
        let spawned = spawn(lab, self.side, &self.program, &self.options, name, keys);
        (self.device, self.child) = spawned.unwrap_or_else(|why| panic!("{why}"));
    }

    /// Removes all peers.
    fn forget(&self) {
        for peer in self.device.dump().iter().skip(1) {
            self.device.wg("set", &["peer", &peer[0], "remove"]);
        }
    }

    /// Changes the private key and changes it back: who outlives that drops its sessions then, and shakes hands when it next has
    /// something to send.
    pub(crate) fn drop_sessions(&self) {
        for key in [&Keys::new().private, &self.device.keys.private] {
            let path = self.device.file("key", key);
            self.device.wg("set", &["private-key", &path]);
        }
    }

    /// Ends it for good.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself; then both are errors of no interest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.kill();
        // Who is killed leaves it behind.
        let _ = std::fs::remove_file(self.device.socket());
    }
}

/// Starts a program at `side` and makes its device ready for peers. `Err`: what kept it from that.
fn spawn(
    lab: &Lab,
    side: usize,
    program: &Path,
    options: &[String],
    name: String,
    keys: Keys,
) -> Result<(Device, Child), String> {
    let namespace = [&lab.a, &lab.b][side];
    let log = lab.directory.join(format!("{}-{name}.log", ["a", "b"][side]));
    let log = File::options().create(true).append(true).open(log).expect("a log");
    let mut command = namespace.command(program);
    command
        .args(options)
        .arg(&name)
        .env("LOG_LEVEL", "verbose")
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log);
    let mut child = command.spawn().expect("setpriv and nsenter are installed");
    let device = Device::running(lab, name, keys, child.id());
    let ready = make_ready(namespace, side, &device, &mut child);
    if let Err(why) = ready {
        // It may have ended by itself; then both are errors of no interest.
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("{}: {why}", program.display()));
    }
    Ok((device, child))
}

fn make_ready(namespace: &Namespace, side: usize, device: &Device, child: &mut Child) -> Result<(), String> {
    let mut ended = None;
    wait_until(&format!("the socket of {}", device.name), PATIENCE, || {
        ended = child.try_wait().expect("it is our child");
        ended.is_some() || (namespace.has_interface(&device.name) && device.try_wg("show", &["dump"]).is_ok())
    });
    if let Some(status) = ended {
        return Err(format!("it ended: {status}"));
    }
    // In one request: another one would have some open their sockets anew, see `reopens_sockets`.
    let key = device.file("key", &device.keys.private);
    let port = PORTS[side].to_string();
    device.try_wg("set", &["listen-port", &port, "private-key", &key])?;
    for address in [format!("{}/24", INNER_V4[side]), format!("{}/64", INNER_V6[side])] {
        namespace.try_run(&["ip", "address", "add", &address, "dev", &device.name])?;
    }
    namespace.try_run(&["ip", "link", "set", &device.name, "mtu", "1420", "up"])?;
    match child.try_wait().expect("it is our child") {
        Some(status) => Err(format!("it ended: {status}")),
        None => Ok(()),
    }
}

/// A lab with IPv6 on the veth too, where root and `wg` are there.
pub(crate) fn lab() -> Option<Lab> {
    let wg = Command::new("wg").arg("--version").stdout(Stdio::null()).status();
    if wg.is_err() {
        println!("skipped: needs wireguard-tools (wg)");
        return None;
    }
    let lab = Lab::new()?;
    for (namespace, address) in [&lab.a, &lab.b].into_iter().zip(UNDERLAY_V6) {
        namespace.ip(&["address", "add", &format!("{address}/64"), "dev", UNDERLAY, "nodad"]);
    }
    Some(lab)
}

pub(crate) fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// An address and a port as tools write them.
pub(crate) fn socket(address: &str, port: u16) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}
