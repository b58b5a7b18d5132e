//! What passes a host's interfaces, by tcpdump.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Namespace, wait_until};

/// A running tcpdump.
pub(crate) struct Capture {
    child: Child,
    path: PathBuf,
}

/// One line of tcpdump's about one packet.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) text: String,
}

impl Capture {
    /// Watches all that the host sends and receives on every interface.
    pub(crate) fn start(host: &Namespace) -> Capture {
        Capture::on(host, "any", &[])
    }

    /// Watches one interface, as far as `filter` says.
    pub(crate) fn on(host: &Namespace, interface: &str, filter: &[&str]) -> Capture {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringway-capture-{}-{number}", std::process::id()));
        let out = fs::File::create(&path).expect("a temporary file");
        let err = fs::File::create(path.with_extension("err")).expect("a temporary file");
        let mut command = host.command("tcpdump");
        command
            .args(["-n", "-v", "-l", "--immediate-mode", "-i", interface])
            .args(filter);
        let child = command.stdout(out).stderr(err).spawn().expect("setpriv is installed");
        let capture = Capture { child, path };
        wait_until("tcpdump to listen", Duration::from_secs(20), || {
            fs::read_to_string(capture.path.with_extension("err")).is_ok_and(|text| text.contains("listening on"))
        });
        capture
    }

    /// Ends it: what it saw.
    pub(crate) fn end(mut self) -> Vec<Frame> {
        // What was sent just before may not have been read.
        std::thread::sleep(Duration::from_millis(300));
        let pid = Pid::from_raw(self.child.id().try_into().expect("process ids are positive i32"));
        kill(pid, Signal::SIGINT).expect("it is our child");
        self.child.wait().expect("it is our child");
        let text = fs::read_to_string(&self.path).expect("it was created");
        // The second line of a packet is indented.
        let joined = text.replace("\n    ", " ").replace("\n\t", " ");
        let lines = joined.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| Frame { text: line.to_owned() }).collect()
    }

    /// Whether this machine has it; prints a line where it has not.
    pub(crate) fn is_possible() -> bool {
        let found = Command::new("tcpdump")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok();
        if !found {
            println!("skipped: needs tcpdump");
        }
        found
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // After `end` these are errors of no interest.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.path.with_extension("err"));
    }
}

impl Frame {
    /// The MSS option, if this is a connection's first packet.
    pub(crate) fn mss_of_first_syn(&self) -> Option<u16> {
        if !self.text.contains("Flags [S],") {
            return None;
        }
        let (_, rest) = self.text.split_once("mss ")?;
        rest.split([',', ']', ' ']).next()?.parse().ok()
    }
}
