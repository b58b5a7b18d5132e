//! What the kernel has counted of an interface.

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkAttribute;

use super::LinkError;
use super::netlink::io_error;
use super::setup::Link;

/// An interface's counters (struct rtnl_link_stats64, linux/if_link.h), and its MTU. To a tunnel the system *sends*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets that were sent into the tunnel.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Packets that were to be sent, but which nobody took in time.
    pub tx_dropped: u64,
    /// Packets that came out of the tunnel.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Packets that came out of the tunnel, which the system did not want.
    pub rx_dropped: u64,
    /// The MTU in bytes.
    pub mtu: u32,
}

impl Link {
    /// What the kernel has counted.
    pub async fn counters(&self) -> Result<Counters, LinkError> {
        let query = self.netlink.links().get().match_index(self.index).execute();
        let answer = std::pin::pin!(query).try_next().await;
        let message = answer.map_err(|error| self.failed("read the counters of".into(), io_error(error)))?;
        let mut counters = Counters::default();
        for attribute in message.into_iter().flat_map(|message| message.attributes) {
            match attribute {
                LinkAttribute::Mtu(mtu) => counters.mtu = mtu,
                LinkAttribute::Stats64(stats) => {
                    counters.tx_packets = stats.tx_packets;
                    counters.tx_bytes = stats.tx_bytes;
                    counters.tx_dropped = stats.tx_dropped;
                    counters.rx_packets = stats.rx_packets;
                    counters.rx_bytes = stats.rx_bytes;
                    counters.rx_dropped = stats.rx_dropped;
                }
                _ => {}
            }
        }
        Ok(counters)
    }
}
