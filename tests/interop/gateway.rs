//! `ringway run` with a TOML file at a, in place of ringway-wg.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, wait_until};
use crate::pair::PATIENCE;

const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");

/// One `ringway run`; killed on drop.
pub(crate) struct Gateway {
    child: Child,
    config: PathBuf,
    control: PathBuf,
}

impl Gateway {
    /// Starts it with `config`, to which the places of its control socket and its state are added.
    pub(crate) fn start(lab: &Lab, config: &str) -> Gateway {
        let control = lab.directory.join("gateway.sock");
        let path = lab.directory.join("gateway.toml");
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let places = format!(
            "control_socket = \"{}\"\nstate_dir = \"{}\"\n",
            control.display(),
            lab.directory.join("state").display()
        );
        let text = config.replace("[interface]\n", &format!("[interface]\n{places}"));
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("the directory is ours");
        let gateway = Gateway {
            child: spawn(lab, &path),
            config: path,
            control,
        };
        gateway.wait_until_ready();
        gateway
    }

    /// Ends it as an operator does, and starts it anew.
    pub(crate) fn restart(&mut self, lab: &Lab) {
        self.end();
        self.child = spawn(lab, &self.config);
        self.wait_until_ready();
    }

    /// Ends it by SIGTERM, and cleanly.
    pub(crate) fn end(&mut self) {
        let pid = self.child.id().try_into().expect("process ids are positive i32");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is our child");
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "{status}");
    }

    /// The suite of the session with its only peer.
    pub(crate) fn suite(&self) -> String {
        let mut command = Command::new(RINGWAY);
        command.arg("status").arg(&self.control).arg("--json");
        let output = command.output().expect("the program under test exists");
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        status["peers"][0]["suite"].as_str().unwrap_or("none").to_owned()
    }

    fn wait_until_ready(&self) {
        wait_until("the control socket", PATIENCE, || self.control.exists());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself; then both are errors of no interest.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.control);
    }
}

fn spawn(lab: &Lab, config: &std::path::Path) -> Child {
    let log = config.with_extension("log");
    let log = File::options().create(true).append(true).open(log).expect("a log");
    let mut command = lab.a.command(RINGWAY);
    command
        .arg("run")
        .arg(config)
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log);
    command.spawn().expect("setpriv and nsenter are installed")
}
