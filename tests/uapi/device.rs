//! `ringway-wg` (or another WireGuard implementation) in a namespace of a lab, and the tools that configure it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::lab::{Lab, Namespace, run, wait_until};

/// The program under test.
pub(crate) const RINGWAY_WG: &str = env!("CARGO_BIN_EXE_ringway-wg");
const DIRECTORY: &str = "/var/run/wireguard";

/// A key pair as `wg` makes them.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) private: String,
    pub(crate) public: String,
}

impl Keys {
    pub(crate) fn new() -> Keys {
        let private = run(&["wg", "genkey"]).trim().to_owned();
        let mut child = Command::new("wg")
            .arg("pubkey")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("wg is installed");
        let stdin = child.stdin.take();
        stdin
            .expect("piped")
            .write_all(private.as_bytes())
            .expect("it reads its input");
        let output = child.wait_with_output().expect("it is our child");
        let public = String::from_utf8(output.stdout).expect("base64").trim().to_owned();
        Keys { private, public }
    }
}

/// A name that no other test uses: sockets are in one directory for all network namespaces.
pub(crate) fn unique_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("ut{:x}n{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// One `ringway-wg` in the background, or whatever else serves a socket for `wg`.
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) keys: Keys,
    pid: u32,
    directory: PathBuf,
}

impl Device {
    /// Starts it in `namespace` and waits until it went to the background.
    pub(crate) fn start(lab: &Lab, namespace: &Namespace, options: &[&str]) -> Device {
        let name = unique_name();
        let log = File::create(lab.directory.join(format!("{name}.log"))).expect("a log");
        let mut command = namespace.command(RINGWAY_WG);
        command
            .args(options)
            .arg(&name)
            .env("LOG_LEVEL", "verbose")
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        let status = command.status().expect("setpriv and nsenter are installed");
        assert!(status.success(), "ringway-wg: {status}");
        let pid = pid_of(&name).expect("it runs in the background");
        let device = Device::running(lab, name, Keys::new(), pid);
        assert!(device.socket().exists(), "the socket is there once it is ready");
        device
    }

    /// The device `name` of the process `pid`, which is ended on drop. `keys` are to be set yet.
    pub(crate) fn running(lab: &Lab, name: String, keys: Keys, pid: u32) -> Device {
        Device {
            name,
            keys,
            pid,
            directory: lab.directory.clone(),
        }
    }

    /// `wg COMMAND NAME arguments`; its standard output.
    pub(crate) fn wg(&self, command: &str, arguments: &[&str]) -> String {
        self.try_wg(command, arguments)
            .unwrap_or_else(|output| panic!("wg {command} {} {arguments:?}: {output}", self.name))
    }

    /// As [`Device::wg`], or both outputs where it failed.
    pub(crate) fn try_wg(&self, command: &str, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("wg")
            .args([command, &self.name])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("wg is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(text + &String::from_utf8_lossy(&output.stderr))
        }
    }

    /// A file with `content` that others can't read.
    pub(crate) fn file(&self, suffix: &str, content: &str) -> String {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.directory.join(format!("{}.{suffix}", self.name));
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(content.as_bytes()))
            .expect("the directory is ours");
        path.display().to_string()
    }

    /// Sets the private key.
    pub(crate) fn set_private_key(&self) {
        let path = self.file("key", &self.keys.private);
        self.wg("set", &["private-key", &path]);
    }

    /// The fields of each line of `wg show NAME dump`: the device's, then one line per peer.
    pub(crate) fn dump(&self) -> Vec<Vec<String>> {
        let text = self.wg("show", &["dump"]);
        let fields = |line: &str| line.split('\t').map(str::to_owned).collect();
        text.lines().map(fields).collect()
    }

    /// The line of [`Device::dump`] that begins with `public_key`.
    pub(crate) fn peer(&self, public_key: &str) -> Option<Vec<String>> {
        let mut lines = self.dump().into_iter().skip(1);
        lines.find(|fields| fields[0] == public_key)
    }

    /// The allowed IPs of a peer, sorted.
    pub(crate) fn allowed_ips(&self, public_key: &str) -> Vec<String> {
        let fields = self.peer(public_key).expect("a peer");
        let mut list: Vec<String> = fields[3].split(',').map(str::to_owned).collect();
        list.retain(|allowed_ip| allowed_ip != "(none)");
        list.sort();
        list
    }

    /// The UDP port that it says it listens on.
    pub(crate) fn listen_port(&self) -> u16 {
        self.dump()[0][2].parse().expect("a port")
    }

    /// What the socket answers to `request`.
    pub(crate) fn exchange(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("it serves its socket");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time limit");
        stream.write_all(request.as_bytes()).expect("it reads");
        stream.shutdown(Shutdown::Write).expect("it is connected");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers in time");
        answer
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_of(&self.name)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process is gone, and its socket with it.
    pub(crate) fn wait_until_ended(&self) {
        wait_until("the end of ringway-wg", Duration::from_secs(20), || {
            !is_running(self.pid)
        });
        assert!(!self.socket().exists(), "the socket is gone too");
    }

    /// Resident memory in bytes.
    pub(crate) fn rss_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.expect("every process has it").trim().trim_end_matches(" kB");
        kilobytes.parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What the namespace kills can't remove its socket.
        for (signal, polls) in [("TERM", 500), ("KILL", 100)] {
            if !is_running(self.pid) {
                return;
            }
            let _ = Command::new("kill")
                .args(["-s", signal, &self.pid.to_string()])
                .status();
            for _ in 0..polls {
                if !is_running(self.pid) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = fs::remove_file(self.socket());
    }
}

/// Where `wg` looks for the device.
pub(crate) fn socket_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.sock"))
}

/// The `ringway-wg` whose last argument is `name`.
pub(crate) fn pid_of(name: &str) -> Option<u32> {
    let processes = fs::read_dir("/proc").expect("proc is mounted").flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = arguments.split('\0').next().unwrap_or_default();
        program.ends_with("ringway-wg") && arguments.ends_with(&format!("\0{name}\0")) && is_running(*pid)
    })
}

/// Zombies have ended: whoever adopted them will take note of it some time.
fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}
