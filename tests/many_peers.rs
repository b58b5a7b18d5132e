//! One device with 10,000 peers: what they cost while they are idle, and that those which are not all get through.
//!
//! One test, because it measures the memory of its process.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ringway::crypto::Choice;
use ringway::proto::limits::REJECT_AFTER_TIME;
use ringway::proto::{Action, Device, DeviceConfig, Endpoint, Now, PeerConfig, PeerId, Suite, SuiteChoice, Time};
use x25519_dalek::{PublicKey, StaticSecret};

const PEERS: u32 = 10_000;
const ACTIVE: u32 = 1_000;

fn random(seed: u64) -> impl FnMut(&mut [u8]) + Send {
    let mut state = seed;
    move |bytes| {
        for byte in bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
    }
}

fn device(key: [u8; 32], seed: u64) -> Device {
    Device::new(
        DeviceConfig {
            private_key: StaticSecret::from(key),
            lanes: 2,
            crypto: Choice::Auto,
        },
        random(seed),
    )
}

fn peer(public_key: [u8; 32], endpoint: Option<SocketAddr>) -> PeerConfig {
    PeerConfig {
        public_key,
        preshared_key: None,
        endpoint,
        persistent_keepalive: None,
        suite: SuiteChoice::Native,
    }
}

fn spoke_key(number: u32) -> [u8; 32] {
    let mut key = [0x5a; 32];
    // The lowest bits of a private key are ignored.
    key[8..12].copy_from_slice(&number.to_le_bytes());
    key
}

/// All behind one NAT, the worst case for limits per source.
fn spoke_address(number: u32) -> SocketAddr {
    (Ipv4Addr::new(198, 51, 100, 1), 1_024 + number as u16).into()
}

fn at(nanos: u64) -> Now {
    Now {
        mono: Time::from_nanos(nanos),
        unix: Duration::from_secs(1_700_000_000) + Duration::from_nanos(nanos),
    }
}

fn messages(device: &mut Device) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| device.poll_action())
        .filter_map(|action| match action {
            Action::Transmit { datagram, .. } => Some(datagram),
            _ => None,
        })
        .collect()
}

/// Bytes of memory that this process has resident.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc is mounted");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("statm has two fields");
    pages * 4096
}

#[test]
fn ten_thousand_peers_cost_little_and_a_thousand_active_ones_all_get_through() {
    let hub_key = [0x11; 32];
    let hub_public = PublicKey::from(&StaticSecret::from(hub_key)).to_bytes();
    let publics: Vec<[u8; 32]> = (0..PEERS)
        .map(|number| PublicKey::from(&StaticSecret::from(spoke_key(number))).to_bytes())
        .collect();
    let mut hub = device(hub_key, 1);

    let (before, start) = (resident(), Instant::now());
    for &public in &publics {
        hub.add_peer(Time::default(), peer(public, None))
            .expect("all keys differ");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let each = (resident() - before) / u64::from(PEERS);
    println!("{each} bytes for an idle peer");
    assert!(each < 2_048, "{each} bytes for an idle peer");
    assert_eq!(hub.poll_timeout(), None, "nothing is due for any of them");

    let mut spokes: Vec<(Device, PeerId)> = (0..ACTIVE)
        .map(|number| {
            let mut spoke = device(spoke_key(number), 2 + u64::from(number));
            let id = spoke.add_peer(Time::default(), peer(hub_public, Some(([192, 0, 2, 1], 1).into())));
            (spoke, id.expect("one peer"))
        })
        .collect();
    let is_up = |spoke: &(Device, PeerId)| {
        spoke
            .0
            .peer(spoke.1)
            .is_some_and(|info| info.suite == Some(Suite::Native))
    };
    for (spoke, id) in &mut spokes {
        spoke.want_session(*id, at(0));
    }
    // Steps of 50 ms: what was sent arrives in the next one.
    for step in 0..20 * 20u64 {
        let now = at(step * 50_000_000);
        for (number, (spoke, _)) in spokes.iter_mut().enumerate() {
            let address = spoke_address(number as u32);
            spoke.handle_timeout(now);
            for initiation in messages(spoke) {
                let _ = hub.handle_datagram(now, Endpoint::new(address), &initiation); // refused under load
                for answer in messages(&mut hub) {
                    let _ = spoke.handle_datagram(now, Endpoint::new(([192, 0, 2, 1], 1).into()), &answer);
                }
            }
        }
        hub.handle_timeout(now);
        if spokes.iter().all(is_up) {
            break;
        }
    }
    assert_eq!(spokes.iter().filter(|spoke| is_up(spoke)).count(), ACTIVE as usize);

    let over = Time::from_nanos(20_000_000_000) + REJECT_AFTER_TIME * 4;
    hub.handle_timeout(at(over.as_nanos()));
    let retired = std::iter::from_fn(|| hub.poll_action()).filter(|action| matches!(action, Action::Retire { .. }));
    assert_eq!(retired.count(), ACTIVE as usize);
    assert_eq!(hub.poll_timeout(), None, "idle again");
}
