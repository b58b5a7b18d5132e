//! Which route goes where: pure, so that it can be tested without a kernel.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::Table;

/// Routes by where they are to stand. No duplicates in any list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Layout {
    /// In the main table or the configured one, into the tunnel.
    pub(super) plain: Vec<IpNet>,
    /// In the tunnel's own table, which packets with its mark don't see.
    pub(super) own: Vec<IpNet>,
    /// In the table that has what they are cut out of: not here, look further.
    pub(super) thrown: Vec<IpNet>,
}

/// Whether a route to `network` would catch the tunnel's own packets to one of `remotes`, as far as can be told: a default
/// route does in any case, since peers come from anywhere.
pub(super) fn catches_own_packets(network: &IpNet, remotes: &[IpAddr]) -> bool {
    network.prefix_len() == 0 || remotes.iter().any(|remote| network.contains(remote))
}

/// Lays out the routes to `networks` without those to `exclude`; see [`super::Plan`] for the arguments.
pub(super) fn lay_out(table: Table, networks: &[IpNet], exclude: &[IpNet], remotes: &[IpAddr]) -> Layout {
    let mut layout = Layout::default();
    let inside = |network: &IpNet| !exclude.iter().any(|excluded| excluded.contains(network));
    for network in networks.iter().filter(|network| inside(network)) {
        let network = network.trunc();
        match table {
            Table::Off => {}
            Table::Number(_) => layout.plain.push(network),
            Table::Auto if catches_own_packets(&network, remotes) => layout.own.push(network),
            // Behind the main table there is nothing to look further in.
            Table::Auto => layout.plain.extend(without(network, exclude)),
        }
    }
    let with_exceptions = match table {
        Table::Number(_) => &layout.plain,
        _ => &layout.own,
    };
    let is_cut_out = |excluded: &&IpNet| with_exceptions.iter().any(|network| network.contains(*excluded));
    layout.thrown = exclude.iter().filter(is_cut_out).map(IpNet::trunc).collect();
    for list in [&mut layout.plain, &mut layout.own, &mut layout.thrown] {
        list.sort();
        list.dedup();
    }
    layout
}

/// The fewest networks that make up `network` less `exclude`.
fn without(network: IpNet, exclude: &[IpNet]) -> Vec<IpNet> {
    let mut rest = vec![network];
    for excluded in exclude {
        rest = rest
            .into_iter()
            .flat_map(|part| halves_outside(part, excluded))
            .collect();
    }
    rest
}

/// `part` less `excluded`: halved until the halves lie wholly on one side.
fn halves_outside(part: IpNet, excluded: &IpNet) -> Vec<IpNet> {
    if excluded.contains(&part) {
        return Vec::new();
    }
    if !part.contains(excluded) {
        return vec![part];
    }
    let mut outside = Vec::new();
    let mut inner = part;
    while inner.prefix_len() < excluded.prefix_len() {
        let [low, high] = halves(inner);
        let (with, without) = if low.contains(excluded) {
            (low, high)
        } else {
            (high, low)
        };
        outside.push(without);
        inner = with;
    }
    outside
}

/// Both halves of a network that is more than one address.
fn halves(network: IpNet) -> [IpNet; 2] {
    let len = network.prefix_len() + 1;
    match network {
        IpNet::V4(network) => {
            let low = network.network();
            let high = (u32::from(low) | 1 << (32 - len)).into();
            [low, high].map(|address| Ipv4Net::new_assert(address, len).into())
        }
        IpNet::V6(network) => {
            let low = network.network();
            let high = (u128::from(low) | 1 << (128 - len)).into();
            [low, high].map(|address| Ipv6Net::new_assert(address, len).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    fn layout(table: Table, networks: &[&str], exclude: &[&str], remotes: &[&str]) -> [String; 3] {
        let remotes: Vec<IpAddr> = remotes.iter().map(|text| text.parse().expect(text)).collect();
        let Layout { plain, own, thrown } = lay_out(table, &nets(networks), &nets(exclude), &remotes);
        [plain, own, thrown].map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_would_catch_the_tunnels_own_packets_gets_a_table_of_its_own() {
        let all = ["0.0.0.0/0", "::/0", "10.0.0.0/8"];
        assert_eq!(
            layout(Table::Auto, &all, &[], &[]),
            ["10.0.0.0/8", "0.0.0.0/0 ::/0", ""]
        );
        let halves = ["0.0.0.0/1", "128.0.0.0/1"];
        let expected = ["0.0.0.0/1", "128.0.0.0/1", ""];
        assert_eq!(
            layout(Table::Auto, &halves, &[], &["192.0.2.1", "2001:db8::1"]),
            expected
        );
        assert_eq!(layout(Table::Off, &all, &[], &[]), ["", "", ""]);
        let number = Table::Number(7);
        assert_eq!(
            layout(number, &all, &[], &["10.0.0.1"]),
            ["0.0.0.0/0 10.0.0.0/8 ::/0", "", ""]
        );
    }

    #[test]
    fn what_is_excluded_is_cut_out_of_the_main_table_and_thrown_from_others() {
        let excluded = ["10.1.0.0/16", "192.168.0.0/16", "fd00::/8"];
        let expected = ["10.0.0.0/16", "0.0.0.0/0", "10.1.0.0/16 192.168.0.0/16"];
        assert_eq!(
            layout(Table::Auto, &["0.0.0.0/0", "10.0.0.0/15"], &excluded, &[]),
            expected
        );
        let expected = ["10.0.0.0/15", "", "10.1.0.0/16"];
        let networks = ["10.0.0.0/15", "10.1.2.0/24", "fd01::/16"];
        assert_eq!(layout(Table::Number(7), &networks, &excluded, &[]), expected);
        let expected = ["2001:db8:0:1::/64 2001:db8:0:2::/63", "", ""];
        assert_eq!(
            layout(Table::Auto, &["2001:db8::/62"], &["2001:db8::/64"], &[]),
            expected
        );
    }

    proptest! {
        #[test]
        fn an_address_is_in_the_rest_when_it_was_in_the_network_and_is_not_excluded(
            network in (any::<u32>(), 0u8..=8),
            exclude in prop::collection::vec((any::<u32>(), 1u8..=32), 0..6),
            addresses in prop::collection::vec(any::<u32>(), 1..20),
        ) {
            let net = |(bits, len): (u32, u8)| IpNet::new(Ipv4Addr::from(bits).into(), len).expect("at most 32").trunc();
            let network = net(network);
            let exclude: Vec<IpNet> = exclude.into_iter().map(net).collect();
            let rest = without(network, &exclude);
            // The edges of what is excluded are where mistakes would be.
            let edges = exclude.iter().flat_map(|net| [net.network(), net.broadcast()]);
            for address in addresses.into_iter().map(|bits| IpAddr::from(Ipv4Addr::from(bits))).chain(edges) {
                let wanted = network.contains(&address) && !exclude.iter().any(|net| net.contains(&address));
                prop_assert_eq!(rest.iter().filter(|net| net.contains(&address)).count(), usize::from(wanted));
            }
        }
    }
}
