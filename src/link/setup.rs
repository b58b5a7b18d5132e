//! Setting the interface up, and removing what was made.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{AddressMessageBuilder, LinkUnspec};
use serde::{Deserialize, Serialize};

use super::LinkError;
use super::guard::Guard;
use super::netlink::{Netlink, io_error, unless_gone};
use super::policy::{self, Policy};
use super::routes::{Route, Routes};

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
    /// What to route to it.
    pub routes: Routes<'a>,
}

/// An interface that is up, with a list of what was made for it.
///
/// Dropping it removes nothing: that takes a runtime, see [`Link::tear_down`]. A TUN device that disappears takes its
/// addresses and routes with it in any case, but neither rules nor filters.
pub struct Link {
    pub(super) netlink: Netlink,
    pub(super) index: u32,
    pub(super) name: String,
    addresses: Vec<IpNet>,
    pub(super) routes: Vec<Route>,
    /// And for which policy each was made.
    pub(super) rules: Vec<(Policy, RuleMessage)>,
    pub(super) guard: Option<Guard>,
}

/// Brings the interface into the state of `plan`. On an error, what was made until then is removed again.
pub async fn set_up(plan: Plan<'_>) -> Result<Link, LinkError> {
    let mut link = Link::new(plan.index, plan.name)?;
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
    let mut link = Link::new(index, name)?;
    link.set_mtu(mtu).await?;
    link.forgo_link_local_address().await;
    Ok(())
}

/// Sets the MTU of an interface that somebody else has set up, in bytes.
pub async fn set_mtu(index: u32, name: &str, mtu: u16) -> Result<(), LinkError> {
    Link::new(index, name)?.set_mtu(mtu).await
}

/// Gives an interface a description that `ip link` shows (IFLA_IFALIAS), of up to 255 bytes.
pub async fn describe(index: u32, name: &str, description: &str) -> Result<(), LinkError> {
    let message = LinkUnspec::new_with_index(index)
        .append_extra_attribute(LinkAttribute::IfAlias(description.to_owned()))
        .build();
    let mut link = Link::new(index, name)?;
    link.change(message, || "describe".into()).await
}

/// What was made for an interface, for a process that goes on with it. Rules are not in it: the kernel itself tells them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Made {
    addresses: Vec<IpNet>,
    routes: Vec<Route>,
    guard: Option<Guard>,
}

impl Link {
    /// Goes on with an interface, an index and a name, that an earlier process has set up.
    pub async fn resume(interface: (u32, &str), made: &Made, policy: Option<Policy>) -> Result<Link, LinkError> {
        let mut link = Link::new(interface.0, interface.1)?;
        link.addresses.clone_from(&made.addresses);
        link.routes.clone_from(&made.routes);
        link.guard.clone_from(&made.guard);
        if let Some(policy) = policy {
            let rules = policy::rules_of(&link.netlink, policy).await?;
            link.rules = rules.into_iter().map(|rule| (policy, rule)).collect();
        }
        Ok(link)
    }

    /// What was made, for a program that goes on with it. Dropping this leaves all as it is.
    pub fn made(&self) -> Made {
        Made {
            addresses: self.addresses.clone(),
            routes: self.routes.clone(),
            guard: self.guard.clone(),
        }
    }

    fn new(index: u32, name: &str) -> Result<Link, LinkError> {
        Ok(Link {
            netlink: Netlink::connect()?,
            index,
            name: name.to_owned(),
            addresses: Vec::new(),
            routes: Vec::new(),
            rules: Vec::new(),
            guard: None,
        })
    }

    /// Sets the MTU, in bytes.
    pub async fn set_mtu(&mut self, mtu: u16) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(self.index).mtu(mtu.into()).build();
        self.change(message, || format!("set the MTU to {mtu} on")).await
    }

    /// Removes the routes, rules and addresses that were made, and takes the interface down. Carries on after an error, and
    /// reports the first; what is gone already, or the whole interface, is no error.
    pub async fn tear_down(mut self) -> Result<(), LinkError> {
        let mut first_error = self.unroute().await.err();
        for address in self.addresses.clone().into_iter().rev() {
            first_error = first_error.or(self.remove_address(address).await.err());
        }
        let message = LinkUnspec::new_with_index(self.index).down().build();
        let result = self.netlink.links().set(message).execute().await.map_err(io_error);
        if let Err(error) = result.or_else(unless_gone) {
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
        self.raise_guard(&plan.routes, plan.addresses).await?;
        let up = LinkUnspec::new_with_index(self.index).up().build();
        self.change(up, || "take up".into()).await?;
        self.lay(&plan.routes, plan.addresses).await
    }

    /// Gives the interface an address. Nothing happens when it has it already.
    pub async fn add_address(&mut self, address: IpNet) -> Result<(), LinkError> {
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

    /// Removes an address that [`Link::add_address`] or [`set_up`] made; others are left alone.
    pub async fn remove_address(&mut self, address: IpNet) -> Result<(), LinkError> {
        let Some(at) = self.addresses.iter().position(|made| *made == address) else {
            return Ok(());
        };
        let message = self.address_message(address);
        let result = self.netlink.addresses().del(message).execute().await.map_err(io_error);
        result
            .or_else(unless_gone)
            .map_err(|error| self.failed(format!("remove the address {address} from"), error))?;
        self.addresses.remove(at);
        Ok(())
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
    pub(super) fn failed(&self, action: String, error: std::io::Error) -> LinkError {
        LinkError::Kernel {
            action: format!("{action} {}", self.name),
            error,
        }
    }
}
