//! A validated configuration: what the rest of the program reads. Nothing in here can be wrong any more.

use std::fmt;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::dns::Dns;
use super::gateway::{Gateway, Policy};
use super::host::HostPort;
use super::key::{PresharedKey, PrivateKey, PublicKey};
use super::lockdown::Lockdown;
use super::metrics::MetricsListen;
use super::routing::Routing;
pub use crate::crypto::Choice as Crypto;

/// Where daemons put their control sockets, as `NAME.sock`.
pub const RUN_DIR: &str = "/run/ringway";
/// Where those of root and of the service keep state.
pub const STATE_DIR: &str = "/var/lib/ringway";

/// The control socket of the interface `name` where nothing else is configured.
pub fn default_control_socket(name: &str) -> PathBuf {
    PathBuf::from(format!("{RUN_DIR}/{name}.sock"))
}

/// Where state is kept where nothing else is configured: the directory that systemd gives (`StateDirectory=`), for root
/// [`STATE_DIR`], for others `ringway` in their own state directory (XDG base directory specification).
pub fn default_state_dir() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(given) = variable("STATE_DIRECTORY") {
        return std::env::split_paths(&given).next();
    }
    // Its owner is the process's effective user.
    if std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        return Some(STATE_DIR.into());
    }
    let state = variable("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".local/state")));
    state.map(|state| state.join("ringway"))
}

/// One tunnel interface and its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Our side.
    pub interface: Interface,
    /// What is forwarded for the peers; `None`: nothing that this program sees to.
    pub gateway: Option<Gateway>,
    /// The other sides, in the order of the file. Public keys, names and allowed IPs are unique among them.
    pub peers: Vec<Peer>,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<MetricsListen>,
}

/// Our side of the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The TUN device's name; acceptable to the kernel, and plain enough for files and scripts.
    pub name: String,
    /// Our private key. Only files of wg-quick's may leave it to `wg`: until it comes nobody is spoken to.
    pub private_key: Option<PrivateKey>,
    /// The UDP port to listen on; 0 lets the kernel choose.
    pub listen_port: u16,
    /// Addresses to set, host bits kept. No duplicates.
    pub addresses: Vec<IpNet>,
    /// The TUN device's MTU.
    pub mtu: Mtu,
    /// How many workers to run.
    pub workers: Workers,
    /// How to talk to the kernel.
    pub io: Io,
    /// Which AEAD implementation to use.
    pub crypto: Crypto,
    /// SO_MARK of the outer sockets, for policy routing.
    pub fwmark: Option<NonZeroU32>,
    /// Where the daemon serves its control protocol. A relative path in the file is relative to the file.
    pub control_socket: PathBuf,
    /// Where the latency log goes: an HdrHistogram log with one interval per second.
    pub latency_log: Option<PathBuf>,
    /// Which kernel offloads may be used where the kernel has them.
    pub offloads: OffloadSwitches,
    /// Pin each worker to a core, in turn.
    pub pin: bool,
    /// Give up, once the tunnel runs, what it does not need: system calls and files.
    pub sandbox: bool,
    /// Let each worker's native data leave from a UDP port of its own, so that network cards spread one peer's traffic over
    /// their queues.
    pub lane_ports: bool,
    /// Which routes to make.
    pub routing: Routing,
    /// Which name servers to set.
    pub dns: Dns,
    /// The file of wg-quick's to write back to at the end, with what runs then (SaveConfig).
    pub save: Option<PathBuf>,
    /// Commands to run when the tunnel comes up and goes down.
    pub hooks: Hooks,
    /// Where what must outlive a restart is kept, as `NAME.state`. `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// The kill switch, where it is on; then `fwmark` is set too.
    pub lockdown: Option<Lockdown>,
}

/// Commands for `sh -c`, each list in order. `%i` in them stands for the interface's name, as in wg-quick.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// Before the interface exists.
    pub pre_up: Vec<String>,
    /// Once packets can pass. Where one of these or of those before fails, the tunnel goes down without those below.
    pub post_up: Vec<String>,
    /// Before the link goes down.
    pub pre_down: Vec<String>,
    /// Once the interface is gone.
    pub post_down: Vec<String>,
}

