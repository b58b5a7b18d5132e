//! Two daemons, one at each end of a lab, and the tools that look at them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::{Lab, Namespace, UNDERLAY_V4, wait_until};

/// Inner addresses of a and b.
pub(crate) const INNER: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
/// Where a serves metrics.
pub(crate) const METRICS: &str = "127.0.0.1:9586";

const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");
const LISTEN_PORT: u16 = 51820;
const NAMES: [&str; 2] = ["a", "b"];
/// How long anything may take on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(20);
/// The number of the group "ringway" as the daemon of [`Tunnel::second_daemon`] sees it.
pub(crate) const GROUP_ID: u32 = 64_999;

/// Both daemons. Field order: the daemons end before the lab goes.
pub(crate) struct Tunnel {
    _daemons: [Daemon; 2],
    keys: [String; 2],
    pub(crate) lab: Lab,
}

/// A daemon; killed on drop.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) control: PathBuf,
    directory: Option<PathBuf>,
}

impl Tunnel {
    /// Starts both and waits until packets pass.
    pub(crate) fn up(lab: Lab) -> Tunnel {
        let keys = [0, 1].map(|_| tool(&["genkey"], "").expect("a key"));
        let public = keys.each_ref().map(|key| tool(&["pubkey"], key).expect("a key"));
        let daemons = [0, 1].map(|me| {
            let other = 1 - me;
            let control = lab.directory.join(format!("{}.sock", NAMES[me]));
            let metrics = if me == 0 { format!("[metrics]\nlisten = \"{METRICS}\"\n") } else { String::new() };
            let text = format!(
                "[interface]\nname = \"rw0\"\nprivate_key = \"{}\"\nlisten_port = {LISTEN_PORT}\naddresses = [\"{}/24\"]\n\
                 workers = 2\ncontrol_socket = \"{}\"\nstate_dir = \"{}.state\"\n{metrics}\n\
                 [[peer]]\nname = \"other\"\npublic_key = \"{}\"\nendpoint = \"{}:{LISTEN_PORT}\"\nallowed_ips = [\"{}/32\"]\n\
                 suite = \"native\"\n",
                keys[me],
                INNER[me],
                control.display(),
                control.display(),
                public[other],
                UNDERLAY_V4[other],
                INNER[other],
            );
            let config = write(&lab, &format!("{}.toml", NAMES[me]), &text, 0o600);
            let mut command = namespace(&lab, me).command(RINGWAY);
            command.arg("run").arg(&config);
            Daemon::start(command, &lab.directory.join(format!("{}.log", NAMES[me])), control)
        });
        let tunnel = Tunnel {
            _daemons: daemons,
            keys,
            lab,
        };
        let b = INNER[1].parse().expect("an address");
        wait_until("an answer from b", PATIENCE, || tunnel.lab.a.ping(b, 56));
        tunnel
    }

    /// The control socket of a (0) or b (1).
    pub(crate) fn control(&self, end: usize) -> String {
        let path = self.lab.directory.join(format!("{}.sock", NAMES[end]));
        path.to_str().expect("text").to_owned()
    }

    /// The configuration of a (0) or b (1).
    pub(crate) fn config(&self, end: usize) -> String {
        let path = self.lab.directory.join(format!("{}.toml", NAMES[end]));
        path.to_str().expect("text").to_owned()
    }

