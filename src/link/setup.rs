//! Setting the interface up, and removing what was made.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope};
use rtnetlink::{AddressMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::LinkError;
use super::netlink::{Netlink, io_error};

/// What the interface is to look like.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The interface's index.
    pub index: u32,
    /// Its name, for error messages.
    pub name: &'a str,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Addresses with the prefix lengths of their networks.
    pub addresses: &'a [IpNet],
    /// Networks to route to it; those that one of `addresses` makes the kernel route anyway are skipped.
    pub routes: &'a [IpNet],
}

/// An interface that is up, with a list of what was made for it.
///
/// Dropping it removes nothing: that takes a runtime, see [`Link::tear_down`]. A TUN device that disappears takes its
/// addresses and routes with it in any case.
pub struct Link {
    netlink: Netlink,
    index: u32,
    name: String,
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
}

/// Brings the interface into the state of `plan`. On an error, what was made until then is removed again.
pub async fn set_up(plan: Plan<'_>) -> Result<Link, LinkError> {
    if let Some(default) = plan.routes.iter().find(|route| route.prefix_len() == 0) {
        return Err(LinkError::DefaultRoute(*default));
    }
    let mut link = Link {
        netlink: Netlink::connect()?,
        index: plan.index,
        name: plan.name.to_owned(),
        addresses: Vec::new(),
        routes: Vec::new(),
    };
    match link.make(plan).await {
        Ok(()) => Ok(link),
        Err(error) => {
            if let Err(second) = link.tear_down().await {
                tracing::warn!(name = plan.name, error = %second, "could not undo a failed set-up");
            }
            Err(error)
        }
    }
}

/// Makes a new interface ready for somebody else to set up: gives it its MTU, and no link-local address when it comes up.
pub async fn prepare(index: u32, name: &str, mtu: u16) -> Result<(), LinkError> {
    let mut link = Link {
        netlink: Netlink::connect()?,
        index,
        name: name.to_owned(),
        addresses: Vec::new(),
        routes: Vec::new(),
    };
    link.set_mtu(mtu).await?;
    link.forgo_link_local_address().await;
    Ok(())
}

