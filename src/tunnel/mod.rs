//! A tunnel inside of another program.
//!
//! Three ways in, from the most that ringway does to the least:
//!
//! | | who moves packets | who reads the clock and draws randomness | needs root |
//! |---|---|---|---|
//! | [`Builder::connect`] -> [`Tunnel`] | ringway's workers, on threads of their own | they do | yes |
//! | [`Builder::establish`] -> [`Device`] | the program, one by one; the system is set up for it | - | yes |
//! | [`Core`] | the program: packets and datagrams go in and come out | the program | no |
//!
//! The names are those that VPN programs know from Android's `VpnService.Builder` and Tizen's `vpnsvc`: session, address,
//! route, dns, mtu, protect, establish.
//!
//! A program that embeds a tunnel keeps its own say over the process: no signal handler is installed, no system call given
//! up, nothing written to files, and what is logged goes to the program's `tracing` subscriber, if it has one.
//!
//! ```no_run
//! use ringway::tunnel::{Builder, Peer, PrivateKey};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key: PrivateKey = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=".parse()?;
//! let server = Peer::new("HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=".parse()?)
//!     .endpoint("vpn.example:51820".parse()?)
//!     .allowed_ip("0.0.0.0/0".parse()?);
//! let tunnel = Builder::new("rw0")
//!     .session("Example VPN")
//!     .private_key(key)
//!     .address("10.99.0.2/24".parse()?)
//!     .dns("10.99.0.1".parse()?)
//!     .peer(server)
//!     .connect()?;
//! println!("{} is up: {:?}", tunnel.name(), tunnel.statistics()?);
//! tunnel.disconnect()?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod builder;
mod check;
mod core;
mod device;
mod error;
mod keeper;
mod peer;
mod running;
mod statistics;
mod wait;

pub use builder::Builder;
pub use core::{Core, Output};
pub use device::Device;
pub use error::Error;
pub use ipnet::IpNet;
pub use peer::Peer;
pub use running::Tunnel;
pub use statistics::Statistics;

pub use crate::config::{Host, HostPort, Io, PresharedKey, PrivateKey, PublicKey, Suite};
pub use crate::control::api::{LatencyReport, PeerReport, StageReport, StatusReport, Summary};
pub use crate::proto::{Now, PeerId, Time};
