//! The routes of a link, and what leads packets to them.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};
use serde::{Deserialize, Serialize};

use super::LinkError;
use super::guard::Guard;
use super::layout::{self, Layout};
use super::netlink::{io_error, unless_gone};
use super::policy::{self, PROTOCOL, Policy, State};
use super::setup::Link;
use crate::config::Table;

/// What is to be routed where.
#[derive(Debug, Clone, Copy, Default)]
pub struct Routes<'a> {
    /// Networks to route to the interface.
    pub networks: &'a [IpNet],
    /// Networks not to route there, though `networks` have them.
    pub exclude: &'a [IpNet],
    /// Where the routes go.
    pub table: Table,
    /// Their metric.
    pub metric: Option<u32>,
    /// Where peers are, as far as is known: the tunnel's own packets to them must find a way outside.
    pub remotes: &'a [IpAddr],
    /// How they find it, as [`policy_for`] says.
    pub policy: Option<Policy>,
}

impl Routes<'_> {
    fn layout(&self) -> Layout {
        layout::lay_out(self.table, self.networks, self.exclude, self.remotes)
    }
}

/// The policy that `routes` need: none while no route would catch the tunnel's own packets; the one that they name, if any.
/// `mark`: what the tunnel's packets are marked with already.
///
/// # Errors
/// [`LinkError::SecondDefault`].
pub async fn policy_for(routes: &Routes<'_>, mark: Option<u32>) -> Result<Option<Policy>, LinkError> {
    let own = routes.layout().own;
    if own.is_empty() {
        return Ok(None);
    }
    if routes.policy.is_some() {
        return Ok(routes.policy);
    }
    let has = |ipv6| own.iter().any(|network| is_ipv6(network) == ipv6);
    Ok(Some(policy::choose(mark, [has(false), has(true)]).await?))
}

/// One route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Route {
    network: IpNet,
    table: u32,
    metric: Option<u32>,
    /// Not to the interface: look further.
    thrown: bool,
}

impl Link {
    /// Routes as `routes` say, and no longer as they said before. `addresses` are those of the interface: what the kernel
    /// routes for them needs no route of ours.
    ///
    /// After an error some of the change may have been made; calling this with what was asked for before undoes it.
    pub async fn route(&mut self, routes: &Routes<'_>, addresses: &[IpNet]) -> Result<(), LinkError> {
        self.raise_guard(routes, addresses).await?;
        self.lay(routes, addresses).await
    }

    /// What must stand before the first packet goes out through the tunnel: without it a strict reverse path filter would
    /// drop the answer.
    pub(super) async fn raise_guard(&mut self, routes: &Routes<'_>, addresses: &[IpNet]) -> Result<(), LinkError> {
        let own = routes.layout().own;
        if let Some(policy) = routes.policy.filter(|_| !own.is_empty()) {
            let ipv4 = own.iter().any(|network| !is_ipv6(network));
            // Known before it is there, so that it does not stay.
            let guard = self.guard.insert(Guard::of(&self.name, ipv4).await?);
            guard.raise(&self.name, policy.mark, addresses).await?;
        }
        Ok(())
    }

    /// [`Link::route`], once the guard stands.
    pub(super) async fn lay(&mut self, routes: &Routes<'_>, addresses: &[IpNet]) -> Result<(), LinkError> {
        let layout = routes.layout();
        let wanted = wanted(routes, &layout, addresses);
        // First routes into the tunnel, then exceptions, then what leads packets there.
        for route in &wanted {
            if !self.routes.contains(route) {
                self.add_route(*route).await?;
            }
        }
        self.lead(routes.policy, &layout.own).await?;
        for route in self.routes.clone().into_iter().rev() {
            if !wanted.contains(&route) {
                self.remove_route(route).await?;
            }
        }
        if layout.own.is_empty() {
            self.lower_guard().await?;
        }
        Ok(())
    }

    /// Makes those routes again that the kernel has taken along with an address that went.
    pub async fn mend(&mut self, routes: &Routes<'_>, addresses: &[IpNet]) -> Result<(), LinkError> {
        for route in wanted(routes, &routes.layout(), addresses) {
            self.add_route(route).await?;
        }
        Ok(())
    }

