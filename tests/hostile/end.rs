//! `ringway run` at one end of a lab, with the peers that a test gives it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ringway::proto::{PublicKey, StaticSecret};
use serde_json::Value;

use crate::lab::{Lab, Namespace, wait_until};

const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");
/// The UDP port of every end.
pub(crate) const PORT: u16 = 51820;

/// How many datagrams died, by reason.
pub(crate) type Drops = BTreeMap<String, u64>;

/// A private key that is the same in every run.
pub(crate) fn private_key(number: u32) -> [u8; 32] {
    let mut key = [0x5a; 32];
    key[8..12].copy_from_slice(&number.to_le_bytes());
    key
}

/// Its public half.
pub(crate) fn public_key(private: [u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(private)).to_bytes()
}

/// A peer of an end.
pub(crate) struct Peer {
    pub(crate) public_key: [u8; 32],
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) allowed_ip: String,
}

/// What an end is made from, beside its peers.
pub(crate) struct Setup {
    /// Tells its files from those of others in the lab.
    pub(crate) name: &'static str,
    pub(crate) private_key: [u8; 32],
    pub(crate) address: &'static str,
    pub(crate) suite: &'static str,
}

/// A daemon; killed on drop.
pub(crate) struct End {
    child: Child,
    control: PathBuf,
}

impl End {
    /// Starts it with two workers in `namespace`, and waits until it listens.
    pub(crate) fn start(lab: &Lab, namespace: &Namespace, setup: &Setup, peers: &[Peer]) -> End {
        let path = |suffix: &str| lab.directory.join(format!("{}.{suffix}", setup.name));
        let control = path("sock");
        let mut config = format!(
            "[interface]\nname = \"rw0\"\nprivate_key = \"{}\"\nlisten_port = {PORT}\nmtu = 1420\naddresses = [\"{}\"]\n\
             workers = 2\ncontrol_socket = \"{}\"\nstate_dir = \"{}\"\n",
            STANDARD.encode(setup.private_key),
            setup.address,
            control.display(),
            path("state").display()
        );
        for peer in peers {
            let public_key = STANDARD.encode(peer.public_key);
            let endpoint = peer.endpoint.map(|endpoint| format!("endpoint = \"{endpoint}\"\n"));
            write!(
                config,
                "[[peer]]\npublic_key = \"{public_key}\"\nallowed_ips = [\"{}\"]\nsuite = \"{}\"\n{}",
                peer.allowed_ip,
                setup.suite,
                endpoint.unwrap_or_default()
            )
            .expect("a string grows");
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path("toml"));
        file.and_then(|mut file| file.write_all(config.as_bytes()))
            .expect("the directory is ours");
        let log = File::create(path("log")).expect("the directory is ours");
        let mut command = namespace.command(RINGWAY);
        command
            .arg("run")
            .arg(path("toml"))
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        let mut child = command.spawn().expect("setpriv and nsenter are installed");
        wait_until("the control socket", Duration::from_secs(20), || {
            assert!(child.try_wait().expect("it is our child").is_none(), "the daemon ended");
            control.exists()
        });
        End { child, control }
    }

    /// What `ringway status --json` says.
    pub(crate) fn status(&self) -> Value {
        let output = Command::new(RINGWAY)
            .arg("status")
            .arg(&self.control)
            .arg("--json")
            .stdin(Stdio::null())
            .output()
            .expect("the program under test exists");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// What all its threads have dropped since it started.
    pub(crate) fn drops(&self) -> Drops {
        let status = self.status();
        let workers = status["workers"].as_array().expect("a list");
        let mut sums = Drops::new();
        for map in workers
            .iter()
            .map(|worker| &worker["drops"])
            .chain([&status["control_drops"]])
        {
            for (reason, count) in map.as_object().expect("drops by reason") {
                *sums.entry(reason.clone()).or_default() += count.as_u64().expect("a count");
            }
        }
        sums
    }

    /// Resident memory in bytes (VmRSS).
    pub(crate) fn rss_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.expect("every process has it").trim().trim_end_matches(" kB");
        kilobytes.parse::<u64>().expect("a number") * 1024
    }

    /// Panics if the daemon has ended.
    pub(crate) fn assert_runs(&mut self) {
        let ended = self.child.try_wait().expect("it is our child");
        assert!(ended.is_none(), "the daemon ended: {ended:?}");
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // It may have ended by itself; then both are errors of no interest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was dropped between two looks.
pub(crate) fn news(before: &Drops, after: &Drops) -> Drops {
    after
        .iter()
        .map(|(reason, count)| (reason.clone(), count - before.get(reason).unwrap_or(&0)))
        .filter(|(_, count)| *count > 0)
        .collect()
}