    /// Runs `ringway` as a tool; its standard output, or both outputs where it failed.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Result<String, String> {
        tool(arguments, "")
    }

    /// As [`Tunnel::tool`], inside one of the namespaces.
    pub(crate) fn tool_in(&self, end: usize, arguments: &[&str]) -> Result<String, String> {
        namespace(&self.lab, end).try_run(&[&[RINGWAY], arguments].concat())
    }

    /// Starts `ringway` as a tool that goes on for a while.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let child = Command::new(RINGWAY)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary under test exists");
        Running(Some(child))
    }

    /// Sends pings from a to b until the tool has ended.
    pub(crate) fn pings_until_ended(&self, tool: &mut Running) {
        let b = INNER[1].parse().expect("an address");
        let deadline = Instant::now() + PATIENCE;
        while tool.is_running() {
            assert!(Instant::now() < deadline, "the tool does not end");
            self.lab.a.ping(b, 56);
        }
    }

    /// How many packets the daemon at `end` has dropped for `reason`.
    pub(crate) fn drops(&self, end: usize, reason: &str) -> u64 {
        let text = tool(&["status", &self.control(end), "--json"], "").expect("the daemon answers");
        let status: Value = serde_json::from_str(&text).expect("JSON");
        let workers = status["workers"].as_array().expect("a list").iter();
        workers.filter_map(|worker| worker["drops"][reason].as_u64()).sum()
    }

    /// Sends a datagram from one end, through whatever its routes say.
    pub(crate) fn send_udp(&self, end: usize, destination: &str) {
        namespace(&self.lab, end).enter(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
            socket.send_to(b"x", (destination, 9)).expect("there is a route");
        });
    }

    /// A configuration with faults that only a look at the machine finds.
    pub(crate) fn broken_config(&self) -> String {
        let public = |byte: u8| tool(&["pubkey"], &tool(&["genkey"], "").expect("a key")).unwrap_or(format!("{byte}"));
        let text = format!(
            "[interface]\nname = \"rw0\"\nprivate_key = \"{}\"\nlisten_port = {LISTEN_PORT}\naddresses = [\"10.98.0.1/24\"]\n\
             control_socket = \"nobody.sock\"\n\n\
             [[peer]]\nname = \"unreachable\"\npublic_key = \"{}\"\nendpoint = \"203.0.113.9:1\"\n\n\
             [[peer]]\nname = \"loop\"\npublic_key = \"{}\"\nendpoint = \"{}:1\"\n",
            self.keys[0],
            public(1),
            public(2),
            INNER[1],
        );
        write(&self.lab, "broken.toml", &text, 0o644)
    }

    /// A configuration that is none.
    pub(crate) fn invalid_config(&self) -> String {
        let text = format!("[interface]\nprivate_key = \"{}\"\nlisten_prt = 1\n", self.keys[0]);
        write(&self.lab, "invalid.toml", &text, 0o600)
    }

    /// A directory where everybody may go; it goes with the [`Tunnel::second_daemon`].
    pub(crate) fn shared_directory(&self) -> PathBuf {
        std::env::temp_dir().join(format!("ringway-observe-{}", std::process::id()))
    }

    /// Somebody's public key.
    pub(crate) fn key(&self) -> String {
        let private = tool(&["genkey"], "").expect("a key");
        tool(&["pubkey"], &private).expect("its public key")
    }

    /// A daemon in b that knows a group "ringway", with its control socket in the [`Tunnel::shared_directory`], and with
    /// `further` sections in its file.
    pub(crate) fn second_daemon(&self, further: &str) -> Daemon {
        let directory = self.shared_directory();
        fs::create_dir_all(&directory).expect("a directory");
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("it is ours");
        let control = directory.join("rw9.sock");
        let text = format!(
            "[interface]\nname = \"rw9\"\nprivate_key = \"{}\"\nworkers = 1\ncontrol_socket = \"{}\"\nstate_dir = \"{}.state\"\n\
             {further}",
            self.keys[0],
            control.display(),
            control.display()
        );
        let config = write(&self.lab, "second.toml", &text, 0o600);
        let groups = format!("root:x:0:\nringway:x:{GROUP_ID}:\n");
        let groups = write(&self.lab, "group", &groups, 0o644);
        let run = format!("mount --bind {groups} /etc/group && exec {RINGWAY} run {config}");
        let mut command = self.lab.b.command("unshare");
        command.args(["--mount", "sh", "-c", &run]);
        let mut daemon = Daemon::start(command, &self.lab.directory.join("second.log"), control);
        daemon.directory = Some(directory);
        daemon
    }

    /// What a daemon says of itself.
    pub(crate) fn status(&self, daemon: &Daemon) -> Value {
        let control = daemon.control.to_str().expect("text");
        serde_json::from_str(&tool(&["status", control, "--json"], "").expect("the daemon answers")).expect("JSON")
    }
}

impl Daemon {
    /// Starts it and waits for its control socket.
    fn start(mut command: Command, log: &Path, control: PathBuf) -> Daemon {
        let log = File::create(log).expect("the log can be written");
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let daemon = Daemon {
            child: command.spawn().expect("setpriv and nsenter are installed"),
            control,
            directory: None,
        };
        // A handshake with an end that does not listen yet is tried again only 5 s later.
        wait_until("the control socket", PATIENCE, || {
            tool(&["status", daemon.control.to_str().expect("text")], "").is_ok()
        });
        daemon
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().expect("an i32")), signal).expect("it is our child");
    }

    /// Waits until it has ended, in good order.
    pub(crate) fn wait_for_end(&mut self) {
        let mut status = None;
        wait_until("the daemon's end", PATIENCE, || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; then both are errors of no interest.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// A tool that goes on for a while; killed on drop.
pub(crate) struct Running(Option<Child>);

/// What a tool wrote.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Running {
    pub(crate) fn is_running(&mut self) -> bool {
        let child = self.0.as_mut().expect("it was not finished");
        child.try_wait().expect("it is our child").is_none()
    }

    /// Waits for the end: what it wrote.
    pub(crate) fn finish(mut self) -> Output {
        wait_until("the tool's end", PATIENCE, || !self.is_running());
        let output = self
            .0
            .take()
            .expect("it was not finished")
            .wait_with_output()
            .expect("it is our child");
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{stderr}{stdout}");
        Output { stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether a program is there.
pub(crate) fn installed(program: &str) -> bool {
    let asked = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output();
    asked.is_ok_and(|output| output.status.success())
}

fn namespace(lab: &Lab, end: usize) -> &Namespace {
    [&lab.a, &lab.b][end]
}

fn write(lab: &Lab, name: &str, text: &str, mode: u32) -> String {
    let path = lab.directory.join(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("the lab's directory can be written");
    path.to_str().expect("text").to_owned()
}

/// Runs `ringway` to its end: its standard output without the last newline, or both outputs where it failed.
fn tool(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(RINGWAY)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary under test exists");
    // A program that reads no input may have ended before it is written.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it is our child");
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() {
        Ok(out.trim_end().to_owned())
    } else {
        Err(err + &out)
    }
}
