//! Two network namespaces joined by one veth, and everything that must go when a test ends, passed or panicked.
//!
//! ```text
//!  +------- a -------+                          +------- b -------+
//!  | 10.99.0.1   rw0 |                          | rw0   10.99.0.2 |
//!  | fd99::1         |                          |         fd99::2 |
//!  |     ringway run |                          | ringway run     |
//!  |          under0 +--------------------------+ under0          |
//!  +-----------------+ 192.0.2.1      192.0.2.2 +-----------------+
//! ```
//!
//! Names hold the process id, so that runs side by side don't meet and leftovers of a killed run can be told: the next
//! run removes them.

use std::fs::{self, DirBuilder, File};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// The veth's name at both ends.
pub(crate) const UNDERLAY: &str = "under0";
/// Outer addresses of a and b.
pub(crate) const UNDERLAY_V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

pub(crate) const PREFIX: &str = "ringway-test-";

/// A lab of its own for one test.
pub(crate) struct Lab {
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    /// For sockets, keys and logs.
    pub(crate) directory: PathBuf,
}

impl Lab {
    /// Builds it. `None`, with a printed line, where the process may not.
    pub(crate) fn new() -> Option<Lab> {
        Lab::with_mtu(1500)
    }

    /// As [`Lab::new`], with `mtu` bytes on the veth.
    pub(crate) fn with_mtu(mtu: u32) -> Option<Lab> {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !may_make_namespaces() {
            println!("skipped: needs root");
            return None;
        }
        SWEEP.call_once(remove_leftovers);
        let id = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(&id);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .expect("a directory for the lab");
        let lab = Lab {
            a: Namespace::new(format!("{id}-a")),
            b: Namespace::new(format!("{id}-b")),
            directory,
        };
        let mtu = mtu.to_string();
        let [a, b] = [&lab.a.name, &lab.b.name];
        run(
            &["ip", "link", "add", UNDERLAY, "mtu", &mtu, "netns", a, "type", "veth"]
                .into_iter()
                .chain(["peer", "name", UNDERLAY, "mtu", &mtu, "netns", b])
                .collect::<Vec<_>>(),
        );
        for (namespace, address) in [&lab.a, &lab.b].into_iter().zip(UNDERLAY_V4) {
            namespace.ip(&["address", "add", &format!("{address}/24"), "dev", UNDERLAY]);
            namespace.ip(&["link", "set", UNDERLAY, "up"]);
        }
        Some(lab)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show_logs();
        }
        // A panic here would abort the run and hide the first one. The next run sweeps what can't be removed now.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Lab {
    /// For whoever reads a failed test's output.
    fn show_logs(&self) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                println!("--- {}\n{text}", entry.file_name().display());
            }
        }
    }
}

