//! What many active peers cost a worker: packets of one peer, and of 1,000 that take turns, so that each finds the keys,
//! the replay window and the counters of its peer where the caches left them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ipnet::IpNet;
use ringway::crypto::Choice;
use ringway::path::coalesce::{Coalescer, Offloads};
use ringway::path::forward::Forwarder;
use ringway::path::gso::{Batches, Slots};
use ringway::path::peers::NewPeer;
use ringway::path::report::Received;
use ringway::path::route::Routes;
use ringway::proto::{
    Action, Device, DeviceConfig, Endpoint, Now, PeerConfig, PublicKey, SealHalf, StaticSecret, Suite, SuiteChoice,
    Time,
};
use ringway::stats::counters::WorkerCounters;
use ringway::wire::checksum::Sum;
use ringway::wire::message::{DATA_HEADER_LEN, DATA_OVERHEAD, TAG_LEN};

#[path = "../src/path/sample.rs"]
mod sample;
use sample::{Sample, Written};

const HUB: ([u8; 4], u16) = ([192, 0, 2, 1], 1);
/// Peers take turns for so many receives in one measured round.
const TURNS: usize = 1_000;

/// The inbound path needs none.
struct NoSlots;

impl Slots for NoSlots {
    type Slot = Vec<u8>;
    fn acquire(&mut self) -> Option<Vec<u8>> {
        None
    }
}

/// A worker with its peers' keys, and the peers' keys to it.
struct Hub {
    forwarder: Forwarder<Vec<u8>>,
    counters: Arc<WorkerCounters>,
    seals: Vec<SealHalf>,
    now: Time,
}

fn at(millis: u64) -> Now {
    Now {
        mono: Time::from_nanos((1_000_000 + millis) * 1_000_000),
        unix: Duration::from_millis(1_700_000_000_000 + millis),
    }
}

fn device(key: [u8; 32], mut seed: u64) -> Device {
    let config = DeviceConfig {
        private_key: StaticSecret::from(key),
        lanes: 1,
        crypto: Choice::Auto,
    };
    Device::new(config, move |bytes: &mut [u8]| {
        for byte in bytes {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (seed >> 56) as u8;
        }
    })
}

fn key(number: usize) -> [u8; 32] {
    let mut key = [0x5a; 32];
    key[8..16].copy_from_slice(&number.to_le_bytes());
    key
}

fn public(key: [u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(key)).to_bytes()
}

fn peer(public_key: [u8; 32], endpoint: Option<Endpoint>, suite: SuiteChoice) -> PeerConfig {
    PeerConfig {
        public_key,
        preshared_key: None,
        endpoint: endpoint.map(|endpoint| endpoint.remote),
        persistent_keepalive: None,
        suite,
    }
}

fn hub(peers: usize, suite: SuiteChoice) -> Hub {
    let counters = Arc::new(WorkerCounters::default());
    let mut forwarder = Forwarder::new(
        0,
        1,
        Coalescer::new(Offloads { tcp: true, udp: true }),
        Batches::new(true),
        1420,
        counters.clone(),
    );
    let (hub_key, hub_at) = ([0x11; 32], Endpoint::new(HUB.into()));
    let mut hub = device(hub_key, 1);
    let mut routes = Routes::new();
    let mut seals = Vec::new();
    for number in 0..peers {
        // Slowly enough for nobody to be asked for a cookie.
        let now = at(10 * number as u64);
        let mut spoke = device(key(number), 2 + number as u64);
        let here = spoke
            .add_peer(now.mono, peer(public(hub_key), Some(hub_at), suite))
            .expect("the first peer");
        let id = hub
            .add_peer(now.mono, peer(public(key(number)), None, suite))
            .expect("all keys differ");
        forwarder.add_peer(id, Arc::new(NewPeer::new(None, 1)));
        routes.insert(IpNet::from(IpAddr::from(inner(number))), id);
        spoke.want_session(here, now);
        let (mut to_hub, mut to_spoke) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            while let Some(action) = spoke.poll_action() {
                match action {
                    Action::Transmit { datagram, .. } => to_hub.push(datagram),
                    Action::Install { seals: made, .. } => seals.extend(made),
                    _ => {}
                }
            }
            for datagram in to_hub.drain(..) {
                hub.handle_datagram(now, from(number).from, &datagram)
                    .expect("a genuine message");
            }
            while let Some(action) = hub.poll_action() {
                match action {
                    Action::Transmit { datagram, .. } => to_spoke.push(datagram),
                    Action::Install { opens, seals, .. } => {
                        forwarder.open_with(id, opens);
                        forwarder.seal_with(now.mono, id, seals.into_iter().next(), false, &mut NoSlots);
                    }
                    _ => {}
                }
            }
            for datagram in to_spoke.drain(..) {
                spoke
                    .handle_datagram(now, hub_at, &datagram)
                    .expect("a genuine message");
            }
        }
        while let Some(action) = spoke.poll_action() {
            if let Action::Install { seals: made, .. } = action {
                seals.extend(made);
            }
        }
    }
    assert_eq!(seals.len(), peers);
    forwarder.set_routes(Arc::new(routes.table()));
    Hub {
        forwarder,
        counters,
        seals,
        now: at(10 * peers as u64).mono,
    }
}