impl Link {
    /// Sets the MTU, in bytes.
    pub async fn set_mtu(&mut self, mtu: u16) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(self.index).mtu(mtu.into()).build();
        self.change(message, || format!("set the MTU to {mtu} on")).await
    }

    /// Routes `route` to the interface. Nothing happens when the kernel does so already.
    pub async fn add_route(&mut self, route: IpNet) -> Result<(), LinkError> {
        if route.prefix_len() == 0 {
            return Err(LinkError::DefaultRoute(route));
        }
        match self
            .netlink
            .routes()
            .add(self.route_message(route))
            .execute()
            .await
            .map_err(io_error)
        {
            Ok(()) => {
                self.routes.push(route);
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if self.leads_here(route).await {
                    return Ok(());
                }
                Err(LinkError::RouteTaken {
                    route,
                    name: self.name.clone(),
                })
            }
            Err(error) => Err(self.failed(format!("add the route {route} to"), error)),
        }
    }

    /// Removes a route that [`Link::add_route`] or [`set_up`] made; others are left alone.
    pub async fn remove_route(&mut self, route: IpNet) -> Result<(), LinkError> {
        let Some(at) = self.routes.iter().position(|made| *made == route) else {
            return Ok(());
        };
        let result = self
            .netlink
            .routes()
            .del(self.route_message(route))
            .execute()
            .await
            .map_err(io_error);
        match result {
            Err(error) if !is_gone(&error) => Err(self.failed(format!("remove the route {route} from"), error)),
            _ => {
                self.routes.remove(at);
                Ok(())
            }
        }
    }

    /// Removes the routes and addresses that were made, and takes the interface down. Carries on after an error, and
    /// reports the first; what is gone already, or the whole interface, is no error.
    pub async fn tear_down(mut self) -> Result<(), LinkError> {
        let mut first_error = None;
        for route in self.routes.clone().into_iter().rev() {
            first_error = first_error.or(self.remove_route(route).await.err());
        }
        for address in std::mem::take(&mut self.addresses).into_iter().rev() {
            let message = self.address_message(address);
            if let Err(error) = self.netlink.addresses().del(message).execute().await.map_err(io_error)
                && !is_gone(&error)
            {
                first_error.get_or_insert(self.failed(format!("remove the address {address} from"), error));
            }
        }
        let message = LinkUnspec::new_with_index(self.index).down().build();
        if let Err(error) = self.netlink.links().set(message).execute().await.map_err(io_error)
            && !is_gone(&error)
        {
            first_error.get_or_insert(self.failed("take down".into(), error));
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn make(&mut self, plan: Plan<'_>) -> Result<(), LinkError> {
        self.set_mtu(plan.mtu).await?;
        self.forgo_link_local_address().await;
        for address in plan.addresses {
            self.add_address(*address).await?;
        }
        let up = LinkUnspec::new_with_index(self.index).up().build();
        self.change(up, || "take up".into()).await?;
        for route in plan.routes {
            if !plan.addresses.iter().any(|address| address.trunc().contains(route)) {
                self.add_route(*route).await?;
            }
        }
        Ok(())
    }

    async fn add_address(&mut self, address: IpNet) -> Result<(), LinkError> {
        match self
            .netlink
            .addresses()
            .add(self.index, address.addr(), address.prefix_len())
            .execute()
            .await
        {
            Ok(()) => {
                self.addresses.push(address);
                Ok(())
            }
            Err(error) => match io_error(error) {
                error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                error => Err(self.failed(format!("add the address {address} to"), error)),
            },
        }
    }

    /// A tunnel has no use for a link-local address of the kernel's making, nor for the multicast that comes with it, which
    /// no peer is the destination of. Kernels without IPv6 refuse this, and need it not.
    async fn forgo_link_local_address(&mut self) {
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = LinkUnspec::new_with_index(self.index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]))
            .build();
        if let Err(error) = self.netlink.links().set(message).execute().await {
            tracing::debug!(name = self.name, error = %io_error(error), "could not switch off link-local addresses");
        }
    }

    async fn change(&mut self, message: LinkMessage, action: impl FnOnce() -> String) -> Result<(), LinkError> {
        let result = self.netlink.links().set(message).execute().await.map_err(io_error);
        result.map_err(|error| self.failed(action(), error))
    }

    /// Whether a route to exactly `route` leads out through this interface. When the kernel won't tell, it does not.
    async fn leads_here(&self, route: IpNet) -> bool {
        let mut filter = RouteMessage::default();
        filter.header.address_family = self.route_message(route).header.address_family;
        let mut routes = std::pin::pin!(self.netlink.routes().get(filter).execute());
        while let Ok(Some(message)) = routes.try_next().await {
            let is_same = message.header.table == RouteHeader::RT_TABLE_MAIN
                && message.header.destination_prefix_length == route.prefix_len()
                && message
                    .attributes
                    .contains(&RouteAttribute::Destination(RouteAddress::from(route.addr())));
            if is_same && message.attributes.contains(&RouteAttribute::Oif(self.index)) {
                return true;
            }
        }
        false
    }

    fn route_message(&self, route: IpNet) -> RouteMessage {
        let builder = RouteMessageBuilder::<IpAddr>::new()
            .output_interface(self.index)
            .destination_prefix(route.network(), route.prefix_len())
            .expect("an IpNet's prefix length fits its address family");
        // IPv4 hosts behind a tunnel are reached without a gateway; IPv6 knows no scopes.
        if route.addr().is_ipv4() {
            builder.scope(RouteScope::Link).build()
        } else {
            builder.build()
        }
    }

    fn address_message(&self, address: IpNet) -> AddressMessage {
        let (ip, prefix_len) = (address.addr(), address.prefix_len());
        let mut message = match ip {
            IpAddr::V4(ip) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
                .address(ip, prefix_len)
                .build(),
            IpAddr::V6(ip) => AddressMessageBuilder::<std::net::Ipv6Addr>::new()
                .address(ip, prefix_len)
                .build(),
        };
        message.header.index = self.index;
        // The broadcast address is the kernel's to know when removing.
        message
            .attributes
            .retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        message
    }

    /// `action` ends where the interface's name follows.
    fn failed(&self, action: String, error: std::io::Error) -> LinkError {
        LinkError::Kernel {
            action: format!("{action} {}", self.name),
            error,
        }
    }
}

/// What was to be removed is not there, or the whole interface is not.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL | libc::ENOENT | libc::ENXIO)
    )
}
