//! One end: a configuration file and the `ringway run` that it configures.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::{Lab, Namespace, UNDERLAY_V4, wait_until};

pub(crate) const INTERFACE: &str = "rw0";
pub(crate) const PORT: u16 = 51820;
/// Inner addresses of a and b, and of a third one where a test has that.
pub(crate) const INNER: [&str; 3] = ["10.99.0.1", "10.99.0.2", "10.99.0.3"];

pub(crate) const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");
const NAMES: [&str; 3] = ["a", "b", "c"];

/// A key pair.
pub(crate) struct Keys {
    pub(crate) private: String,
    pub(crate) public: String,
}

impl Keys {
    pub(crate) fn new() -> Keys {
        let private = tool(&["genkey"], "").expect("a key");
        let public = tool(&["pubkey"], &private).expect("its public key");
        Keys { private, public }
    }
}

/// One end; the daemon is killed on drop.
pub(crate) struct End {
    pub(crate) keys: Keys,
    pub(crate) file: PathBuf,
    pub(crate) control: PathBuf,
    pub(crate) state: PathBuf,
    log: PathBuf,
    me: usize,
    child: Option<Child>,
}

impl End {
    /// End 0 (a), 1 (b) or 2 (c), not started.
    pub(crate) fn new(lab: &Lab, me: usize) -> End {
        let in_lab = |extension: &str| lab.directory.join(format!("{}.{extension}", NAMES[me]));
        End {
            keys: Keys::new(),
            file: in_lab("toml"),
            control: in_lab("sock"),
            state: in_lab("state").join(format!("{INTERFACE}.state")),
            log: in_lab("log"),
            me,
            child: None,
        }
    }

    /// `[interface]` with these further lines.
    pub(crate) fn interface(&self, further: &str) -> String {
        format!(
            "[interface]\nname = \"{INTERFACE}\"\nprivate_key = \"{}\"\nlisten_port = {PORT}\nworkers = 1\ncontrol_socket = \
             \"{}\"\nstate_dir = \"{}\"\n{further}\n",
            self.keys.private,
            self.control.display(),
            self.state.parent().expect("it has one").display(),
        )
    }

    /// Writes the file: `[interface]` with the address and these lines, then `peers`.
    pub(crate) fn write(&self, interface: &str, peers: &[String]) {
        let address = format!("addresses = [\"{}/24\"]\n", INNER[self.me]);
        let has_addresses = interface.contains("addresses");
        let interface = self.interface(&format!("{}{interface}", if has_addresses { "" } else { &address }));
        write(&self.file, &(interface + &peers.concat()));
    }

    /// This end as the other one's peer.
    pub(crate) fn as_peer(&self, further: &str) -> String {
        peer(
            &self.keys.public,
            NAMES[self.me],
            &format!("{}/32", INNER[self.me]),
            further,
        )
    }

    /// This end, a or b, as the other one's peer, at its address.
    pub(crate) fn as_peer_at_home(&self) -> String {
        self.as_peer(&format!("endpoint = \"{}:{PORT}\"", UNDERLAY_V4[self.me]))
    }

    /// Starts the daemon and waits for its control socket.
    pub(crate) fn start(&mut self, namespace: &Namespace) {
        let mut command = namespace.command(RINGWAY);
        command.arg("run").arg(&self.file);
        self.start_by(command);
    }

    /// As [`End::start`], by `program ARGUMENTS... ringway run FILE`.
    pub(crate) fn start_under(&mut self, namespace: &Namespace, program: &[&str]) {
        self.start_at_least_under(namespace, program);
        self.wait_for_socket();
    }

    fn start_by(&mut self, command: Command) {
        self.launch(command);
        self.wait_for_socket();
    }

    fn wait_for_socket(&self) {
        wait_until("the control socket", Duration::from_secs(20), || self.control.exists());
    }

