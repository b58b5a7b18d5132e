//! What the control thread knows of peers beside the protocol: their names and keys, counters and round trips.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::path_mtu::PathMtu;
use super::routes::Source;
use crate::config::{self, PublicKey};
use crate::path::peers::NewPeer;
use crate::proto::{Device, Now, PeerId, Suite, SuiteChoice, Time, Traffic};
use crate::stats::buckets::Buckets;
use crate::stats::counters::PeerSnapshot;
use crate::stats::latency::{Stage, StageHistogram};

/// How often the round trip to a busy native peer is measured.
const ECHO_INTERVAL: Duration = Duration::from_secs(1);

/// One peer.
pub(super) struct Peer {
    pub(super) name: Option<String>,
    pub(super) public_key: PublicKey,
    /// What workers know of it too, its counters among it.
    shared: Arc<NewPeer>,
    pub(super) handshake: Option<Handshake>,
    /// Allocated with the first echo that comes back.
    pub(super) rtt: Option<Box<StageHistogram>>,
    /// The same for metrics, which nobody resets.
    pub(super) rtt_buckets: Option<Box<Buckets>>,
    pub(super) path_mtu: PathMtu,
    /// Our address that it uses.
    pub(super) source: Source,
    pub(super) handshakes: u64,
    pub(super) handshakes_given_up: u64,
    handshake_bytes_sent: u64,
    handshake_bytes_received: u64,
    sampled: PeerSnapshot,
    echoed: Time,
}

/// The last handshake that was completed.
pub(super) struct Handshake {
    pub(super) suite: Suite,
    pub(super) remote_lanes: u8,
    pub(super) at: SystemTime,
}

/// All peers, by number.
#[derive(Default)]
pub(super) struct Peers(BTreeMap<PeerId, Peer>);

/// What a sample found.
pub(super) struct Busy {
    /// Some peer has had a handshake: keep sampling.
    pub(super) any_session: bool,
    /// Native peers that had traffic and whose round trip is due.
    pub(super) echo: Vec<PeerId>,
    /// Peers whose path was narrow so long ago that it may be wider.
    pub(super) path_mtu: Vec<PeerId>,
}