    /// Undoes all that [`Link::route`] did. Carries on after an error, and reports the first.
    pub(super) async fn unroute(&mut self) -> Result<(), LinkError> {
        let mut first_error = self.lead(None, &[]).await.err();
        first_error = first_error.or(self.lower_guard().await.err());
        for route in self.routes.clone().into_iter().rev() {
            first_error = first_error.or(self.remove_route(route).await.err());
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Makes the rules of each family that `own` has a network of, and removes all others of ours.
    async fn lead(&mut self, policy: Option<Policy>, own: &[IpNet]) -> Result<(), LinkError> {
        let is_led = |ipv6| own.iter().any(|network| is_ipv6(network) == ipv6);
        let mut first_error = None;
        // Whenever this is dropped half-way, the list has every rule that may exist.
        for (made_for, rule) in self.rules.clone().into_iter().rev() {
            if Some(made_for) != policy || !is_led(policy::is_ipv6(&rule)) {
                first_error = first_error.or(policy::remove_rule(&self.netlink, rule.clone()).await.err());
                self.rules.retain(|(_, made)| *made != rule);
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        let Some(policy) = policy else { return Ok(()) };
        let states = State::read(&self.netlink).await?;
        for (state, ipv6) in states.iter().zip([false, true]) {
            let is_made = self.rules.iter().any(|(_, rule)| policy::is_ipv6(rule) == ipv6);
            if is_led(ipv6) && !is_made {
                for rule in policy::pair(policy, state) {
                    self.rules.push((policy, rule.clone()));
                    if let Err(error) = policy::add_rule(&self.netlink, rule).await {
                        self.rules.pop();
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    async fn lower_guard(&mut self) -> Result<(), LinkError> {
        // Known until it is gone, so that it does not stay where nobody waits for the end of this.
        let Some(guard) = &self.guard else { return Ok(()) };
        // Where that can't be told, the sysctl stays on: it does no harm.
        let in_use = policy::is_in_use(&self.netlink).await.unwrap_or(true);
        guard.lower(!in_use).await?;
        self.guard = None;
        Ok(())
    }

    async fn add_route(&mut self, route: Route) -> Result<(), LinkError> {
        let message = self.route_message(route);
        match self.netlink.routes().add(message).execute().await.map_err(io_error) {
            Ok(()) if self.routes.contains(&route) => {}
            Ok(()) => self.routes.push(route),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if !self.has_route(route).await {
                    return Err(LinkError::RouteTaken {
                        route: route.network,
                        name: self.name.clone(),
                    });
                }
            }
            Err(error) => return Err(self.failed(format!("add the route {} to", route.network), error)),
        }
        Ok(())
    }

    async fn remove_route(&mut self, route: Route) -> Result<(), LinkError> {
        let message = self.route_message(route);
        let result = self.netlink.routes().del(message).execute().await.map_err(io_error);
        result
            .or_else(unless_gone)
            .map_err(|error| self.failed(format!("remove the route {} from", route.network), error))?;
        self.routes.retain(|made| *made != route);
        Ok(())
    }

    /// Whether this very route is there already, whoever made it. When the kernel won't tell, it is not.
    async fn has_route(&self, route: Route) -> bool {
        let mut filter = RouteMessage::default();
        filter.header.address_family = self.route_message(route).header.address_family;
        let mut routes = std::pin::pin!(self.netlink.routes().get(filter).execute());
        while let Ok(Some(message)) = routes.try_next().await {
            let has = |attribute: &RouteAttribute| message.attributes.contains(attribute);
            let is_same = has(&RouteAttribute::Table(route.table))
                && message.header.destination_prefix_length == route.network.prefix_len()
                && (route.network.prefix_len() == 0
                    || has(&RouteAttribute::Destination(RouteAddress::from(route.network.addr()))));
            let is_there = match route.thrown {
                true => message.header.kind == RouteType::Throw,
                false => has(&RouteAttribute::Oif(self.index)),
            };
            if is_same && is_there {
                return true;
            }
        }
        false
    }

    fn route_message(&self, route: Route) -> RouteMessage {
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.network.network(), route.network.prefix_len())
            .expect("an IpNet's prefix length fits its address family")
            .table_id(route.table)
            .protocol(PROTOCOL);
        if let Some(metric) = route.metric {
            builder = builder.priority(metric);
        }
        if route.thrown {
            return builder.kind(RouteType::Throw).build();
        }
        builder = builder.output_interface(self.index);
        // IPv4 hosts behind a tunnel are reached without a gateway; IPv6 knows no scopes.
        if is_ipv6(&route.network) {
            builder.build()
        } else {
            builder.scope(RouteScope::Link).build()
        }
    }
}

/// Every route of `layout`, exceptions last.
fn wanted(routes: &Routes<'_>, layout: &Layout, addresses: &[IpNet]) -> Vec<Route> {
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    let (plain, number) = match routes.table {
        Table::Number(number) => (number, Some(number)),
        Table::Auto | Table::Off => (main, None),
    };
    let own = routes.policy.map(|policy| policy.table);
    let is_routed =
        |network: &IpNet| plain == main && addresses.iter().any(|address| address.trunc().contains(network));
    let metric = routes.metric;
    let into = |network: &IpNet, table| Route {
        network: *network,
        table,
        metric,
        thrown: false,
    };
    let exception = |network: &IpNet, table| Route {
        network: *network,
        table,
        metric: None,
        thrown: true,
    };
    let plain = layout
        .plain
        .iter()
        .filter(|network| !is_routed(network))
        .map(|network| into(network, plain));
    let own_routes = layout.own.iter().filter_map(|network| Some(into(network, own?)));
    let thrown = layout
        .thrown
        .iter()
        .filter_map(|network| Some(exception(network, number.or(own)?)));
    plain.chain(own_routes).chain(thrown).collect()
}

fn is_ipv6(network: &IpNet) -> bool {
    matches!(network, IpNet::V6(_))
}
