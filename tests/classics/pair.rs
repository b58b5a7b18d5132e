//! Two `ringway-wg` that know each other, one in each namespace of a lab.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::device::Device;
use crate::lab::{self, Lab, Namespace, wait_until};

const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");
/// Whatever is waited for comes at once on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// Both suites.
pub(crate) const SUITES: [&str; 2] = ["native", "wireguard"];

/// A lab, where `wg`, `nft` and root are there.
pub(crate) fn lab() -> Option<Lab> {
    for tool in ["wg", "nft"] {
        if Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            println!("skipped: needs {tool}");
            return None;
        }
    }
    Lab::new()
}

/// Both devices, and their inner addresses. They end before the lab does, if they are declared after it.
pub(crate) struct Pair {
    pub(crate) a: Device,
    pub(crate) b: Device,
    /// 10.77.N.1 and 10.77.N.2.
    pub(crate) v4: [IpAddr; 2],
    /// fd77:N::1 and fd77:N::2.
    pub(crate) v6: [IpAddr; 2],
}

/// One end of a pair.
#[derive(Clone, Copy)]
pub(crate) enum End {
    A,
    B,
}

impl Pair {
    /// Starts both in `suite` with 2 workers each, up and with keys. Neither knows where the other is.
    pub(crate) fn new(lab: &Lab, suite: &str) -> Pair {
        Pair::with(lab, &["--suite", suite, "--workers", "2"])
    }

    /// As [`Pair::new`], one of either suite.
    pub(crate) fn of_both_suites(lab: &Lab) -> [Pair; 2] {
        SUITES.map(|suite| Pair::new(lab, suite))
    }

    fn with(lab: &Lab, options: &[&str]) -> Pair {
        static NUMBER: AtomicU8 = AtomicU8::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pair = Pair {
            a: Device::start(lab, &lab.a, options),
            b: Device::start(lab, &lab.b, options),
            v4: [1, 2].map(|host| IpAddr::from([10, 77, number, host])),
            v6: [1, 2].map(|host| IpAddr::from([0xfd77, number.into(), 0, 0, 0, 0, 0, host])),
        };
        let ends = [(&lab.a, &pair.a, &pair.b, 0), (&lab.b, &pair.b, &pair.a, 1)];
        for (namespace, me, other, at) in ends {
            me.set_private_key();
            let allowed = format!("{}/32,{}/128", pair.v4[1 - at], pair.v6[1 - at]);
            me.wg("set", &["peer", &other.keys.public, "allowed-ips", &allowed]);
            pair.bring_up(namespace, me, at);
        }
        pair
    }

    /// Gives an end its inner addresses and takes its link up.
    pub(crate) fn bring_up(&self, namespace: &Namespace, device: &Device, at: usize) {
        let name = &device.name;
        namespace.ip(&["address", "add", &format!("{}/24", self.v4[at]), "dev", name]);
        let v6 = format!("{}/64", self.v6[at]);
        namespace.ip(&["address", "add", &v6, "dev", name, "nodad"]);
        namespace.ip(&["link", "set", name, "up"]);
    }

    /// Tells `end` that the other is at `address`.
    pub(crate) fn point(&self, end: End, address: &str) {
        let (me, other) = self.ends(end);
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.into()
        };
        let endpoint = format!("{host}:{}", other.listen_port());
        me.wg("set", &["peer", &other.keys.public, "endpoint", &endpoint]);
    }

    /// Changes something about the other end at `end`: `wg set NAME peer OTHER arguments`.
    pub(crate) fn set_peer(&self, end: End, arguments: &[&str]) {
        let (me, other) = self.ends(end);
        me.wg("set", &[&["peer", &other.keys.public], arguments].concat());
    }

    /// Waits until b answers a over both families.
    pub(crate) fn wait_until_packets_pass(&self, lab: &Lab) {
        for address in [self.v4[1], self.v6[1]] {
            wait_until("an answer from b", PATIENCE, || lab.a.ping(address, 56));
        }
    }

    /// Where `end` sends packets for the other: address and port.
    pub(crate) fn endpoint(&self, end: End) -> String {
        self.line(end).swap_remove(2)
    }

    /// When the last handshake was, as a tells.
    pub(crate) fn latest_handshake(&self) -> u64 {
        self.line(End::A)[4].parse().expect("seconds")
    }

    /// Bytes received from and sent to the other, as `end` tells.
    pub(crate) fn transfer(&self, end: End) -> [u64; 2] {
        let line = self.line(end);
        [5, 6].map(|at: usize| line[at].parse().expect("bytes"))
    }

    /// How many packets `end` has dropped for `reason`, in all workers.
    pub(crate) fn drops(&self, end: End, reason: &str) -> u64 {
        let (me, _) = self.ends(end);
        let workers = status(me)["workers"].take();
        let workers = workers.as_array().expect("a list");
        workers
            .iter()
            .filter_map(|worker| worker["drops"][reason].as_u64())
            .sum()
    }

    /// `end`'s line of `wg show NAME dump` about the other.
    fn line(&self, end: End) -> Vec<String> {
        let (me, other) = self.ends(end);
        me.peer(&other.keys.public).expect("they are peers")
    }

    fn ends(&self, end: End) -> (&Device, &Device) {
        match end {
            End::A => (&self.a, &self.b),
            End::B => (&self.b, &self.a),
        }
    }
}

/// What `ringway status NAME --json` says.
pub(crate) fn status(device: &Device) -> Value {
    serde_json::from_str(&lab::run(&[RINGWAY, "status", &device.name, "--json"])).expect("JSON")
}

/// Adds nft rules to a namespace.
pub(crate) fn nft(namespace: &Namespace, rules: &str) {
    namespace.run(&["nft", rules]);
}

/// How many packets the rule that has `comment` has counted.
pub(crate) fn counted(namespace: &Namespace, comment: &str) -> u64 {
    let rules = namespace.run(&["nft", "list", "ruleset"]);
    let comment = format!("comment \"{comment}\"");
    let rule = rules
        .lines()
        .find(|line| line.contains(&comment))
        .expect("the rule exists");
    let mut words = rule.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).and_then(|count| count.parse().ok()).expect("a counter")
}
