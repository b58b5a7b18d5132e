//! The tables as texts of nft(8), from configuration alone: no I/O, so that a test shows every word of them.

use std::fmt::{self, Display, Write as _};
use std::num::NonZeroU32;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ranges;
use crate::config::{Gateway, Lockdown, Masquerade, Peer, PeerToPeer, Policy};

/// What a gateway's table is made from.
#[derive(Clone, Copy)]
pub(super) struct GatewayPlan<'a> {
    /// The tunnel's interface.
    pub(super) interface: &'a str,
    pub(super) gateway: &'a Gateway,
    pub(super) peers: &'a [Peer],
    /// The gateway's own addresses in the tunnel.
    pub(super) addresses: &'a [IpNet],
    /// The interfaces through which packets may leave.
    pub(super) egress: &'a [String],
}

/// A gateway's table. A packet's way through it:
///
/// ```text
/// out of the tunnel, for somebody else   forward -> from_peers -> peer_N -> destinations (-> between_peers)
/// out of the tunnel, for this machine    input -> peer_N
/// into the tunnel                        forward -> to_peers
/// ```
///
/// Packets of a connection's first direction are judged each time, so that a new policy holds for connections that exist;
/// answers pass.
pub(super) fn gateway(plan: GatewayPlan<'_>) -> String {
    let GatewayPlan {
        interface,
        gateway,
        peers,
        ..
    } = plan;
    let mut out = Body::default();
    let nat = gateway.masquerade != Masquerade::Off;
    let has_policies = peers.iter().any(|peer| peer.policy != Policy::default());
    let answers = "ct state established,related ct direction reply accept";
    // conntrack does not translate these, so they would leave with an inner address.
    let invalid = "ct state invalid counter drop";

    out.set(
        "egress",
        "ifname",
        "",
        plan.egress.iter().map(|name| format!("\"{name}\"")),
    );
    if has_policies {
        for ipv6 in [false, true] {
            let prefixes = peers.iter().enumerate().flat_map(|(i, peer)| {
                let prefixes = peer.allowed_ips.iter();
                prefixes.map(move |network| (*network, i))
            });
            let ranges = ranges::disjoint(prefixes, ipv6);
            let own = ranges.iter().filter(|(_, i)| peers[*i].policy != Policy::default());
            let elements = own.map(|(range, i)| format!("{range} : jump peer_{i}"));
            let family = Family::of(ipv6);
            out.map(&format!("peers_{family}"), family.address_type(), elements);
        }
    }
    if let PeerToPeer::Groups(groups) = &gateway.peer_to_peer {
        for (g, group) in groups.iter().enumerate() {
            let is_member = |peer: &Peer| peer.name.as_ref().is_some_and(|name| group.contains(name));
            for ipv6 in [false, true] {
                let prefixes = peers
                    .iter()
                    .flat_map(|peer| peer.allowed_ips.iter().map(move |network| (*network, is_member(peer))));
                let ranges = ranges::disjoint(prefixes, ipv6);
                let members = ranges.iter().filter(|(_, is_member)| *is_member);
                let family = Family::of(ipv6);
                let name = format!("group_{g}_{family}");
                out.set(
                    &name,
                    family.address_type(),
                    "interval",
                    members.map(|(range, _)| range),
                );
            }
        }
    }

    if gateway.mss_clamp {
        let clamp = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu";
        out.chain(
            "clamp",
            "type filter hook forward priority mangle; policy accept;",
            &[
                format!("iifname \"{interface}\" {clamp}"),
                format!("oifname \"{interface}\" {clamp}"),
            ],
        );
    }
    let mut rules = vec![
        format!("iifname \"{interface}\" goto from_peers"),
        format!("oifname \"{interface}\" goto to_peers"),
    ];
    out.chain(
        "forward",
        "type filter hook forward priority filter; policy accept;",
        &rules,
    );

    rules = vec![answers.into()];
    rules.extend(nat.then(|| invalid.into()));
    if has_policies {
        rules.extend(["ip saddr vmap @peers_v4".into(), "ip6 saddr vmap @peers_v6".into()]);
    }
    rules.push("goto destinations".into());
    out.chain("from_peers", "", &rules);

    let named = peers
        .iter()
        .enumerate()
        .filter(|(_, peer)| peer.policy != Policy::default());
    for (i, peer) in named {
        out.chain(&format!("peer_{i}"), "", &policy(&peer.policy, plan.addresses));
    }
    out.chain(
        "destinations",
        "",
        &[
            format!("oifname \"{interface}\" goto between_peers"),
            "oifname @egress accept".into(),
            "counter drop".into(),
        ],
    );
    let between: Vec<String> = match &gateway.peer_to_peer {
        PeerToPeer::Off => vec!["counter drop".into()],
        PeerToPeer::On => vec!["accept".into()],
        PeerToPeer::Groups(groups) => (0..groups.len())
            .flat_map(|g| {
                ["ip", "ip6"].map(|protocol| {
                    let family = Family::of(protocol == "ip6");
                    format!("{protocol} saddr @group_{g}_{family} {protocol} daddr @group_{g}_{family} accept")
                })
            })
            .chain(["counter drop".into()])
            .collect(),
    };
    out.chain("between_peers", "", &between);

    rules = vec![answers.into()];
    rules.extend(nat.then(|| invalid.into()));
    // Whoever translates a destination to a peer's address means the peer to be reached.
    rules.push("ct status dnat accept".into());
    rules.extend(gateway.inbound.then(|| "iifname @egress accept".into()));
    rules.push("counter drop".into());
    out.chain("to_peers", "", &rules);

    if has_policies {
        let from_tunnel = |rule: &str| format!("iifname \"{interface}\" {rule}");
        let rules = [answers, "ip saddr vmap @peers_v4", "ip6 saddr vmap @peers_v6"].map(from_tunnel);
        out.chain(
            "input",
            "type filter hook input priority filter; policy accept;",
            &rules,
        );
    }
    if nat {
        let family = match gateway.masquerade {
            Masquerade::Ipv4 => "meta nfproto ipv4 ",
            Masquerade::Ipv6 => "meta nfproto ipv6 ",
            Masquerade::All | Masquerade::Off => "",
        };
        out.chain(
            "postrouting",
            "type nat hook postrouting priority srcnat; policy accept;",
            &[format!("iifname \"{interface}\" oifname @egress {family}masquerade")],
        );
    }
    out.text
}

