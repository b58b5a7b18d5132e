//! `ringway run` at both ends of a lab.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::{Lab, Namespace, UNDERLAY_V4, wait_until};

/// The tunnel's interface at both ends.
pub(crate) const INTERFACE: &str = "rw0";

const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");
const LISTEN_PORT: u16 = 51820;
const INNER_V4: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
const INNER_V6: [&str; 2] = ["fd99::1", "fd99::2"];

/// How both daemons of a test are configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) io: &'static str,
    pub(crate) suite: &'static str,
    pub(crate) workers: u32,
    /// How many more b has.
    pub(crate) more_workers_of_b: u32,
    pub(crate) ipv6: bool,
    pub(crate) lane_ports: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            io: "auto",
            suite: "native",
            workers: 1,
            more_workers_of_b: 0,
            ipv6: true,
            lane_ports: false,
        }
    }
}

/// Both daemons. Field order: the daemons end before the lab goes.
pub(crate) struct Tunnel {
    pub(crate) a: Daemon,
    pub(crate) b: Daemon,
    setup: Setup,
    pub(crate) lab: Lab,
}

impl Tunnel {
    /// Starts both and waits until packets pass.
    pub(crate) fn up(lab: Lab, setup: Setup) -> Tunnel {
        let keys = [0, 1].map(|_| tool(&["genkey"], None));
        let public = keys.each_ref().map(|key| tool(&["pubkey"], Some(key)));
        let [a, b] = [(0, 1, &lab.a), (1, 0, &lab.b)].map(|(me, other, namespace)| {
            let control = lab.directory.join(format!("{}.sock", ["a", "b"][me]));
            let config = config(
                setup,
                [me, other],
                &keys[me],
                &public[other],
                &control.display().to_string(),
            );
            let path = lab.directory.join(format!("{}.toml", ["a", "b"][me]));
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            file.and_then(|mut file| file.write_all(config.as_bytes()))
                .expect("the configuration can be written");
            let log = path.with_extension("log");
            Daemon {
                child: start(namespace, &path, &log),
                config: path,
                control,
                log,
            }
        });
        let tunnel = Tunnel { a, b, setup, lab };
        for daemon in [&tunnel.a, &tunnel.b] {
            // A handshake with an end that does not listen yet is tried again only 5 s later.
            wait_until("the control socket", Duration::from_secs(10), || {
                daemon.has_control_socket()
            });
        }
        tunnel.wait_until_packets_pass(Duration::from_secs(15));
        tunnel
    }

    /// Starts b anew after it ended.
    pub(crate) fn start_b(&mut self) {
        self.b.child = start(&self.lab.b, &self.b.config, &self.b.log);
    }

    /// Starts a anew after it ended.
    pub(crate) fn start_a(&mut self) {
        self.a.child = start(&self.lab.a, &self.a.config, &self.a.log);
    }

    /// Pings b from a until it answers over every family.
    pub(crate) fn wait_until_packets_pass(&self, patience: Duration) {
        for address in self.addresses_of_b() {
            wait_until(&format!("an answer from {address}"), patience, || {
                self.lab.a.ping(address, 56)
            });
        }
    }

    /// b's inner addresses.
    pub(crate) fn addresses_of_b(&self) -> Vec<IpAddr> {
        let addresses = [INNER_V4[1], INNER_V6[1]].map(|address| address.parse().expect("an address"));
        addresses[..if self.setup.ipv6 { 2 } else { 1 }].to_vec()
    }

    /// Panics if a daemon ended, or saw what two honest ends never send: forged, replayed or malformed packets.
    pub(crate) fn assert_healthy(&mut self) {
        for daemon in [&mut self.a, &mut self.b] {
            assert!(daemon.is_running(), "a daemon ended");
            let status = daemon.status();
            for worker in status["workers"].as_array().expect("a list of workers") {
                let drops = worker["drops"].as_object().expect("drops by reason");
                for reason in [
                    "forged",
                    "replayed",
                    "too_old",
                    "bad_message",
                    "bad_inner",
                    "bad_source",
                    "malformed",
                ] {
                    assert!(!drops.contains_key(reason), "dropped: {drops:?}");
                }
            }
        }
    }
}

