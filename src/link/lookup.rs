//! How the kernel would route one packet: what `ip route get` asks.

use std::fmt;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};

use super::LinkError;
use super::netlink::{Netlink, io_error};

/// Protocols that the kernel's look-up knows (net/ipv4/fib_frontend.c, rtm_getroute_parse_ip_proto): ICMP, TCP, UDP,
/// ICMPv6.
const KNOWN_PROTOCOLS: [u8; 4] = [1, 6, 17, 58];

/// The packet.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    /// Its destination.
    pub destination: IpAddr,
    /// Its source: one of this machine's, or any if the packet comes from elsewhere. `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// The interface that it comes from. `None`: this machine made it.
    pub from: Option<&'a str>,
    /// The interface that its socket is bound to.
    pub bound_to: Option<&'a str>,
    /// Its protocol number, for routing rules that look at it.
    pub protocol: Option<u8>,
    /// Its destination port, likewise; only with a protocol.
    pub port: Option<u16>,
    /// Its firewall mark.
    pub mark: Option<u32>,
}

/// What the kernel does with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// In one word.
    pub kind: RouteKind,
    /// The interface that it leaves by.
    pub interface: Option<String>,
    /// The next hop, where that is not the destination itself.
    pub gateway: Option<IpAddr>,
    /// The address of ours that the kernel would choose.
    pub source: Option<IpAddr>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Sent on.
    Unicast,
    /// Taken by this machine.
    Local,
    /// Taken, and sent on as a broadcast or multicast.
    Broadcast,
    /// Dropped: blackhole, unreachable, prohibit, throw.
    Refused,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = self.interface.as_deref().unwrap_or("an interface that is gone");
        match (self.kind, self.gateway) {
            (RouteKind::Local, _) => f.write_str("taken by this machine"),
            (RouteKind::Broadcast, _) => write!(f, "a broadcast or multicast on {interface}"),
            (RouteKind::Refused, _) => f.write_str("refused by a blackhole, unreachable or prohibit route"),
            (RouteKind::Unicast, Some(gateway)) => write!(f, "routed to {interface} via {gateway}"),
            (RouteKind::Unicast, None) => write!(f, "routed to {interface}"),
        }
    }
}

/// Asks the kernel, in the calling thread's network namespace.
///
/// # Errors
/// That the kernel has no route, or would not take such a packet: ENETUNREACH, EHOSTUNREACH (from elsewhere: forwarding is
/// off), EINVAL (from elsewhere: the reverse path filter; from here: the source is not ours).
pub async fn route(lookup: &Lookup<'_>) -> Result<Route, LinkError> {
    let failed = |error| LinkError::Kernel {
        action: format!("route a packet to {}", lookup.destination),
        error: io_error(error),
    };
    let netlink = Netlink::connect()?;
    let message = message(&netlink, lookup).await?;
    let answer = netlink
        .routes()
        .get(message)
        .execute()
        .try_next()
        .await
        .map_err(failed)?;
    let Some(answer) = answer else {
        return Err(failed(rtnetlink::Error::RequestFailed));
    };
    let mut route = Route {
        kind: match answer.header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Local | RouteType::Anycast => RouteKind::Local,
            RouteType::Broadcast | RouteType::Multicast => RouteKind::Broadcast,
            _ => RouteKind::Refused,
        },
        interface: None,
        gateway: None,
        source: None,
    };
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface = netlink.name_of(*index).await,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            _ => {}
        }
    }
    Ok(route)
}

async fn message(
    netlink: &Netlink,
    lookup: &Lookup<'_>,
) -> Result<rtnetlink::packet_route::route::RouteMessage, LinkError> {
    let refused = |error: &dyn fmt::Display| LinkError::Kernel {
        action: format!("ask for the route to {}", lookup.destination),
        error: io::Error::new(io::ErrorKind::InvalidInput, error.to_string()),
    };
    let host_len = if lookup.destination.is_ipv4() { 32 } else { 128 };
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(lookup.destination, host_len)
        .map_err(|error| refused(&error))?;
    if let Some(source) = lookup.source {
        builder = builder
            .source_prefix(source, host_len)
            .map_err(|error| refused(&error))?;
    }
    if let Some(name) = lookup.from {
        builder = builder.input_interface(index_of(netlink, name).await?);
    }
    if let Some(name) = lookup.bound_to {
        builder = builder.output_interface(index_of(netlink, name).await?);
    }
    if let Some(protocol) = lookup.protocol.filter(|protocol| KNOWN_PROTOCOLS.contains(protocol)) {
        builder = builder.ip_protocol(protocol);
        if let Some(port) = lookup.port {
            builder = builder.dport(port);
        }
    }
    if let Some(mark) = lookup.mark {
        builder = builder.mark(mark);
    }
    Ok(builder.build())
}

async fn index_of(netlink: &Netlink, name: &str) -> Result<u32, LinkError> {
    netlink.index_of(name).await?.ok_or_else(|| LinkError::Kernel {
        action: format!("find the interface {name}"),
        error: io::Error::from_raw_os_error(libc::ENODEV),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn the_loopback_address_is_taken_by_this_machine() {
        let lookup = Lookup {
            destination: [127, 0, 0, 1].into(),
            source: None,
            from: None,
            bound_to: None,
            protocol: Some(6),
            port: Some(80),
            mark: None,
        };
        let route = route(&lookup).await.expect("every machine has it");
        assert_eq!((route.kind, route.interface.as_deref()), (RouteKind::Local, Some("lo")));
        assert_eq!(route.to_string(), "taken by this machine");
    }
}