/// A network namespace; removed, with the processes in it, on drop.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    /// Makes it. A name that begins with that of a lab's namespace is swept with it when a run is killed.
    pub(crate) fn new(name: String) -> Namespace {
        run(&["ip", "netns", "add", &name]);
        let namespace = Namespace { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// `ip -n NAME arguments`; its standard output.
    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        run(&[&["ip", "-n", &self.name], arguments].concat())
    }

    /// A command inside that is not started yet. It dies with the thread that starts it.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net={}", self.path().display()))
            .arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command inside to its end: its standard output, or both outputs where it failed.
    pub(crate) fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        finish(self.command(arguments[0]).args(&arguments[1..]))
    }

    /// As [`Namespace::try_run`] for commands that must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments)
            .unwrap_or_else(|output| panic!("{arguments:?}: {output}"))
    }

    /// Calls `inside` on a thread in the namespace. Sockets made there belong to it for good, whoever uses them.
    pub(crate) fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace exists");
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                inside()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// One counter of /proc/net/netstat (`TcpExt`) or /proc/net/snmp (`Tcp`), e.g. `("TcpExt", "TCPOFOQueue")`.
    pub(crate) fn counter(&self, group: &str, name: &str) -> u64 {
        let text = self.enter(|| {
            let file = if group == "TcpExt" { "netstat" } else { "snmp" };
            fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("proc is mounted")
        });
        let mut lines = text
            .lines()
            .filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
        let [names, values] = [lines.next(), lines.next()].map(|line| line.expect("two lines").split_whitespace());
        let mut pairs = names.zip(values);
        pairs
            .find(|pair| pair.0 == name)
            .expect("the counter exists")
            .1
            .parse()
            .expect("a number")
    }

    /// Whether one ping of `size` payload bytes is answered within a second.
    pub(crate) fn ping(&self, address: IpAddr, size: u32) -> bool {
        let [address, size] = [address.to_string(), size.to_string()];
        self.try_run(&["ping", "-n", "-q", "-c", "1", "-W", "1", "-s", &size, &address])
            .is_ok()
    }

    /// Whether a ping is answered on a machine that may be busy: where an answer is expected. Does not wait after one.
    pub(crate) fn answers(&self, address: IpAddr, size: u32) -> bool {
        let [address, size] = [address.to_string(), size.to_string()];
        let ping = ["ping", "-n", "-q", "-c", "1", "-W", "3", "-s", &size, &address];
        (0..5).any(|_| self.try_run(&ping).is_ok())
    }

    /// Whether an interface exists inside.
    pub(crate) fn has_interface(&self, name: &str) -> bool {
        self.try_run(&["ip", "link", "show", name]).is_ok()
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove_namespace(&self.name);
    }
}

/// Runs a command that must succeed; its standard output.
pub(crate) fn run(arguments: &[&str]) -> String {
    finish(Command::new(arguments[0]).args(&arguments[1..])).unwrap_or_else(|output| panic!("{arguments:?}: {output}"))
}

/// Polls until `condition` holds; panics with `what` when it does not within `patience`.
pub(crate) fn wait_until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn finish(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() {
        Ok(out)
    } else {
        Err(format!("{}\n{err}{out}", output.status))
    }
}

/// CAP_NET_ADMIN and CAP_SYS_ADMIN (linux/capability.h), and a TUN device that can be opened.
fn may_make_namespaces() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .expect("every process has it");
    let effective = u64::from_str_radix(effective.trim(), 16).expect("a hexadecimal mask");
    let privileged = [12, 21].iter().all(|capability| effective >> capability & 1 == 1);
    privileged && File::options().read(true).write(true).open("/dev/net/tun").is_ok()
}

/// Removes what runs that were killed have left: namespaces and directories whose name holds a dead process's id, with what is mounted there.
fn remove_leftovers() {
    for line in run(&["ip", "netns", "list"]).lines() {
        if let Some(name) = line.split_whitespace().next().filter(|name| is_dead(name)) {
            remove_namespace(name);
        }
    }
    remove_directories(&std::env::temp_dir());
}

/// Removes what runs that were killed have left in `directory`, and what is mounted there.
pub(crate) fn remove_directories(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_dead(&entry.file_name().to_string_lossy()) {
            unmount_below(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether this is the name of something of a process that is dead.
fn is_dead(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

/// The latest mount first. What is frozen thaws: who removes a file there would wait for ever, and so would a loop device for its end.
fn unmount_below(directory: &Path) {
    // As it is named there.
    let Ok(directory) = directory.canonicalize() else {
        return;
    };
    let mounts = fs::read_to_string("/proc/self/mounts").expect("proc is mounted");
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(&directory)) {
        // Most are not frozen, which is an error.
        for [program, option] in [["fsfreeze", "--unfreeze"], ["umount", "--lazy"]] {
            let _ = finish(Command::new(program).args([option, point]));
        }
    }
}

/// Kills what runs inside, then removes it. Errors are left to the next run's sweep: this is called while panicking too.
fn remove_namespace(name: &str) {
    let pids = finish(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    for pid in pids.split_whitespace() {
        if let Ok(pid) = pid.parse() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    let _ = finish(Command::new("ip").args(["netns", "delete", name]));
}
