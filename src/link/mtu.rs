//! What MTU the tunnel gets when the configuration says "auto".

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric};

use super::LinkError;
use super::netlink::{Netlink, io_error};
use crate::wire::message::DATA_OVERHEAD;

/// The MTU where no endpoint is known: 1500 less the overhead over IPv6, as wg-quick has it.
pub const MTU_DEFAULT: u16 = 1420;

/// Least MTU of a link that carries IPv6 (RFC 8200, section 5).
const MTU_MIN_IPV6: u32 = 1280;
/// Least MTU that every IPv4 host takes (RFC 791, section 3.2).
const MTU_MIN_IPV4: u32 = 576;
/// Largest IP packet: both length fields have 16 bits.
const MTU_MAX: u32 = 65535;

const IPV4_HEADER_LEN: u32 = 20;
const IPV6_HEADER_LEN: u32 = 40;
const UDP_HEADER_LEN: u32 = 8;

/// A path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Underlay {
    /// The peer's outer address.
    pub remote: IpAddr,
    /// Bytes of the largest outer IP packet on the route to it.
    pub mtu: u32,
}

/// The tunnel's MTU over these paths: that of the narrowest one.
///
/// `roaming`: there are peers without a known address, which may come over any path, so the MTU is at most
/// [`MTU_DEFAULT`]. `ipv6_inside`: the tunnel carries IPv6, which needs 1280 bytes; on a path that is too narrow
/// for it the outer packets are fragmented.
pub fn tunnel_mtu(paths: impl IntoIterator<Item = Underlay>, roaming: bool, ipv6_inside: bool) -> u16 {
    let narrowest = paths
        .into_iter()
        .map(|path| path.mtu.min(MTU_MAX).saturating_sub(overhead(path.remote)))
        .min();
    let mtu = match narrowest {
        Some(mtu) if roaming => mtu.min(MTU_DEFAULT.into()),
        Some(mtu) => mtu,
        None => MTU_DEFAULT.into(),
    };
    let least = if ipv6_inside { MTU_MIN_IPV6 } else { MTU_MIN_IPV4 };
    u16::try_from(mtu.max(least)).unwrap_or(u16::MAX)
}

/// The tunnel's MTU, from the routes that the kernel has towards `remotes` at this moment for packets with `fwmark` that
/// leave by the interface `device`. An address without a route counts as roaming. See [`tunnel_mtu`] for the other
/// arguments.
pub async fn auto_mtu(
    remotes: impl IntoIterator<Item = IpAddr>,
    fwmark: Option<u32>,
    device: Option<&str>,
    mut roaming: bool,
    ipv6_inside: bool,
) -> Result<u16, LinkError> {
    let netlink = Netlink::connect()?;
    let device = match device {
        Some(name) => netlink.index_of(name).await?,
        None => None,
    };
    let mut paths = Vec::new();
    for remote in remotes {
        match underlay(&netlink, remote, fwmark, device).await {
            Some(path) => paths.push(path),
            None => roaming = true,
        }
    }
    Ok(tunnel_mtu(paths, roaming, ipv6_inside))
}

/// What a tunnelled packet gains towards `remote`: outer IP header, UDP header, data header and tag.
fn overhead(remote: IpAddr) -> u32 {
    let ip_header_len = if remote.is_ipv4() {
        IPV4_HEADER_LEN
    } else {
        IPV6_HEADER_LEN
    };
    ip_header_len + UDP_HEADER_LEN + DATA_OVERHEAD as u32
}

/// The route to `remote`; `None` when there is none, or it was gone before it could be looked at.
async fn underlay(netlink: &Netlink, remote: IpAddr, fwmark: Option<u32>, device: Option<u32>) -> Option<Underlay> {
    let host_len = if remote.is_ipv4() { 32 } else { 128 };
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(remote, host_len)
        .ok()?;
    if let Some(mark) = fwmark {
        builder = builder.mark(mark);
    }
    if let Some(index) = device {
        builder = builder.output_interface(index);
    }
    let route = netlink
        .routes()
        .get(builder.build())
        .execute()
        .try_next()
        .await
        .map_err(log_no_route(remote))
        .ok()??;

    let interface = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })?;
    let link = netlink
        .links()
        .get()
        .match_index(interface)
        .execute()
        .try_next()
        .await
        .ok()??;
    let link_mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })?;
    // A route's own MTU (set by hand, or learnt from ICMP) is the narrower one.
    let metrics = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    });
    let route_mtu = metrics.flatten().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Some(Underlay {
        remote,
        mtu: route_mtu.map_or(link_mtu, |mtu| mtu.min(link_mtu)),
    })
}

fn log_no_route(remote: IpAddr) -> impl FnOnce(rtnetlink::Error) {
    move |error| tracing::debug!(%remote, error = %io_error(error), "no route to the endpoint")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_path_less_its_overhead_is_the_mtu() {
        let v4 = |mtu| Underlay {
            remote: "192.0.2.1".parse().unwrap(),
            mtu,
        };
        let v6 = |mtu| Underlay {
            remote: "2001:db8::1".parse().unwrap(),
            mtu,
        };
        let cases: &[(&[Underlay], bool, bool, u16)] = &[
            (&[], false, true, 1420),
            (&[], true, false, 1420),
            (&[v4(1500)], false, false, 1440),
            (&[v6(1500)], false, false, 1420),
            (&[v4(1500), v6(1500)], false, false, 1420),
            (&[v4(9000), v4(1492)], false, false, 1432),
            (&[v4(9000)], true, false, 1420),
            (&[v4(1400)], true, false, 1340),
            (&[v4(1280)], false, false, 1220),
            (&[v4(1280)], false, true, 1280),
            (&[v4(68)], false, false, 576),
            (&[v4(0)], false, false, 576),
            (&[v4(65536)], false, true, 65475),
            (&[v6(u32::MAX)], false, true, 65455),
        ];
        for (paths, roaming, ipv6_inside, expected) in cases {
            assert_eq!(
                tunnel_mtu(paths.iter().copied(), *roaming, *ipv6_inside),
                *expected,
                "{paths:?}"
            );
        }
    }
}
