//! A tunnel's core, without any I/O: packets, datagrams, the time and randomness go in; packets, datagrams and news come out.
//!
//! What a worker and the control thread do together is done here in one call each: the data path
//! ([`Forwarder`]) seals and opens, the protocol ([`Device`]) shakes hands and keeps time, and either is told what the other
//! has to say until nothing is left.

#[cfg(test)]
mod day;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::check;
use super::error::Error;
use super::peer::Peer;
use super::statistics::Statistics;
use crate::config::{PrivateKey, PublicKey, Suite as Choice};
use crate::crypto;
use crate::path::coalesce::{Coalescer, Group, Offloads, Part};
use crate::path::drops::Drop;
use crate::path::forward::Forwarder;
use crate::path::gso::{Batches, SEND_LEN_MAX, Slots};
use crate::path::peers::NewPeer;
use crate::path::report::{Handshake, Received, Report};
use crate::path::route::Routes;
use crate::path::segment::{Checksums, Segments};
use crate::proto::{
    Action, AddPeerError, Device, DeviceConfig, Endpoint, Now, PeerConfig, PeerId, PeerInfo, Suite, SuiteChoice, Time,
    Traffic,
};
use crate::stats::counters::{PeerSnapshot, WorkerCounters};
use crate::wire::vnet::VNET_LEN;
use crate::worker::HANDSHAKE_TOS;

/// How soon the protocol's timers learn of traffic; their shortest period is 5 s.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// To the protocol a time of 0 is "never", so the caller's clock, which may begin there, begins later.
const EPOCH: Duration = Duration::from_secs(3600);

/// Something for the program to do or to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this as one UDP datagram.
    Datagram {
        /// To whom.
        to: SocketAddr,
        /// The traffic class for its outer header, where the program can set it: congestion marks are carried through the
        /// tunnel in it.
        tos: u8,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// This IP packet came out of the tunnel: hand it to whoever reads there.
    Packet(Vec<u8>),
    /// A handshake was completed; packets can pass.
    Connected {
        /// With whom.
        peer: PeerId,
        /// In which suite.
        suite: Suite,
    },
    /// A peer answered none of 90 s of handshakes, or nobody knows where it is; packets that waited for it are gone. The
    /// next packet begins again.
    Unreachable {
        /// Which.
        peer: PeerId,
    },
}

/// One end of a tunnel that does no I/O.
///
/// After each call that takes `now`, drain [`Core::poll_output`]; by [`Core::poll_timeout`] call [`Core::handle_timeout`].
///
/// ```
/// use std::time::Duration;
/// use ringway::tunnel::{Core, Now, Output, Peer, PrivateKey, Time};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let random = |bytes: &mut [u8]| getrandom::fill(bytes).expect("the system has randomness");
/// let now = Now { mono: Time::from_nanos(0), unix: Duration::from_secs(1_700_000_000) };
/// let server = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=".parse()?;
/// let key = PrivateKey::generate(random);
/// let mut core = Core::new(&key, 1420, random);
/// let peer = Peer::new(server).endpoint("192.0.2.1:51820".parse()?).allowed_ip("0.0.0.0/0".parse()?);
/// core.add_peer(now, &peer)?;
///
/// let mut packet = [0; 20];
/// packet[0] = 0x45; // IPv4, a header of 20 bytes
/// packet[3] = 20;
/// packet[16..20].copy_from_slice(&[10, 99, 0, 1]);
/// core.handle_packet(now, &packet);
/// // The packet waits for keys, which a handshake asks for.
/// let Some(Output::Datagram { to, bytes, .. }) = core.poll_output() else { panic!("an initiation") };
/// assert_eq!((to, bytes[0] & 0x7f), ("192.0.2.1:51820".parse()?, 1));
/// # Ok(())
/// # }
/// ```
pub struct Core {
    device: Device,
    forwarder: Forwarder<Vec<u8>>,
    slots: Spares,
    counters: Arc<WorkerCounters>,
    routes: Routes<PeerId>,
    peers: BTreeMap<PeerId, Known>,
    next_sample: Option<Time>,
    outputs: VecDeque<Output>,
    baseline: Statistics,
    /// Memory for frames, which are packets behind a virtio_net_hdr.
    frame: Vec<u8>,
}

