//! A configuration as some file spells it: every value with the place where it stands, nothing checked but its type.
//!
//! One parser per file format produces this; one validation ([`super::validate`]) reads it.

use zeroize::Zeroizing;

use super::gateway::{RawGateway, RawPolicy};
use super::lockdown::RawLockdown;
use super::metrics::RawMetrics;
use super::problem::Problem;

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Line in the file, from 1.
    pub line: u32,
    /// Path of the key as the file's format has it.
    pub key: String,
}

impl Place {
    /// The problem `text` with the value that stands here.
    pub fn problem(&self, value: Option<String>, text: impl Into<String>) -> Problem {
        Problem {
            line: self.line,
            key: self.key.clone(),
            value,
            text: text.into(),
        }
    }
}

/// A value and where it stands.
#[derive(Clone)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// A text that must not be shown, and is wiped when dropped.
pub type Secret = Zeroizing<String>;

/// What can be a number or a word such as "auto".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NumberOrWord {
    /// A number.
    Number(i64),
    /// A word.
    Word(String),
}

/// What can be a word such as "auto" or a list of texts.
pub enum WordOrTexts {
    /// A word.
    Word(At<String>),
    /// A list.
    Texts(Vec<At<String>>),
}

/// What can be a flag or a list of groups of texts.
pub enum FlagOrGroups {
    /// A flag.
    Flag(At<bool>),
    /// Groups.
    Groups(Vec<Vec<At<String>>>),
}

/// A whole file.
pub struct RawConfig {
    /// Our side.
    pub interface: RawInterface,
    /// `[gateway]`, where it stands.
    pub gateway: Option<RawGateway>,
    /// The other sides.
    pub peers: Vec<RawPeer>,
    /// `[metrics]`.
    pub metrics: Option<RawMetrics>,
}

/// Our side.
#[derive(Default)]
#[expect(missing_docs, reason = "the fields are those of the validated interface")]
pub struct RawInterface {
    /// Of the section: where a missing key would stand.
    pub place: Place,
    /// `None`: the name of the file.
    pub name: Option<At<String>>,
    pub private_key: Option<At<Secret>>,
    pub private_key_file: Option<At<String>>,
    /// Without a key the tunnel waits for one, as files of wg-quick's have it.
    pub key_may_come_later: bool,
    pub listen_port: Option<At<i64>>,
    pub addresses: Vec<At<String>>,
    pub mtu: Option<At<NumberOrWord>>,
    pub workers: Option<At<NumberOrWord>>,
    pub io: Option<At<String>>,
    pub crypto: Option<At<String>>,
    pub fwmark: Option<At<i64>>,
    pub control_socket: Option<At<String>>,
    pub latency_log: Option<At<String>>,
    pub udp_gso: Option<At<bool>>,
    pub udp_gro: Option<At<bool>>,
    pub tun_tso: Option<At<bool>>,
    pub tun_uso: Option<At<bool>>,
    pub pin: Option<At<bool>>,
    pub sandbox: Option<At<bool>>,
    pub lane_ports: Option<At<bool>>,
    pub routing: RawRouting,
    pub dns: RawDns,
    /// Only wg-quick's files have it.
    pub save_config: bool,
    pub pre_up: Vec<At<String>>,
    pub post_up: Vec<At<String>>,
    pub pre_down: Vec<At<String>>,
    pub post_down: Vec<At<String>>,
    pub state_dir: Option<At<String>>,
    pub lockdown: RawLockdown,
}

/// Which way packets go.
#[derive(Default)]
#[expect(missing_docs, reason = "the fields are those of the validated section")]
pub struct RawRouting {
    pub table: Option<At<NumberOrWord>>,
    pub metric: Option<At<i64>>,
    pub exclude: Vec<At<String>>,
    pub bind_interface: Option<At<String>>,
}

/// Name servers.
#[derive(Default)]
#[expect(missing_docs, reason = "the fields are those of the validated section")]
pub struct RawDns {
    pub servers: Vec<At<String>>,
    pub search: Vec<At<String>>,
    pub domains: Vec<At<String>>,
}

/// One peer.
#[derive(Default)]
#[expect(missing_docs, reason = "the fields are those of the validated peer")]
pub struct RawPeer {
    /// Of the section: where a missing key would stand.
    pub place: Place,
    pub name: Option<At<String>>,
    pub public_key: Option<At<String>>,
    pub preshared_key: Option<At<Secret>>,
    pub preshared_key_file: Option<At<String>>,
    pub endpoint: Option<At<String>>,
    pub allowed_ips: Vec<At<String>>,
    pub persistent_keepalive: Option<At<i64>>,
    pub suite: Option<At<String>>,
    pub policy: RawPolicy,
}
