//! What has passed through a tunnel.

use std::ops::Sub;

/// Packets and bytes since the tunnel came up, or since the last reset. Inner packets: what the system and its programs see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Packets that the system sent into the tunnel.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Packets that came out of the tunnel.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Packets, of both ways, that died at this end.
    pub dropped: u64,
}

/// What was added since `earlier`.
impl Sub for Statistics {
    type Output = Statistics;

    fn sub(self, earlier: Statistics) -> Statistics {
        Statistics {
            tx_packets: self.tx_packets.saturating_sub(earlier.tx_packets),
            tx_bytes: self.tx_bytes.saturating_sub(earlier.tx_bytes),
            rx_packets: self.rx_packets.saturating_sub(earlier.rx_packets),
            rx_bytes: self.rx_bytes.saturating_sub(earlier.rx_bytes),
            dropped: self.dropped.saturating_sub(earlier.dropped),
        }
    }
}