    /// Starts the daemon and waits for nothing.
    pub(crate) fn start_at_least(&mut self, namespace: &Namespace) {
        let mut command = namespace.command(RINGWAY);
        command.arg("run").arg(&self.file);
        self.launch(command);
    }

    /// As [`End::start_under`], and waits for nothing.
    pub(crate) fn start_at_least_under(&mut self, namespace: &Namespace, program: &[&str]) {
        let mut command = namespace.command(program[0]);
        command.args(&program[1..]).arg(RINGWAY).arg("run").arg(&self.file);
        self.launch(command);
    }

    fn launch(&mut self, mut command: Command) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log");
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.spawn(command);
    }

    /// Starts the daemon by a command that says what its standard streams are.
    pub(crate) fn spawn(&mut self, mut command: Command) {
        self.child = Some(command.spawn().expect("setpriv and nsenter are installed"));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().expect("it was started").id();
        kill(Pid::from_raw(id.try_into().expect("an i32")), signal).expect("it is our child");
    }

    /// Runs `program ARGUMENTS... PID` on the daemon's process.
    pub(crate) fn run_on_it(&self, program: &str, arguments: &[&str]) {
        let id = self.child.as_ref().expect("it was started").id().to_string();
        crate::lab::run(&[&[program], arguments, &[&id]].concat());
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end_by(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait_for_end()
    }

    /// Waits for an end that nobody has asked for.
    pub(crate) fn wait_for_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it was started");
        let mut status = None;
        wait_until("the end", Duration::from_secs(20), || {
            status = child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("wait_until saw it")
    }

    /// `ringway ARGUMENTS`, with `@` for this end's control socket: its output, or what it says where it fails.
    pub(crate) fn ringway(&self, arguments: &[&str]) -> Result<String, (i32, String)> {
        let control = self.control.display().to_string();
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|argument| if *argument == "@" { &control } else { *argument })
            .collect();
        tool(&arguments, "")
    }

    /// As [`End::ringway`] for what must succeed.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        self.ringway(arguments)
            .unwrap_or_else(|failure| panic!("{arguments:?}: {failure:?}"))
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.must(&["status", "@", "--json"])).expect("JSON")
    }

    /// When the latest handshake with the other end was.
    pub(crate) fn handshake(&self, peer: &str) -> Value {
        let status = self.status();
        let peers = status["peers"].as_array().expect("a list");
        let peer = peers
            .iter()
            .find(|entry| entry["name"] == peer)
            .expect("the peer is there");
        peer["latest_handshake_unix_s"].clone()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself; then both are errors of no interest.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A `[[peer]]`.
pub(crate) fn peer(public_key: &str, name: &str, allowed: &str, further: &str) -> String {
    format!("[[peer]]\nname = \"{name}\"\npublic_key = \"{public_key}\"\nallowed_ips = [\"{allowed}\"]\n{further}\n")
}

/// Whether the process runs, and has not only ended unnoticed by its parent.
pub(crate) fn runs(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Kills a daemon that a test has started through another program.
pub(crate) fn kill_process(pid: i64) {
    let pid = Pid::from_raw(pid.try_into().expect("an i32"));
    kill(pid, Signal::SIGKILL).expect("it runs");
}

/// Writes a file for its owner only.
pub(crate) fn write(path: &Path, text: &str) {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    let mut file = file.expect("it can be written");
    file.write_all(text.as_bytes()).expect("it can be written");
    assert_eq!(
        file.metadata().expect("it is there").permissions().mode() & 0o777,
        0o600
    );
}

/// Runs `ringway` as a tool: its standard output, or its exit code and what it says.
fn tool(arguments: &[&str], input: &str) -> Result<String, (i32, String)> {
    let mut command = Command::new(RINGWAY);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary under test exists");
    // A program that reads no input may have ended before it is written.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it is our child");
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
    match output.status.code() {
        Some(0) => Ok(out),
        code => Err((code.unwrap_or(-1), err)),
    }
}
