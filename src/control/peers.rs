//! What the control thread knows of peers beside the protocol: their names and keys, counters and round trips.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
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
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Handshake {
    pub(super) suite: Suite,
    pub(super) remote_lanes: u8,
    pub(super) at: SystemTime,
}

/// What was counted of a peer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    handshake: Option<Handshake>,
    handshakes: u64,
    handshakes_given_up: u64,
    /// Sent and received.
    handshake_bytes: [u64; 2],
    /// Without handshakes.
    exchanged: PeerSnapshot,
}

/// All peers, by number.
#[derive(Default)]
pub(super) struct Peers(BTreeMap<PeerId, Peer>);

/// What a sample found.
pub(super) struct Busy {
    /// Some peer has a session, so there may be more to see: keep sampling.
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
            // The last sample after the end of its last session takes in what happened before that.
            busy.any_session |= device.has_session(id);
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

    /// What the control thread has counted of it.
    pub(super) fn tally(&self) -> Tally {
        Tally {
            handshake: self.handshake,
            handshakes: self.handshakes,
            handshakes_given_up: self.handshakes_given_up,
            handshake_bytes: [self.handshake_bytes_sent, self.handshake_bytes_received],
            exchanged: self.shared.cells.snapshot(),
        }
    }

    /// Goes on from what was counted in an earlier process. No worker has counted anything yet.
    pub(super) fn count_from(&mut self, tally: &Tally) {
        self.handshake = tally.handshake;
        self.handshakes = tally.handshakes;
        self.handshakes_given_up = tally.handshakes_given_up;
        [self.handshake_bytes_sent, self.handshake_bytes_received] = tally.handshake_bytes;
        self.shared.cells.count_from(&tally.exchanged);
        // What an earlier sample has told is no news.
        self.sampled = self.traffic();
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

/// The same the other way round.
pub(super) fn config_suite(suite: SuiteChoice) -> config::Suite {
    match suite {
        SuiteChoice::Auto => config::Suite::Auto,
        SuiteChoice::Native => config::Suite::Native,
        SuiteChoice::WireGuard => config::Suite::WireGuard,
    }
}

/// A key that nobody knows.
pub(crate) fn random_secret() -> StaticSecret {
    let mut bytes = Zeroizing::new([0; 32]);
    super::random(&mut bytes[..]);
    StaticSecret::from(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::SAMPLE_INTERVAL;
    use crate::crypto::Choice;
    use crate::path::drops::Drop;
    use crate::proto::limits::{KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME};
    use crate::proto::{Action, DeviceConfig, Endpoint, PeerConfig, PublicKey as DhKey};

    /// Two ends, and what the control loop of the first would do: wait for a timer or the next sample.
    struct Loop {
        time: Time,
        ends: [Device; 2],
        peers: Peers,
        shared: Arc<NewPeer>,
        next_sample: Option<Time>,
        samples: u32,
    }

    const PEER: PeerId = PeerId(0);

    impl Loop {
        fn new() -> Loop {
            let secrets = [1, 2].map(|byte| StaticSecret::from([byte; 32]));
            let publics = secrets.each_ref().map(|secret| DhKey::from(secret).to_bytes());
            let mut number = 0;
            let ends = secrets.map(|private_key| {
                let config = DeviceConfig {
                    private_key,
                    lanes: 1,
                    crypto: Choice::AesGcm,
                };
                let mut device = Device::new(config, super::super::random);
                number += 1;
                let peer = PeerConfig {
                    public_key: publics[2 - number],
                    preshared_key: None,
                    endpoint: Some(([192, 0, 2, number as u8], 1).into()),
                    persistent_keepalive: None,
                    suite: SuiteChoice::WireGuard,
                };
                assert_eq!(device.add_peer(Time::default(), peer), Ok(PEER));
                device
            });
            let shared = Arc::new(NewPeer::new(None, 1));
            let mut peers = Peers::default();
            peers.insert(PEER, Peer::new(PublicKey(publics[1]), shared.clone()));
            Loop {
                time: Time::from_nanos(1),
                ends,
                peers,
                shared,
                next_sample: None,
                samples: 0,
            }
        }

        fn now(&self) -> Now {
            Now {
                mono: self.time,
                unix: Duration::from_secs(1_700_000_000) + (self.time - Time::default()),
            }
        }

        fn want_session(&mut self) {
            let now = self.now();
            self.ends[0].want_session(PEER, now);
            self.act();
            assert!(self.next_sample.is_some(), "sampling begins with a session");
        }

        /// What `Control::act` does, for what counts here.
        fn act(&mut self) {
            let now = self.now();
            let mut progress = true;
            while progress {
                progress = false;
                for end in 0..2 {
                    while let Some(action) = self.ends[end].poll_action() {
                        progress = true;
                        match action {
                            Action::Transmit { to, datagram, .. } => {
                                let taken =
                                    self.ends[1 - end].handle_datagram(now, Endpoint::new(to.remote), &datagram);
                                assert_eq!(taken.map_err(Drop::from), Ok(Some(PEER)));
                            }
                            // The keepalive confirms.
                            Action::SendKeepalive { .. } if end == 0 => {}
                            Action::HandshakeDone { suite, .. } if end == 0 => {
                                self.peers.handshake_done(PEER, suite, 1, SystemTime::now());
                                self.next_sample.get_or_insert(self.time + SAMPLE_INTERVAL);
                            }
                            _ => {}
                        }
                    }
                }
            }
        }

        /// Goes from one deadline to the next one until there is none; true if that comes within a virtual hour.
        fn falls_asleep(&mut self) -> bool {
            let end = self.time + Duration::from_secs(3600);
            while self.time < end {
                let deadline = self.ends[0].poll_timeout().into_iter().chain(self.next_sample).min();
                let Some(deadline) = deadline else { return true };
                self.time = self.time.max(deadline);
                let now = self.now();
                if self.next_sample.is_some_and(|due| due <= self.time) {
                    self.samples += 1;
                    let busy = self.peers.sample(&mut self.ends[0], now);
                    self.next_sample = busy.any_session.then(|| self.time + SAMPLE_INTERVAL);
                }
                self.ends[0].handle_timeout(now);
                self.act();
            }
            false
        }
    }

    #[test]
    fn an_idle_tunnel_falls_asleep_after_its_session_and_wakes_with_the_next_one() {
        let mut idle = Loop::new();
        for _ in 0..2 {
            idle.want_session();
            let before = idle.samples;
            assert!(idle.falls_asleep(), "something goes on waking it");
            let lifetime = (REJECT_AFTER_TIME.as_millis() / SAMPLE_INTERVAL.as_millis()) as u32;
            let samples = idle.samples - before;
            assert!((lifetime..lifetime + 3).contains(&samples), "{samples} samples");
            idle.time = idle.time + Duration::from_secs(1000);
        }
    }

    #[test]
    fn what_comes_in_the_last_moment_of_a_session_is_taken_in() {
        let mut idle = Loop::new();
        idle.want_session();
        let last = idle.time + REJECT_AFTER_TIME;
        idle.shared.cells.worker(0).last_data_received_ns.set(last.as_nanos());
        idle.shared.cells.worker(0).last_any_received_ns.set(last.as_nanos());
        idle.time = last + Duration::from_millis(1);
        let now = idle.now();
        idle.ends[0].handle_timeout(now);
        idle.act();
        assert!(!idle.ends[0].has_session(PEER));
        let busy = idle.peers.sample(&mut idle.ends[0], now);
        assert!(!busy.any_session);
        let answer = idle.ends[0].poll_timeout().expect("what came wants an answer");
        assert!(answer <= last + KEEPALIVE_TIMEOUT);
    }
}
