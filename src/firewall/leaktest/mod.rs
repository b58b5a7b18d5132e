//! Watches what leaves beside a tunnel, while probes try to.
//!
//! Every packet that goes out by an interface which is neither the tunnel nor the loopback is judged ([`sighting`]): the
//! tunnel's own, upkeep of the link, let go outside by the kill switch, or a leak. The probes ([`probes`]) make sure that
//! there is something to see.

mod probes;
mod sighting;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use super::{FirewallError, lockdown};
use crate::link;
use crate::link::nft;
use crate::sys::tap::Tap;
use probes::Probe;
use sighting::{Exceptions, Summary, Verdict};

/// The largest IP packet, and what offloads may add to it.
const PACKET_LEN_MAX: usize = 1 << 17;

/// At most so many different leaks are listed; all are counted.
const LEAKS_LISTED: usize = 100;

/// What the test needs to know of a running daemon.
#[derive(Debug, Clone, Default)]
pub struct Tunnel {
    /// The UDP port that its packets come from.
    pub listen_port: Option<u16>,
    /// Where its peers are.
    pub endpoints: Vec<SocketAddr>,
}

/// What was seen.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The tunnel's interface.
    pub name: String,
    /// Whether that exists.
    pub is_up: bool,
    /// Whether its kill switch holds.
    pub lockdown: bool,
    /// The interfaces that were watched, without the tunnel's.
    pub underlay: Vec<String>,
    /// How long, in milliseconds.
    pub duration_ms: u64,
    /// What became of each probe.
    pub probes: Vec<ProbeReport>,
    /// Packets that left beside the tunnel by right.
    pub allowed: Allowed,
    /// The others, by flow; at most 100 flows.
    pub leaks: Vec<Leak>,
    /// How many packets those are, unlisted flows included.
    pub leaked_packets: u64,
    /// How often the kernel said that packets were missed.
    pub missed: u64,
}

/// What became of a probe.
#[derive(Debug, Serialize)]
pub struct ProbeReport {
    /// What it is.
    pub probe: String,
    /// How often it was sent.
    pub sent: u64,
    /// Packets of it that went into the tunnel.
    pub inside: u64,
    /// Packets of it that left beside the tunnel, allowed or not.
    pub outside: u64,
    /// Why the last one was refused, in the kernel's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Packets that left beside the tunnel by right.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Allowed {
    /// The tunnel's own datagrams.
    pub tunnel: u64,
    /// ARP, DHCP, neighbour discovery.
    pub link: u64,
    /// To destinations of lockdown_outside.
    pub outside: u64,
}

/// Packets of one flow that left.
#[derive(Debug, Serialize)]
pub struct Leak {
    /// By which interface.
    pub interface: String,
    /// From where to where.
    pub packet: String,
    /// How many.
    pub packets: u64,
}

/// Learns what may leave beside the tunnel `name`, whose daemon may run or not.
///
/// # Errors
/// The interfaces or the kill switch's table can't be listed.
pub async fn watch(name: &str, tunnel: Tunnel) -> Result<Watch, FirewallError> {
    let interfaces = link::interface_names().await?;
    let is_locked = lockdown::standing()
        .await
        .is_ok_and(|standing| standing.iter().any(|other| other == name));
    let outside = if is_locked {
        outside(&nft::list(&["table", "inet", &nft::table("lockdown", name)]).await?)
    } else {
        Vec::new()
    };
    Ok(Watch {
        name: name.to_owned(),
        interfaces,
        is_locked,
        may: Exceptions {
            listen_port: tunnel.listen_port,
            endpoints: tunnel.endpoints,
            outside,
        },
    })
}

/// What may leave, and by which interfaces something can.
#[derive(Debug)]
pub struct Watch {
    name: String,
    interfaces: BTreeMap<u32, String>,
    is_locked: bool,
    may: Exceptions,
}

impl Watch {
    /// Sends probes and watches for `duration`.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW.
    pub fn run(&self, duration: Duration) -> io::Result<Report> {
        // Before the first probe.
        let tap = Tap::new()?;
        let begun = Instant::now();
        let probes = probes::all();
        let is_over = AtomicBool::new(false);
        let (sent, mut seen) = thread::scope(|scope| {
            let sender = scope.spawn(|| send(&probes, &is_over));
            let seen = self.look(&tap, &probes, begun + duration);
            is_over.store(true, Ordering::Relaxed);
            (sender.join().expect("sending does not panic"), seen)
        });
        // The last ones may still be on their way.
        seen.merge(self.look(&tap, &probes, Instant::now() + Duration::from_millis(200)));
        let others = |name: &&String| **name != self.name && **name != "lo";
        Ok(Report {
            name: self.name.clone(),
            is_up: self.interfaces.values().any(|name| *name == self.name),
            lockdown: self.is_locked,
            underlay: self.interfaces.values().filter(others).cloned().collect(),
            duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            probes: probes
                .iter()
                .zip(sent)
                .zip(seen.probes)
                .map(|((probe, (sent, refused)), (inside, outside))| ProbeReport {
                    probe: probe.name(),
                    sent,
                    inside,
                    outside,
                    refused,
                })
                .collect(),
            allowed: seen.allowed,
            leaked_packets: seen.leaked,
            leaks: seen
                .leaks
                .into_iter()
                .map(|((ifindex, packet), packets)| Leak {
                    interface: self.shown(ifindex),
                    packet: packet.to_string(),
                    packets,
                })
                .collect(),
            missed: seen.missed,
        })
    }

