//! Which way packets go: routes into the tunnel, and the way of the tunnel's own packets.

use std::fmt;

use ipnet::IpNet;

use super::raw::{At, NumberOrWord, RawPeer, RawRouting};
use super::types::{Interface, Peer};
use super::validate::Validation;
use super::{Host, values};

/// `RT_TABLE_LOCAL` (linux/rtnetlink.h): the kernel's own addresses, where a route of ours would hide the machine.
const TABLE_LOCAL: i64 = 255;

/// What of the configuration decides on routes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routing {
    /// Where the routes to the allowed IPs go.
    pub table: Table,
    /// Their metric; `None` leaves it to the kernel.
    pub metric: Option<u32>,
    /// Networks that stay outside of the tunnel, though allowed IPs have them. Host bits are zero, no duplicates, none of
    /// length 0.
    pub exclude: Vec<IpNet>,
    /// The interface that the tunnel's own packets leave and arrive by (SO_BINDTODEVICE); `None`: as routes say.
    pub bind_interface: Option<String>,
}

/// Where the routes to the allowed IPs go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Table {
    /// The main table; what would catch the tunnel's own packets too, such as a default route, goes into a table of its
    /// own, with rules that lead all other packets there.
    #[default]
    Auto,
    /// Nowhere: no routes are made.
    Off,
    /// All into this table, 1 to 4294967295. Rules that lead there are somebody else's.
    Number(u32),
}

/// As the TOML file has it.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Table::Auto => f.write_str("\"auto\""),
            Table::Off => f.write_str("\"off\""),
            Table::Number(number) => number.fmt(f),
        }
    }
}

impl Validation<'_> {
    pub(super) fn routing(&mut self, raw: &RawRouting) -> Routing {
        let table = self.table(raw.table.as_ref());
        let metric = self.number(
            raw.metric.as_ref(),
            0..=0xffff_ffff,
            "a metric is 1 to 4294967295, or 0 for what the kernel chooses",
        );
        let mut exclude: Vec<IpNet> = Vec::with_capacity(raw.exclude.len());
        for at in &raw.exclude {
            match self.read(at, values::parse_network).map(|network| network.trunc()) {
                Some(network) if network.prefix_len() == 0 => {
                    self.refuse(
                        at,
                        "this leaves nothing in the tunnel; name the networks that are to stay outside",
                    );
                }
                Some(network) if !exclude.contains(&network) => exclude.push(network),
                _ => {}
            }
        }
        if table == Table::Off {
            let text = "this is about routes, and table = \"off\" makes none; remove one of both";
            if let Some(at) = &raw.metric {
                self.refuse(at, text);
            }
            if let Some(at) = raw.exclude.first() {
                self.refuse(at, text);
            }
        }
        let bind_interface = raw
            .bind_interface
            .as_ref()
            .and_then(|at| self.check(at, values::check_interface_name(&at.value)));
        Routing {
            table,
            metric: metric.filter(|metric| *metric > 0),
            exclude,
            bind_interface,
        }
    }

    fn table(&mut self, raw: Option<&At<NumberOrWord>>) -> Table {
        let Some(at) = raw else { return Table::Auto };
        match &at.value {
            NumberOrWord::Word(word) if word == "auto" => return Table::Auto,
            NumberOrWord::Word(word) if word == "off" => return Table::Off,
            NumberOrWord::Number(TABLE_LOCAL) => {
                self.refuse(
                    at,
                    "this is the kernel's table of local addresses; choose another number",
                );
            }
            // The range fits.
            &NumberOrWord::Number(number @ 1..=0xffff_ffff) => return Table::Number(number as u32),
            _ => self.refuse(
                at,
                "the table is \"auto\", \"off\", or the number of a routing table, 1 to 4294967295; numbers of names \
                 stand in /etc/iproute2/rt_tables",
            ),
        }
        Table::Auto
    }

    /// What can only be seen with the peers in view.
    pub(super) fn check_ways(
        &mut self,
        raw: &RawRouting,
        raw_peers: &[RawPeer],
        interface: &Interface,
        peers: &[Peer],
    ) {
        let routing = &interface.routing;
        if let (Some(at), Some(bound)) = (&raw.bind_interface, &routing.bind_interface)
            && *bound == interface.name
        {
            self.refuse(
                at,
                "this is the tunnel itself; name the interface that leads to the peers",
            );
        }
        for at in &raw.exclude {
            let Ok(network) = values::parse_network(&at.value) else {
                continue;
            };
            let touches = |allowed: &IpNet| allowed.contains(&network) || network.contains(allowed);
            if !peers.iter().any(|peer| peer.allowed_ips.iter().any(touches)) {
                self.warn(
                    at,
                    "no peer's allowed_ips have this network, so it is outside of the tunnel anyway",
                );
            }
        }
        // Rules of somebody else lead to that table; a mark is how they can tell the tunnel's own packets.
        if matches!(routing.table, Table::Number(_)) && interface.fwmark.is_none() {
            for (at, peer) in raw_peers.iter().zip(peers) {
                self.warn_of_loop(at, peer);
            }
        }
    }

    fn warn_of_loop(&mut self, raw: &RawPeer, peer: &Peer) {
        let (Some(at), Some(endpoint)) = (&raw.endpoint, &peer.endpoint) else {
            return;
        };
        let Host::Address(address) = endpoint.host else { return };
        if let Some(network) = peer.allowed_ips.iter().find(|network| network.contains(&address)) {
            self.warn(
                at,
                format!(
                    "the endpoint lies within allowed_ips ({network}), and without a fwmark no rule can keep the \
                     tunnel's packets out of the table; they may go round in circles"
                ),
            );
        }
    }
}