impl Hooks {
    /// The first key that has commands.
    pub fn first(&self) -> Option<&'static str> {
        let Hooks {
            pre_up,
            post_up,
            pre_down,
            post_down,
        } = self;
        let lists = [
            ("pre_up", pre_up),
            ("post_up", post_up),
            ("pre_down", pre_down),
            ("post_down", post_down),
        ];
        lists
            .iter()
            .find(|(_, commands)| !commands.is_empty())
            .map(|(key, _)| *key)
    }
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What people call it.
    pub name: Option<String>,
    /// Who it is.
    pub public_key: PublicKey,
    /// Mixed into the handshake when set.
    pub preshared_key: Option<PresharedKey>,
    /// Where to find it; `None` waits for it to speak first.
    pub endpoint: Option<HostPort>,
    /// Inner addresses that are routed to it, and the only ones it may send from. Host bits are zero.
    pub allowed_ips: Vec<IpNet>,
    /// Send a keepalive when nothing else was sent for this long (1 s to 65535 s).
    pub persistent_keepalive: Option<Duration>,
    /// The protocol to speak.
    pub suite: Suite,
    /// What it may reach through the gateway; the default where there is none.
    pub policy: Policy,
}

/// An interface that `wg` configures: what can be chosen when it is made. Everything else comes over its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireGuard {
    /// The interface's name.
    pub name: String,
    /// The protocol to speak with peers.
    pub suite: Suite,
    /// How many workers to run.
    pub workers: Workers,
    /// How to talk to the kernel.
    pub io: Io,
    /// Which AEAD implementation to use.
    pub crypto: Crypto,
}

/// The TUN device's MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mtu {
    /// Derived from the MTU of the routes to the endpoints.
    #[default]
    Auto,
    /// So many bytes, 576 to 65535.
    Bytes(u16),
}

/// How many workers to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Workers {
    /// One per core that the process may run on.
    #[default]
    Auto,
    /// So many, 1 to 255 (a lane number is a byte, and 0 workers make no tunnel).
    Count(u8),
}

/// Which kernel offloads may be used where the kernel has them; each can be switched off, because kernels have had
/// bugs in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffloadSwitches {
    /// UDP_SEGMENT on sends.
    pub udp_gso: bool,
    /// UDP_GRO on receives.
    pub udp_gro: bool,
    /// TCP super-packets on the TUN (TUN_F_TSO4, TUN_F_TSO6).
    pub tun_tso: bool,
    /// UDP super-packets on the TUN (TUN_F_USO4, TUN_F_USO6).
    pub tun_uso: bool,
}

impl Default for OffloadSwitches {
    fn default() -> OffloadSwitches {
        OffloadSwitches {
            udp_gso: true,
            udp_gro: true,
            tun_tso: true,
            tun_uso: true,
        }
    }
}

macro_rules! words {
    ($(#[doc = $enum_doc:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+ }) => {
        $(#[doc = $enum_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum $name {
            /// Decided when the tunnel comes up.
            #[default]
            Auto,
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $name {
            /// Every value's word in configuration files, the default first.
            pub const WORDS: &'static [&'static str] = &["auto", $($word,)+];

            /// The value's word in configuration files.
            pub const fn word(self) -> &'static str {
                match self { $name::Auto => "auto", $($name::$variant => $word,)+ }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<$name, UnknownWord> {
                match text {
                    "auto" => Ok($name::Auto),
                    $($word => Ok($name::$variant),)+
                    _ => Err(UnknownWord { known: $name::WORDS }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

words! {
    /// How to talk to the kernel.
    Io {
        /// io_uring.
        Uring = "uring",
        /// Plain system calls.
        Syscall = "syscall",
    }
}

words! {
    /// The protocol to speak with a peer.
    Suite {
        /// ringway's own.
        Native = "native",
        /// WireGuard's.
        WireGuard = "wireguard",
    }
}

/// A word that is none of the known ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of: {}", known.join(", "))]
pub struct UnknownWord {
    /// The words that would be right.
    pub known: &'static [&'static str],
}