impl Peers {
    pub(super) fn insert(&mut self, id: PeerId, peer: Peer) {
        self.0.insert(id, peer);
    }

    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.0.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: PeerId) {
        self.0.remove(&id);
    }

    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.0.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        self.0.iter().map(|(id, peer)| (*id, peer))
    }

    pub(super) fn ids(&self) -> Vec<PeerId> {
        self.0.keys().copied().collect()
    }

    /// What people call the peer: its name, else its public key.
    pub(super) fn name(&self, id: PeerId) -> String {
        self.0.get(&id).map_or_else(|| format!("#{}", id.0), Peer::label)
    }

    pub(super) fn handshake_done(&mut self, id: PeerId, suite: Suite, remote_lanes: u8, at: SystemTime) {
        if let Some(peer) = self.0.get_mut(&id) {
            peer.handshakes += 1;
            peer.handshake = Some(Handshake {
                suite,
                remote_lanes,
                at,
            });
        }
    }

    pub(super) fn handshake_given_up(&mut self, id: PeerId) {
        if let Some(peer) = self.0.get_mut(&id) {
            peer.handshakes_given_up += 1;
        }
    }

    /// The peer that people call so: by name or public key.
    pub(super) fn find(&self, name: &str) -> Option<PeerId> {
        let is_called = |peer: &Peer| peer.name.as_deref() == Some(name) || peer.public_key.to_string() == name;
        self.0.iter().find(|(_, peer)| is_called(peer)).map(|(id, _)| *id)
    }

    /// Counts a handshake message that was sent.
    pub(super) fn sent(&mut self, id: Option<PeerId>, bytes: usize) {
        if let Some(peer) = id.and_then(|id| self.0.get_mut(&id)) {
            peer.handshake_bytes_sent += bytes as u64;
        }
    }

    /// Counts a handshake message that came, and was authentic.
    pub(super) fn received(&mut self, id: PeerId, bytes: usize) {
        if let Some(peer) = self.0.get_mut(&id) {
            peer.handshake_bytes_received += bytes as u64;
        }
    }

    pub(super) fn record_rtt(&mut self, id: PeerId, rtt: Duration) {
        if let Some(peer) = self.0.get_mut(&id) {
            let histogram = peer
                .rtt
                .get_or_insert_with(|| Box::new(StageHistogram::new(Stage::Rtt)));
            histogram.record(rtt.as_nanos() as u64, 1);
            let buckets = peer
                .rtt_buckets
                .get_or_insert_with(|| Box::new(Buckets::new(Stage::Rtt)));
            buckets.record(rtt.as_nanos() as u64, 1);
        }
    }

    pub(super) fn clear_rtt(&mut self) {
        for rtt in self.0.values_mut().filter_map(|peer| peer.rtt.as_mut()) {
            rtt.clear();
        }
    }

    /// Tells the protocol's timers what the workers have seen since the last sample.
    pub(super) fn sample(&mut self, device: &mut Device, now: Now) -> Busy {
        let mut busy = Busy {
            any_session: false,
            echo: Vec::new(),
            path_mtu: Vec::new(),
        };
        for (&id, peer) in &mut self.0 {
            let Some(handshake) = &peer.handshake else { continue };
            busy.any_session = true;
            let (before, seen) = (peer.sampled, peer.traffic());
            peer.sampled = seen;
            let news =
                |time: fn(&PeerSnapshot) -> u64| (time(&seen) != time(&before)).then(|| Time::from_nanos(time(&seen)));
            let traffic = Traffic {
                data_sent: news(|cells| cells.last_data_sent_ns),
                data_received: news(|cells| cells.last_data_received_ns),
                any_sent: news(|cells| cells.last_any_sent_ns),
                any_received: news(|cells| cells.last_any_received_ns),
            };
            let data_sent = traffic.data_sent.is_some();
            device.traffic(id, traffic);
            if data_sent && handshake.suite == Suite::Native && now.mono - peer.echoed >= ECHO_INTERVAL {
                peer.echoed = now.mono;
                busy.echo.push(id);
            }
            if peer.path_mtu.is_due(now.mono) {
                busy.path_mtu.push(id);
            }
        }
        busy
    }
}

impl Peer {
    /// A peer that was never heard of.
    pub(super) fn new(public_key: PublicKey, shared: Arc<NewPeer>) -> Peer {
        Peer {
            name: None,
            public_key,
            shared,
            handshake: None,
            rtt: None,
            rtt_buckets: None,
            path_mtu: PathMtu::default(),
            source: Source::default(),
            handshakes: 0,
            handshakes_given_up: 0,
            handshake_bytes_sent: 0,
            handshake_bytes_received: 0,
            sampled: PeerSnapshot::default(),
            echoed: Time::default(),
        }
    }

    /// What was exchanged with it. The bytes are those that wireguard-go counts: UDP payloads of handshakes, data and
    /// keepalives, without cookie replies, and received ones once they proved authentic.
    pub(super) fn traffic(&self) -> PeerSnapshot {
        let mut traffic = self.shared.cells.snapshot();
        traffic.tx_bytes += self.handshake_bytes_sent;
        traffic.rx_bytes += self.handshake_bytes_received;
        traffic
    }

    /// What people call the peer.
    pub(super) fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.public_key.to_string())
    }
}

/// The suite as the protocol calls it.
pub(super) fn suite_choice(suite: config::Suite) -> SuiteChoice {
    match suite {
        config::Suite::Auto => SuiteChoice::Auto,
        config::Suite::Native => SuiteChoice::Native,
        config::Suite::WireGuard => SuiteChoice::WireGuard,
    }
}

/// A key that nobody knows.
pub(crate) fn random_secret() -> StaticSecret {
    let mut bytes = Zeroizing::new([0; 32]);
    super::random(&mut bytes[..]);
    StaticSecret::from(*bytes)
}
