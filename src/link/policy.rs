//! Policy routing: a table of the tunnel's own that every packet is led to but the tunnel's own ones, as wg-quick does it.
//!
//! Per address family two rules, in front of whatever rules there are:
//!
//! ```text
//! not fwmark MARK lookup main suppress_prefixlength 0    the main table, but not its default route
//! not fwmark MARK lookup TABLE                           the tunnel's routes
//! ```
//!
//! Rules outlive the interface that they were made for. Ours bear [`PROTOCOL`], as our routes do; a rule whose table has no
//! route of ours into an interface belongs to a daemon that is gone.

use futures_util::TryStreamExt as _;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use serde::{Deserialize, Serialize};

use super::LinkError;
use super::netlink::{Netlink, io_error, unless_gone};

/// Who made a route or a rule (`rtm_protocol`, `FRA_PROTOCOL`): a number that nobody else has in iproute2's rt_protos.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(114);

/// Where the search for a free table begins: as wg-quick, with WireGuard's port.
const TABLE_FIRST: u32 = 51820;
/// RT_TABLE_DEFAULT and up to RT_TABLE_LOCAL (linux/rtnetlink.h) have owners.
const TABLES_TAKEN: std::ops::RangeInclusive<u32> = 253..=255;
/// The kernel's rule that leads to the main table (net/ipv4/fib_rules.c).
const PRIORITY_MAIN: u32 = 32766;

/// A table, and the mark of packets that don't see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// SO_MARK of the tunnel's own packets; not 0.
    pub mark: u32,
    /// The table's number.
    pub table: u32,
}

/// All routes and rules of one address family.
pub(super) struct State {
    version: IpVersion,
    routes: Vec<RouteMessage>,
    rules: Vec<RuleMessage>,
}

impl State {
    /// Both families; without IPv6 in the kernel its lists are empty.
    pub(super) async fn read(netlink: &Netlink) -> Result<[State; 2], LinkError> {
        Ok([
            State::of(netlink, IpVersion::V4).await?,
            State::of(netlink, IpVersion::V6).await?,
        ])
    }

    async fn of(netlink: &Netlink, version: IpVersion) -> Result<State, LinkError> {
        let failed = |action: &str, error| LinkError::Kernel {
            action: action.into(),
            error,
        };
        let mut filter = RouteMessage::default();
        filter.header.address_family = family(&version);
        let routes = netlink.routes().get(filter).execute().try_collect().await;
        let routes = known(routes).map_err(|error| failed("list routes", error))?;
        let rules = netlink.rules().get(version.clone()).execute().try_collect().await;
        let rules = known(rules).map_err(|error| failed("list routing rules", error))?;
        Ok(State { version, routes, rules })
    }

    /// Rules of ours whose tunnel runs, and those whose tunnel is gone.
    fn rules(&self) -> (Vec<&RuleMessage>, Vec<&RuleMessage>) {
        let ours = |rule: &&RuleMessage| rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
        let own_tables: Vec<(Option<u32>, u32)> = self
            .rules
            .iter()
            .filter(ours)
            .map(|rule| (mark_of(rule), table_of_rule(rule)))
            .filter(|(_, table)| *table != u32::from(RouteHeader::RT_TABLE_MAIN))
            .collect();
        // Both rules of a pair have the same mark.
        let lives = |rule: &&RuleMessage| {
            own_tables
                .iter()
                .any(|(mark, table)| *mark == mark_of(rule) && self.leads_into_a_tunnel(*table))
        };
        self.rules.iter().filter(ours).partition(lives)
    }

    /// Exceptions in tables that have nothing to except from.
    fn orphaned_exceptions(&self) -> impl Iterator<Item = &RouteMessage> {
        self.routes.iter().filter(|route| {
            route.header.protocol == PROTOCOL
                && route.header.kind == RouteType::Throw
                && !self.leads_into_a_tunnel(table_of_route(route))
        })
    }

    fn leads_into_a_tunnel(&self, table: u32) -> bool {
        self.routes.iter().any(|route| {
            route.header.protocol == PROTOCOL
                && route.header.kind == RouteType::Unicast
                && table_of_route(route) == table
        })
    }

    /// Whether a running tunnel of ours leads all packets of this family to itself.
    fn is_taken(&self) -> bool {
        !self.rules().0.is_empty()
    }

    fn is_used(&self, table: u32) -> bool {
        self.routes.iter().any(|route| table_of_route(route) == table)
            || self.rules.iter().any(|rule| table_of_rule(rule) == table)
    }

    /// A priority with the one before it for a pair of rules, in front of all others but the local table's.
    fn priority_for_pair(&self) -> u32 {
        let first = self
            .rules
            .iter()
            .filter_map(priority_of)
            .filter(|priority| *priority > 0)
            .min();
        first
            .unwrap_or(PRIORITY_MAIN)
            .min(PRIORITY_MAIN)
            .saturating_sub(2)
            .max(1)
    }
}

