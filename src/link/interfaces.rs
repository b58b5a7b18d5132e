//! The machine's interfaces: their names, and which of them lead out (those of the default routes).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};

use super::LinkError;
use super::netlink::{Netlink, io_error, name_in};

/// The names of all interfaces, by their indices.
pub async fn interface_names() -> Result<BTreeMap<u32, String>, LinkError> {
    let netlink = Netlink::connect()?;
    let failed = |error| LinkError::Kernel {
        action: "list the interfaces".into(),
        error: io_error(error),
    };
    let mut names = BTreeMap::new();
    let mut links = netlink.links().get().execute();
    while let Some(link) = links.try_next().await.map_err(failed)? {
        let index = link.header.index;
        names.extend(name_in(link).map(|name| (index, name)));
    }
    Ok(names)
}

/// The names of the interfaces of the main table's default routes, IPv4 and IPv6, without `except`.
pub async fn egress_interfaces(except: &str) -> Result<BTreeSet<String>, LinkError> {
    let netlink = Netlink::connect()?;
    let failed = |error| LinkError::Kernel {
        action: "list the default routes".into(),
        error: io_error(error),
    };
    let mut indices = BTreeSet::new();
    // Without a destination, which would ask for the one route to it.
    let all = [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ];
    for request in all {
        let mut routes = netlink.routes().get(request).execute();
        while let Some(route) = routes.try_next().await.map_err(failed)? {
            indices.extend(interfaces_of_default(&route));
        }
    }
    let mut names = BTreeSet::new();
    for index in indices {
        // It may have gone in the meantime.
        names.extend(netlink.name_of(index).await);
    }
    names.remove(except);
    Ok(names)
}

/// None unless it is a default route of the main table that leads somewhere.
fn interfaces_of_default(route: &RouteMessage) -> Vec<u32> {
    let header = &route.header;
    if header.destination_prefix_length != 0
        || header.kind != RouteType::Unicast
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return Vec::new();
    }
    let indices = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    indices.collect()
}