    /// Looks at what passes until `end`.
    fn look(&self, tap: &Tap, probes: &[Probe], end: Instant) -> Seen {
        let mut seen = Seen {
            probes: vec![(0, 0); probes.len()],
            ..Seen::default()
        };
        let mut buffer = vec![0; PACKET_LEN_MAX];
        while let Some(left) = end
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            let sighting = match tap.receive(&mut buffer, left) {
                Ok(Some(sighting)) if sighting.outgoing => sighting,
                Ok(_) => continue,
                Err(_) => {
                    seen.missed += 1;
                    continue;
                }
            };
            let (verdict, summary) = sighting::judge(sighting.protocol, &buffer[..sighting.len], &self.may);
            let probe = summary.and_then(|summary| probes.iter().position(|probe| probe.is(&summary)));
            match self.interfaces.get(&sighting.ifindex).map(String::as_str) {
                Some("lo") => continue,
                Some(name) if name == self.name => {
                    if let Some(i) = probe {
                        seen.probes[i].0 += 1;
                    }
                    continue;
                }
                _ => {}
            }
            if let Some(i) = probe {
                seen.probes[i].1 += 1;
            }
            match (verdict, summary) {
                (Verdict::Tunnel, _) => seen.allowed.tunnel += 1,
                (Verdict::Outside, _) => seen.allowed.outside += 1,
                (Verdict::Link, _) | (Verdict::Leak, None) => seen.allowed.link += 1,
                (Verdict::Leak, Some(summary)) => seen.leak(sighting.ifindex, summary, 1),
            }
        }
        seen
    }

    fn shown(&self, ifindex: u32) -> String {
        let name = self.interfaces.get(&ifindex).cloned();
        name.unwrap_or_else(|| format!("interface {ifindex}"))
    }
}

#[derive(Default)]
struct Seen {
    /// Of each probe: packets in the tunnel, and beside it.
    probes: Vec<(u64, u64)>,
    allowed: Allowed,
    leaks: BTreeMap<(u32, Summary), u64>,
    leaked: u64,
    missed: u64,
}

impl Seen {
    fn leak(&mut self, ifindex: u32, packet: Summary, packets: u64) {
        self.leaked += packets;
        let flow = (ifindex, packet);
        if self.leaks.len() < LEAKS_LISTED || self.leaks.contains_key(&flow) {
            *self.leaks.entry(flow).or_default() += packets;
        }
    }

    fn merge(&mut self, later: Seen) {
        for (all, more) in self.probes.iter_mut().zip(later.probes) {
            *all = (all.0 + more.0, all.1 + more.1);
        }
        self.allowed.tunnel += later.allowed.tunnel;
        self.allowed.link += later.allowed.link;
        self.allowed.outside += later.allowed.outside;
        self.missed += later.missed;
        let listed: u64 = later.leaks.values().sum();
        self.leaked += later.leaked - listed;
        for ((ifindex, packet), packets) in later.leaks {
            self.leak(ifindex, packet, packets);
        }
    }
}

/// Sends every probe about once a second; how often each was sent, and why the last one was refused.
fn send(probes: &[Probe], is_over: &AtomicBool) -> Vec<(u64, Option<String>)> {
    let mut sent = vec![(0, None); probes.len()];
    loop {
        for (probe, (count, refused)) in probes.iter().zip(&mut sent) {
            *refused = probe.send();
            *count += 1;
        }
        for _ in 0..10 {
            if is_over.load(Ordering::Relaxed) {
                return sent;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The networks that a kill switch's table, as `nft -j list table` shows it, lets packets go to.
fn outside(table: &Value) -> Vec<IpNet> {
    let is_outside = |set: &&Value| set["name"].as_str().is_some_and(|name| name.starts_with("outside_v"));
    let sets = nft::objects(table, "set").filter(is_outside);
    // The servers that DNS may go to are listed by themselves, the networks around them in one.
    let servers =
        nft::objects(table, "set").filter(|set| set["name"].as_str().is_some_and(|name| name.starts_with("dns_v")));
    let elements = sets
        .chain(servers)
        .flat_map(|set| set["elem"].as_array().into_iter().flatten());
    elements.flat_map(networks).collect()
}

/// An element of a set of addresses: a prefix, a range or a single address.
fn networks(element: &Value) -> Vec<IpNet> {
    let address = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
    if let Some(prefix) = element.get("prefix") {
        let len = prefix["len"].as_u64().and_then(|len| u8::try_from(len).ok());
        let network = address(&prefix["addr"])
            .zip(len)
            .and_then(|(address, len)| IpNet::new(address, len).ok());
        return network.into_iter().collect();
    }
    if let Some(range) = element.get("range") {
        return match (address(&range[0]), address(&range[1])) {
            (Some(IpAddr::V4(first)), Some(IpAddr::V4(last))) => {
                ipnet::Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
            }
            (Some(IpAddr::V6(first)), Some(IpAddr::V6(last))) => {
                ipnet::Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
            }
            _ => Vec::new(),
        };
    }
    address(element).map(IpNet::from).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kill_switch_lets_outside_is_read_from_its_table() {
        let table = serde_json::json!({"nftables": [
            {"metainfo": {}},
            {"set": {"name": "outside_v4", "elem": [{"prefix": {"addr": "10.0.0.0", "len": 8}}, "192.0.2.1"]}},
            {"set": {"name": "outside_v6"}},
            {"set": {"name": "dns_v4", "elem": ["192.0.2.1", {"range": ["192.0.2.4", "192.0.2.6"]}]}},
            {"chain": {"name": "output"}},
        ]});
        let found: Vec<String> = outside(&table).iter().map(IpNet::to_string).collect();
        assert_eq!(
            found,
            [
                "10.0.0.0/8",
                "192.0.2.1/32",
                "192.0.2.1/32",
                "192.0.2.4/31",
                "192.0.2.6/32"
            ]
        );
    }
}