/// A peer beside what the protocol and the data path know of it.
struct Known {
    shared: Arc<NewPeer>,
    sampled: PeerSnapshot,
}

impl Core {
    /// An end without peers, that seals for itself alone. `mtu`: bytes of the largest packet that it will be given, up to which
    /// WireGuard's padding may go. `random` fills slices with unpredictable bytes.
    pub fn new(private_key: &PrivateKey, mtu: u16, random: impl FnMut(&mut [u8]) + Send + 'static) -> Core {
        let config = DeviceConfig {
            private_key: private_key.to_secret(),
            lanes: 1,
            crypto: crypto::Choice::Auto,
        };
        let counters = Arc::new(WorkerCounters::default());
        // A program's packets are whole ones: nothing to merge, and a datagram for each.
        let coalescer = Coalescer::new(Offloads { tcp: false, udp: false });
        Core {
            device: Device::new(config, random),
            forwarder: Forwarder::new(0, 1, coalescer, Batches::new(false), mtu.into(), counters.clone()),
            slots: Spares::default(),
            counters,
            routes: Routes::new(),
            peers: BTreeMap::new(),
            next_sample: None,
            outputs: VecDeque::new(),
            baseline: Statistics::default(),
            frame: Vec::new(),
        }
    }

    /// The public half of the private key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.device.public_key())
    }

    /// Adds a peer. Networks that were another peer's become this one's.
    ///
    /// # Errors
    /// [`Error::Argument`] when its key is there already or our own, or its endpoint is a host name, whose address only I/O
    /// would tell.
    pub fn add_peer(&mut self, now: Now, peer: &Peer) -> Result<PeerId, Error> {
        check::peer(peer)?;
        let config = &peer.0;
        let endpoint = match &config.endpoint {
            None => None,
            Some(endpoint) => Some(endpoint.address().ok_or_else(|| {
                Error::argument(
                    "endpoint",
                    endpoint,
                    "a core looks no names up; name the IP address and the port",
                )
            })?),
        };
        let now = late(now);
        let added = self.device.add_peer(
            now.mono,
            PeerConfig {
                public_key: config.public_key.0,
                preshared_key: config.preshared_key.as_ref().map(|key| key.to_bytes()),
                endpoint,
                persistent_keepalive: config.persistent_keepalive,
                suite: match config.suite {
                    Choice::Auto => SuiteChoice::Auto,
                    Choice::Native => SuiteChoice::Native,
                    Choice::WireGuard => SuiteChoice::WireGuard,
                },
            },
        );
        let id =
            added.map_err(|error: AddPeerError| Error::argument("add_peer", config.public_key, error.to_string()))?;
        let shared = Arc::new(NewPeer::new(endpoint.map(Endpoint::new), 1));
        self.forwarder.add_peer(id, shared.clone());
        let sampled = PeerSnapshot::default();
        self.peers.insert(id, Known { shared, sampled });
        for network in &config.allowed_ips {
            self.routes.insert(*network, id);
        }
        self.forwarder.set_routes(Arc::new(self.routes.table()));
        self.settle(now);
        Ok(id)
    }

    /// Forgets a peer and its keys; false if there is none.
    pub fn remove_peer(&mut self, now: Now, peer: PeerId) -> bool {
        let known = self.device.remove_peer(peer);
        self.settle(late(now));
        if known {
            self.forwarder.remove_peer(peer);
            self.peers.remove(&peer);
            self.routes.remove_all(|owner| *owner == peer);
            self.forwarder.set_routes(Arc::new(self.routes.table()));
        }
        known
    }

    /// What is known about a peer.
    pub fn peer(&self, peer: PeerId) -> Option<PeerInfo> {
        self.device.peer(peer)
    }

    /// What is known about all peers, in the order of their numbers.
    pub fn peers(&self) -> impl Iterator<Item = PeerInfo> + '_ {
        self.device.peers()
    }

    /// Takes in one IP packet that is to go through the tunnel: to the peer that has its destination, at once or as soon as there
    /// are keys. What can't go is counted in [`Core::drops`].
    pub fn handle_packet(&mut self, now: Now, packet: &[u8]) {
        let now = late(now);
        self.frame.clear();
        self.frame.resize(VNET_LEN, 0);
        self.frame.extend_from_slice(packet);
        self.forwarder.outbound(now.mono, &self.frame, &mut self.slots);
        self.traffic_passes(now);
        self.settle(now);
    }

    /// Takes in one datagram that came from `from`, and deciphers it in place. `tos`: the traffic class of its outer header, or 0
    /// where the program can't tell. What is no message of a peer's is counted in [`Core::drops`].
    pub fn handle_datagram(&mut self, now: Now, from: SocketAddr, tos: u8, datagram: &mut [u8]) {
        let now = late(now);
        if datagram.is_empty() {
            return self.counters.dropped(Drop::BadMessage, 1);
        }
        let received = Received {
            from: Endpoint::new(from),
            segment: datagram.len(),
            tos,
            received_unix_ns: 0,
        };
        self.forwarder
            .inbound(now.mono, &received, 0, datagram, &mut self.slots);
        self.deliver(datagram);
        self.traffic_passes(now);
        self.settle(now);
    }

    /// Begins a handshake with a peer, if there is no session or it grows old: for who does not want to wait for the first
    /// packet.
    pub fn connect(&mut self, now: Now, peer: PeerId) {
        let now = late(now);
        self.device.want_session(peer, now);
        self.settle(now);
    }

    /// Does what has come due.
    pub fn handle_timeout(&mut self, now: Now) {
        let now = late(now);
        if self.next_sample.is_some_and(|due| due <= now.mono) {
            self.next_sample = None;
            self.sample();
        }
        self.device.handle_timeout(now);
        self.settle(now);
    }

    /// By when [`Core::handle_timeout`] wants to be called, on the clock of [`Now::mono`]. `None`: nothing will come due until
    /// something is handed in.
    pub fn poll_timeout(&self) -> Option<Time> {
        let due = self.device.poll_timeout().into_iter().chain(self.next_sample).min()?;
        Some(Time::default() + (due - (Time::default() + EPOCH)))
    }

    /// The next thing to do or to know, in the order in which they happened.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What has passed since the beginning, or since [`Core::reset_statistics`].
    pub fn statistics(&self) -> Statistics {
        self.total() - self.baseline
    }

    /// As [`Core::statistics`], which begin anew with this.
    pub fn reset_statistics(&mut self) -> Statistics {
        let total = self.total();
        total - std::mem::replace(&mut self.baseline, total)
    }

    /// How many packets and datagrams have died, by reason; reasons that never happened are left out.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        self.counters.snapshot().drops
    }

    fn total(&self) -> Statistics {
        let counters = self.counters.snapshot();
        Statistics {
            tx_packets: counters.packets_out,
            tx_bytes: counters.bytes_out,
            rx_packets: counters.packets_in,
            rx_bytes: counters.bytes_in,
            dropped: counters.drops.values().sum(),
        }
    }

    /// The protocol's timers hear of traffic a little later, of all of it at once.
    fn traffic_passes(&mut self, now: Now) {
        self.next_sample.get_or_insert(now.mono + SAMPLE_INTERVAL);
    }

    /// Tells the protocol's timers what has passed since the last sample.
    fn sample(&mut self) {
        for (id, known) in &mut self.peers {
            let seen = known.shared.cells.snapshot();
            let before = std::mem::replace(&mut known.sampled, seen);
            let news =
                |time: fn(&PeerSnapshot) -> u64| (time(&seen) != time(&before)).then(|| Time::from_nanos(time(&seen)));
            let traffic = Traffic {
                data_sent: news(|cells| cells.last_data_sent_ns),
                data_received: news(|cells| cells.last_data_received_ns),
                any_sent: news(|cells| cells.last_any_sent_ns),
                any_received: news(|cells| cells.last_any_received_ns),
            };
            if traffic != Traffic::default() {
                self.device.traffic(*id, traffic);
            }
        }
    }

    /// Lets the protocol and the data path tell each other what they have to say until nothing is left, and collects what
    /// comes of it.
    fn settle(&mut self, now: Now) {
        loop {
            let reports = std::mem::take(&mut self.forwarder.reports);
            let mut quiet = reports.is_empty();
            for report in reports {
                self.hear(now, report);
            }
            while let Some(action) = self.device.poll_action() {
                quiet = false;
                self.act(now, action);
            }
            if quiet {
                break;
            }
        }
        for batch in self.forwarder.batches.drain() {
            self.outputs.push_back(Output::Datagram {
                to: batch.to.remote,
                tos: batch.outer.tos,
                bytes: batch.slot[..batch.len].to_vec(),
            });
            self.slots.0.push(batch.slot);
        }
        // What is left are packets of our own making, such as ICMP errors.
        self.deliver(&[]);
    }

    fn hear(&mut self, now: Now, report: Report) {
        match report {
            Report::Handshake(Handshake { from, datagram }) => {
                if let Err(rejected) = self.device.handle_datagram(now, from, &datagram) {
                    self.counters.dropped(Drop::from(rejected), 1);
                }
            }
            Report::WantSession(peer) => self.device.want_session(peer, now),
            Report::Confirmed(peer, session) => self.device.confirmed(peer, session, now),
            Report::Roamed(peer, endpoint) => self.device.roamed(peer, endpoint),
            // The path's MTU is the program's to know; no echo is asked for here; a peer that goes down needs no answer.
            Report::PathTooSmall(_) | Report::Rtt(..) | Report::Goodbye(_) => {}
        }
    }

    fn act(&mut self, now: Now, action: Action) {
        let slots = &mut self.slots;
        match action {
            Action::Transmit { to, datagram, .. } => self.outputs.push_back(Output::Datagram {
                to: to.remote,
                tos: HANDSHAKE_TOS,
                bytes: datagram,
            }),
            Action::Install {
                peer,
                seals,
                opens,
                sending,
                ..
            } => {
                let seal = seals.into_iter().next();
                self.forwarder.open_with(peer, opens);
                self.forwarder.seal_with(now.mono, peer, seal, sending, slots);
                self.traffic_passes(now);
            }
            Action::Promote { peer, session } => self.forwarder.promote(now.mono, peer, session, slots),
            Action::Retire { peer, session } => self.forwarder.retire(peer, session),
            Action::SendKeepalive { peer } => {
                self.forwarder.send_keepalive(now.mono, peer, slots);
                self.traffic_passes(now);
            }
            Action::Endpoint { peer, endpoint } => self.forwarder.set_endpoint(peer, endpoint),
            // Only an address that somebody named is tried, again and again.
            Action::Unanswered { .. } => {}
            Action::HandshakeGivenUp { peer } => {
                self.forwarder.give_up(peer);
                self.outputs.push_back(Output::Unreachable { peer });
            }
            Action::HandshakeDone { peer, suite, .. } => self.outputs.push_back(Output::Connected { peer, suite }),
        }
    }

    /// Hands packets out that were opened in `datagram` or are memory of their own, with whole checksums.
    fn deliver(&mut self, datagram: &[u8]) {
        self.forwarder.finish_pass();
        for group in std::mem::take(&mut self.forwarder.groups) {
            self.frame.clear();
            self.frame.extend_from_slice(group.head());
            for part in group.parts() {
                self.frame.extend_from_slice(part_of(part, &group, datagram));
            }
            // A group is a packet that was parsed before, or one that we made.
            if let Ok(mut segments) = Segments::parse(&self.frame, Checksums::Complete) {
                while let Some(len) = segments.next_len() {
                    let mut packet = vec![0; len];
                    segments.write_next(&mut packet);
                    self.outputs.push_back(Output::Packet(packet));
                }
            }
            self.forwarder.recycle(group);
        }
    }
}

fn part_of<'a>(part: &Part, group: &'a Group, datagram: &'a [u8]) -> &'a [u8] {
    let memory = if part.buffer == Part::OWN { &group.own } else { datagram };
    let start = part.start as usize;
    &memory[start..start + part.len as usize]
}

fn late(now: Now) -> Now {
    Now {
        mono: now.mono + EPOCH,
        ..now
    }
}

/// Send slots of plain memory, kept for the next datagram.
#[derive(Default)]
struct Spares(Vec<Vec<u8>>);

impl Slots for Spares {
    type Slot = Vec<u8>;

    fn acquire(&mut self) -> Option<Vec<u8>> {
        Some(self.0.pop().unwrap_or_else(|| vec![0; SEND_LEN_MAX]))
    }
}