fn from(number: usize) -> Received {
    Received {
        from: Endpoint::new(([198, 18, (number >> 8) as u8, number as u8], 51820).into()),
        segment: 0,
        tos: 0,
        received_unix_ns: 0,
    }
}

/// The address that packets of a peer come from.
fn inner(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0ac9_0000 + number as u32)
}

/// The segment of that place in a stream of the peer's.
fn packet(number: usize, place: usize, payload: usize) -> Vec<u8> {
    let mut packet = Sample::tcp(false, (place * payload) as u32, vec![7; payload]).bytes(Written::Complete);
    packet[12..16].copy_from_slice(&inner(number).octets());
    packet[10..12].fill(0);
    let checksum = Sum::of(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet[36..38].fill(0);
    let pseudo = Sum::pseudo(&packet[12..20], 6).word(packet.len() as u16 - 20);
    let checksum = pseudo.plus(Sum::of(&packet[20..])).checksum();
    packet[36..38].copy_from_slice(&checksum.to_be_bytes());
    packet
}

impl Hub {
    /// `TURNS` receives of `count` datagrams with `payload` bytes each, of the peers in turn; the time that opening takes.
    fn round(&mut self, count: usize, payload: usize) -> Duration {
        let len = packet(0, 0, payload).len() + DATA_OVERHEAD;
        let peers = self.seals.len();
        let mut receives: Vec<(Received, Vec<u8>)> = (0..TURNS)
            .map(|turn| {
                let seal = &mut self.seals[turn % peers];
                let mut bytes = vec![0; count * len];
                for (index, datagram) in bytes.chunks_exact_mut(len).enumerate() {
                    datagram[DATA_HEADER_LEN..len - TAG_LEN].copy_from_slice(&packet(turn % peers, index, payload));
                    seal.seal(self.now, 0, datagram).expect("a young session");
                }
                (
                    Received {
                        segment: len,
                        ..from(turn % peers)
                    },
                    bytes,
                )
            })
            .collect();
        let opened = self.counters.packets_in.get();
        let start = Instant::now();
        for (received, bytes) in &mut receives {
            self.forwarder.inbound(self.now, received, 0, bytes, &mut NoSlots);
            self.forwarder.finish_pass();
            let written: Vec<_> = self.forwarder.groups.drain(..).collect();
            written.into_iter().for_each(|group| self.forwarder.recycle(group));
        }
        let spent = start.elapsed();
        assert_eq!(
            self.counters.packets_in.get() - opened,
            (TURNS * count) as u64,
            "all are genuine"
        );
        self.forwarder.reports.clear();
        spent
    }
}

fn bench(c: &mut Criterion) {
    for (suite, choice) in [
        (Suite::Native, SuiteChoice::Native),
        (Suite::WireGuard, SuiteChoice::WireGuard),
    ] {
        for (count, payload) in [(1, 24), (16, 1368)] {
            let mut group = c.benchmark_group(format!("inbound/{suite}/{count} x {payload} B"));
            group
                .throughput(Throughput::Elements((TURNS * count) as u64))
                .sample_size(20);
            for peers in [1, 1_000] {
                let mut hub = hub(peers, choice);
                group.bench_function(format!("{peers} peers"), |bencher| {
                    bencher.iter_custom(|rounds| (0..rounds).map(|_| hub.round(count, payload)).sum());
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
