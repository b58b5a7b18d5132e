//! What is known of the path to one peer: the largest inner packet that one datagram carries whole.
//!
//! A path is taken for wide until the kernel refuses a run of datagrams. What is learnt then does not hold for ever:
//! routes change, and the kernel itself forgets what ICMP taught it.

use std::net::SocketAddr;
use std::time::Duration;

use super::Control;
use crate::proto::{PeerId, Time};
use crate::sys::udp;
use crate::worker::mailbox::Command;

/// How long one peer's path MTU is not asked for again, however many datagrams are refused.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a narrow path is believed in: PMTU_RAISE_TIMER of RFC 8899 (section 5.1.1), and the time after which Linux
/// forgets what it learnt from ICMP (net.ipv4.route.mtu_expires).
const RAISE_INTERVAL: Duration = Duration::from_secs(600);

/// One peer's path.
#[derive(Debug, Default)]
pub(super) struct PathMtu {
    known: Option<usize>,
    asked: Option<Time>,
}

impl PathMtu {
    /// The largest inner packet in bytes; `None`: any that the interface lets through.
    pub(super) fn known(&self) -> Option<usize> {
        self.known
    }

    /// A datagram was refused: whether to ask the kernel for the path's MTU.
    pub(super) fn may_ask(&self, now: Time) -> bool {
        self.asked.is_none_or(|asked| now - asked >= ASK_INTERVAL)
    }

    /// Whether to ask again, because the path may have become wider.
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.known.is_some() && self.asked.is_none_or(|asked| now - asked >= RAISE_INTERVAL)
    }

    /// The kernel was asked and did not know.
    pub(super) fn not_told(&mut self, now: Time) {
        self.asked = Some(now);
    }

    /// The path carries inner packets of `inner` bytes, and the interface lets through `interface` bytes. True if that is
    /// news.
    pub(super) fn learn(&mut self, now: Time, inner: usize, interface: usize) -> bool {
        self.asked = Some(now);
        // What never reaches its bound needs none: a refusal would bring it back.
        let known = Some(inner).filter(|&inner| inner < interface);
        std::mem::replace(&mut self.known, known) != known
    }

    /// The peer has moved: what its old path carried says nothing about the new one. True if that is news.
    pub(super) fn forget(&mut self) -> bool {
        self.asked = None;
        self.known.take().is_some()
    }
}

impl Control {
    /// Asks the kernel what the path to the peer carries, and bounds the peer's packets to it.
    pub(super) fn ask_path_mtu(&mut self, id: PeerId, now: Time) {
        let endpoint = self.device.peer(id).and_then(|info| info.endpoint);
        let (Some(endpoint), Some(peer)) = (endpoint, self.peers.get_mut(id)) else {
            return;
        };
        let remote = endpoint.remote;
        match udp::path_mtu(remote, self.udp_options) {
            Ok(outer) => {
                if peer
                    .path_mtu
                    .learn(now, inner_mtu(outer, &remote), self.facts.mtu as usize)
                {
                    let inner = peer.path_mtu.known();
                    tracing::info!(peer = %peer.label(), outer, inner, "the path to the peer has another MTU");
                    let _ = self.broadcast(|| Command::PathMtu(id, inner.unwrap_or(usize::MAX)));
                }
            }
            Err(error) => {
                peer.path_mtu.not_told(now);
                tracing::debug!(peer = %peer.label(), %error, "cannot ask for the path MTU");
            }
        }
    }

    /// The peer has moved.
    pub(super) fn forget_path_mtu(&mut self, id: PeerId) {
        if self.peers.get_mut(id).is_some_and(|peer| peer.path_mtu.forget()) {
            let _ = self.broadcast(|| Command::PathMtu(id, usize::MAX));
        }
    }
}

/// The largest inner packet that one unfragmented datagram over a path of `outer` bytes carries.
fn inner_mtu(outer: u32, remote: &SocketAddr) -> usize {
    const UDP_HEADER_LEN: usize = 8;
    let ip_header_len = if remote.is_ipv4() { 20 } else { 40 };
    (outer as usize).saturating_sub(ip_header_len + UDP_HEADER_LEN + crate::wire::message::DATA_OVERHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_nanos(7_000_000_000);

    fn after(seconds: f64) -> Time {
        START + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_flood_of_refusals_asks_once_per_second() {
        let mut path = PathMtu::default();
        let mut asked = Vec::new();
        for tenth in 0..35 {
            let now = after(f64::from(tenth) / 10.0);
            if path.may_ask(now) {
                asked.push(tenth);
                path.learn(now, 1220, 1420);
            }
        }
        assert_eq!(asked, [0, 10, 20, 30]);
    }

    #[test]
    fn a_narrow_path_is_asked_about_again_every_ten_minutes_until_it_is_wide() {
        let mut path = PathMtu::default();
        assert!(!path.is_due(after(1e6)), "a wide path is never asked about");
        assert!(path.learn(START, 1220, 1420));
        assert_eq!(path.known(), Some(1220));
        assert!(!path.is_due(after(599.9)) && path.is_due(after(600.0)));
        path.not_told(after(600.0));
        assert!(!path.is_due(after(1199.0)) && path.is_due(after(1200.0)));
        assert!(!path.learn(after(1200.0), 1220, 1420), "no news");
        assert!(path.learn(after(1800.0), 1440, 1420));
        assert_eq!((path.known(), path.is_due(after(1e6))), (None, false));
        assert!(path.learn(after(1801.0), 1220, 1420), "a refusal brings it back");
    }

    #[test]
    fn a_path_wider_than_before_but_narrower_than_the_interface_stays_a_bound() {
        let mut path = PathMtu::default();
        path.learn(START, 1220, 8940);
        assert!(path.learn(after(600.0), 1440, 8940));
        assert_eq!(path.known(), Some(1440));
        assert!(path.is_due(after(1200.0)));
    }

    #[test]
    fn a_peer_that_moves_is_asked_about_at_once() {
        let mut path = PathMtu::default();
        assert!(!path.forget());
        path.learn(START, 1220, 1420);
        assert!(!path.may_ask(START));
        assert!(path.forget());
        assert!(path.may_ask(START) && path.known().is_none());
    }
}