/// Chooses a table that nobody uses, and a mark: `mark` where one is configured, else the table's number. `families`: for
/// IPv4 and for IPv6, whether packets of it are to be led there.
///
/// # Errors
/// [`LinkError::SecondDefault`] when another tunnel has them already: each would lead the other's packets to itself.
pub(super) async fn choose(mark: Option<u32>, families: [bool; 2]) -> Result<Policy, LinkError> {
    let states = State::read(&Netlink::connect()?).await?;
    let mut wanted = states.iter().zip(families).filter(|(_, wanted)| *wanted);
    if let Some((state, _)) = wanted.find(|(state, _)| state.is_taken()) {
        return Err(LinkError::SecondDefault {
            family: if state.version == IpVersion::V4 { "IPv4" } else { "IPv6" },
        });
    }
    let is_free = |table: &u32| !TABLES_TAKEN.contains(table) && !states.iter().any(|state| state.is_used(*table));
    let table = mark.into_iter().chain(TABLE_FIRST..).find(is_free);
    // The kernel has no room for as many tables as there are numbers.
    let table = table.unwrap_or(TABLE_FIRST);
    Ok(Policy {
        mark: mark.unwrap_or(table),
        table,
    })
}

/// The pair of rules of one family, the one to be made first in front.
pub(super) fn pair(policy: Policy, state: &State) -> [RuleMessage; 2] {
    let priority = state.priority_for_pair();
    let rule = |priority, table: u32, more: Option<RuleAttribute>| {
        let mut rule = RuleMessage::default();
        rule.header.family = family(&state.version);
        rule.header.action = RuleAction::ToTable;
        rule.header.flags = RuleFlags::Invert;
        // Numbers that a byte has no room for stand in the attribute alone.
        rule.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        rule.attributes = vec![
            RuleAttribute::Table(table),
            RuleAttribute::Priority(priority),
            RuleAttribute::FwMark(policy.mark),
            RuleAttribute::Protocol(PROTOCOL),
        ];
        rule.attributes.extend(more);
        rule
    };
    [
        rule(
            priority,
            RouteHeader::RT_TABLE_MAIN.into(),
            Some(RuleAttribute::SuppressPrefixLen(0)),
        ),
        rule(priority + 1, policy.table, None),
    ]
}

/// Removes rules and exceptions of tunnels that are gone; tells what it removed.
pub(super) async fn remove_leftovers(netlink: &Netlink) -> Result<Vec<String>, LinkError> {
    let mut removed = Vec::new();
    for state in State::read(netlink).await? {
        for rule in state.rules().1 {
            remove_rule(netlink, rule.clone()).await?;
            removed.push(format!("a routing rule to table {}", table_of_rule(rule)));
        }
        for route in state.orphaned_exceptions() {
            let result = netlink.routes().del(route.clone()).execute().await.map_err(io_error);
            result.or_else(unless_gone).map_err(|error| LinkError::Kernel {
                action: format!("remove an exception from table {}", table_of_route(route)),
                error,
            })?;
            removed.push(format!("an exception in table {}", table_of_route(route)));
        }
    }
    Ok(removed)
}

/// The rules of a tunnel that runs, in the order in which they were made.
pub(super) async fn rules_of(netlink: &Netlink, policy: Policy) -> Result<Vec<RuleMessage>, LinkError> {
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    let mut rules = Vec::new();
    for state in State::read(netlink).await? {
        let is_its = |rule: &&&RuleMessage| {
            mark_of(rule) == Some(policy.mark) && [main, policy.table].contains(&table_of_rule(rule))
        };
        rules.extend(state.rules().0.iter().filter(is_its).map(|rule| (*rule).clone()));
    }
    Ok(rules)
}

/// Whether any tunnel of ours has rules for IPv4, which is what the sysctl is for.
pub(super) async fn is_in_use(netlink: &Netlink) -> Result<bool, LinkError> {
    Ok(State::of(netlink, IpVersion::V4).await?.is_taken())
}

pub(super) async fn add_rule(netlink: &Netlink, rule: RuleMessage) -> Result<(), LinkError> {
    let action = format!("add a routing rule to table {}", table_of_rule(&rule));
    let mut request = netlink.rules().add();
    *request.message_mut() = rule;
    request.execute().await.map_err(|error| LinkError::Kernel {
        action,
        error: io_error(error),
    })
}

/// That it is gone already is no error.
pub(super) async fn remove_rule(netlink: &Netlink, rule: RuleMessage) -> Result<(), LinkError> {
    let action = format!("remove a routing rule to table {}", table_of_rule(&rule));
    let result = netlink.rules().del(rule).execute().await.map_err(io_error);
    result
        .or_else(unless_gone)
        .map_err(|error| LinkError::Kernel { action, error })
}

pub(super) fn is_ipv6(rule: &RuleMessage) -> bool {
    rule.header.family == AddressFamily::Inet6
}

fn family(version: &IpVersion) -> AddressFamily {
    match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    }
}

/// What a kernel without the family has of it: nothing.
fn known<T>(list: Result<Vec<T>, rtnetlink::Error>) -> Result<Vec<T>, std::io::Error> {
    list.or_else(|error| match io_error(error) {
        error if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(Vec::new()),
        error => Err(error),
    })
}

fn table_of_rule(rule: &RuleMessage) -> u32 {
    let attribute = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(rule.header.table.into())
}

fn table_of_route(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(route.header.table.into())
}

fn mark_of(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(mark) => Some(*mark),
        _ => None,
    })
}

fn priority_of(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
}