/// Drops what the peer may not reach, whether it is beyond the gateway or the gateway itself.
fn policy(policy: &Policy, own_addresses: &[IpNet]) -> Vec<String> {
    let mut rules = Vec::new();
    for (protocol, list) in lists(&policy.deny) {
        rules.push(format!("{protocol} daddr {list} counter drop"));
    }
    match &policy.allow {
        Some(allow) => {
            let own: Vec<IpNet> = own_addresses.iter().map(|network| network.addr().into()).collect();
            for (protocol, list) in lists(&[&own[..], allow].concat()) {
                rules.push(format!("{protocol} daddr {list} return"));
            }
            rules.push("counter drop".into());
        }
        None if !policy.internet => rules.push("oifname @egress counter drop".into()),
        None => {}
    }
    rules
}

/// The kill switch's table.
///
/// The chains drop by policy, and reject what gets as far as their ends, so that programs learn of it at once.
pub(super) fn lockdown(interface: &str, mark: NonZeroU32, lockdown: &Lockdown) -> String {
    let mut out = Body::default();
    let reject = "counter reject with icmpx admin-prohibited";
    let servers: Vec<IpNet> = lockdown
        .outside
        .iter()
        .filter(|network| network.prefix_len() == network.max_prefix_len())
        .copied()
        .collect();
    for (set, networks) in [("outside", &lockdown.outside), ("dns", &servers)] {
        for (family, networks) in [
            (Family::V4, aggregated(networks, false)),
            (Family::V6, aggregated(networks, true)),
        ] {
            out.set(&format!("{set}_{family}"), family.address_type(), "interval", networks);
        }
    }
    let inside = match &lockdown.inside {
        None => format!("oifname \"{interface}\" accept"),
        Some(_) => format!("oifname \"{interface}\" goto inside"),
    };
    out.chain(
        "output",
        "type filter hook output priority filter; policy drop;",
        &[
            "oifname \"lo\" accept",
            &inside,
            &format!("meta mark {:#x} meta l4proto udp accept", mark.get()),
            "jump link",
            "jump outside",
            reject,
        ],
    );
    out.chain(
        "forward",
        "type filter hook forward priority filter; policy drop;",
        &[&inside, "jump outside", reject],
    );
    if let Some(networks) = &lockdown.inside {
        let allowed = lists(networks).map(|(protocol, list)| format!("{protocol} daddr {list} accept"));
        let rules: Vec<String> = allowed.chain([reject.into()]).collect();
        out.chain("inside", "", &rules);
    }
    out.chain(
        "link",
        "",
        &[
            // DHCP (RFC 2131, section 4.1) and DHCPv6 (RFC 8415, section 7)
            "meta nfproto ipv4 udp sport 68 udp dport 67 accept",
            "ip6 daddr { ff02::1:2, fe80::/10 } udp sport 546 udp dport 547 accept",
            // Neighbour discovery (RFC 4861) and the membership in its multicast groups (RFC 3810)
            "ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept",
            "ip6 hoplimit 1 icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } accept",
        ],
    );
    out.chain(
        "outside",
        "",
        &[
            // A resolver in an allowed network (the router, often) would tell the provider every name.
            "meta l4proto { tcp, udp } th dport { 53, 853 } goto dns",
            "ip daddr @outside_v4 accept",
            "ip6 daddr @outside_v6 accept",
        ],
    );
    out.chain(
        "dns",
        "",
        &["ip daddr @dns_v4 accept", "ip6 daddr @dns_v6 accept", reject],
    );
    out.text
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(ipv6: bool) -> Family {
        if ipv6 { Family::V6 } else { Family::V4 }
    }

    fn address_type(self) -> &'static str {
        match self {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        }
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "v4",
            Family::V6 => "v6",
        })
    }
}