/// One `ringway run`; killed on drop.
pub(crate) struct Daemon {
    child: Child,
    config: PathBuf,
    control: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// What `ringway status --json` says.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&tool(&["status", &self.control(), "--json"], None)).expect("JSON")
    }

    /// Bytes of inner packets that each worker has sent ("tx") or received ("rx").
    pub(crate) fn bytes_by_worker(&self, way: &str) -> Vec<u64> {
        let status = self.status();
        let workers = status["workers"].as_array().expect("a list of workers");
        let bytes = |worker: &Value| worker[way]["bytes"].as_u64().expect("a number");
        workers.iter().map(bytes).collect()
    }

    /// What `ringway latency --json --hlog FILE` says; the log is written to `hlog`.
    pub(crate) fn latency(&self, hlog: &str) -> Value {
        serde_json::from_str(&tool(&["latency", &self.control(), "--json", "--hlog", hlog], None)).expect("JSON")
    }

    /// What the daemon itself has logged of latencies so far.
    pub(crate) fn latency_log(&self) -> Vec<u8> {
        std::fs::read(format!("{}.hlog", self.control())).unwrap_or_default()
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end_by(&mut self, signal: Signal) -> ExitStatus {
        kill(self.pid(), signal).expect("it is our child");
        let mut status = None;
        wait_until(&format!("the end after {signal}"), Duration::from_secs(20), || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("wait_until saw it")
    }

    /// Whether the control socket is there.
    pub(crate) fn has_control_socket(&self) -> bool {
        self.control.exists()
    }

    /// Peak resident memory in bytes (VmHWM).
    pub(crate) fn rss_bytes_peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .expect("every process has it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("process ids are positive i32"))
    }

    fn control(&self) -> String {
        self.control.display().to_string()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; then both are errors of no interest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(setup: Setup, [me, other]: [usize; 2], key: &str, peer_key: &str, control: &str) -> String {
    let Setup {
        io,
        suite,
        workers,
        more_workers_of_b,
        ipv6,
        lane_ports,
    } = setup;
    let workers = workers + [0, more_workers_of_b][me];
    let list = |v4: String, v6: String| {
        if ipv6 {
            format!(r#"["{v4}", "{v6}"]"#)
        } else {
            format!(r#"["{v4}"]"#)
        }
    };
    let addresses = list(format!("{}/24", INNER_V4[me]), format!("{}/64", INNER_V6[me]));
    let allowed = list(format!("{}/32", INNER_V4[other]), format!("{}/128", INNER_V6[other]));
    let endpoint = UNDERLAY_V4[other];
    format!(
        r#"[interface]
name = "{INTERFACE}"
private_key = "{key}"
listen_port = {LISTEN_PORT}
addresses = {addresses}
workers = {workers}
io = "{io}"
lane_ports = {lane_ports}
control_socket = "{control}"
latency_log = "{control}.hlog"
state_dir = "{control}.state"

[[peer]]
name = "other"
public_key = "{peer_key}"
endpoint = "{endpoint}:{LISTEN_PORT}"
allowed_ips = {allowed}
suite = "{suite}"
"#
    )
}

fn start(namespace: &Namespace, config: &std::path::Path, log: &std::path::Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("the log can be written");
    let mut command = namespace.command(RINGWAY);
    command
        .arg("run")
        .arg(config)
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log);
    command.spawn().expect("setpriv and nsenter are installed")
}

/// Runs `ringway` as a tool; its standard output without the newline.
fn tool(arguments: &[&str], input: Option<&str>) -> String {
    let mut command = Command::new(RINGWAY);
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary under test exists");
    let mut stdin = child.stdin.take().expect("piped");
    // A program that reads no input may have ended before it is written.
    let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("it is our child");
    assert!(
        output.status.success(),
        "ringway {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}