/// `networks` as one anonymous set per family that has any, with nft's word for the family.
fn lists(networks: &[IpNet]) -> impl Iterator<Item = (&'static str, String)> {
    let families = [("ip", aggregated(networks, false)), ("ip6", aggregated(networks, true))];
    families
        .into_iter()
        .filter(|(_, networks)| !networks.is_empty())
        .map(|(protocol, networks)| {
            let texts: Vec<String> = networks.iter().map(IpNet::to_string).collect();
            (protocol, format!("{{ {} }}", texts.join(", ")))
        })
}

/// The networks of one family without overlaps, which nft would refuse.
fn aggregated(networks: &[IpNet], ipv6: bool) -> Vec<IpNet> {
    if ipv6 {
        let networks = networks.iter().filter_map(|network| match network {
            IpNet::V6(network) => Some(*network),
            IpNet::V4(_) => None,
        });
        Ipv6Net::aggregate(&networks.collect())
            .into_iter()
            .map(IpNet::V6)
            .collect()
    } else {
        let networks = networks.iter().filter_map(|network| match network {
            IpNet::V4(network) => Some(*network),
            IpNet::V6(_) => None,
        });
        Ipv4Net::aggregate(&networks.collect())
            .into_iter()
            .map(IpNet::V4)
            .collect()
    }
}

/// The inside of a table, as it grows.
#[derive(Default)]
struct Body {
    text: String,
}

impl Body {
    fn set(&mut self, name: &str, kind: &str, flags: &str, elements: impl IntoIterator<Item = impl Display>) {
        self.line(1, format_args!("set {name} {{"));
        self.elements(kind, flags, elements);
    }

    fn map(&mut self, name: &str, kind: &str, elements: impl IntoIterator<Item = impl Display>) {
        self.line(1, format_args!("map {name} {{"));
        self.elements(&format!("{kind} : verdict"), "interval", elements);
    }

    fn elements(&mut self, kind: &str, flags: &str, elements: impl IntoIterator<Item = impl Display>) {
        self.line(2, format_args!("type {kind}"));
        if !flags.is_empty() {
            self.line(2, format_args!("flags {flags}"));
        }
        let mut elements = elements.into_iter().peekable();
        if elements.peek().is_some() {
            self.line(2, format_args!("elements = {{"));
            for element in elements {
                self.line(3, format_args!("{element},"));
            }
            self.line(2, format_args!("}}"));
        }
        self.line(1, format_args!("}}"));
    }

    /// `hook` is empty for chains that other chains lead to.
    fn chain(&mut self, name: &str, hook: &str, rules: &[impl AsRef<str>]) {
        self.line(1, format_args!("chain {name} {{"));
        if !hook.is_empty() {
            self.line(2, format_args!("{hook}"));
        }
        for rule in rules {
            self.line(2, format_args!("{}", rule.as_ref()));
        }
        self.line(1, format_args!("}}"));
    }

    fn line(&mut self, depth: usize, text: fmt::Arguments<'_>) {
        // Writing to a String can't fail.
        let _ = writeln!(self.text, "{:1$}{text}", "", depth * 4);
    }
}

#[cfg(test)]
mod tests;
