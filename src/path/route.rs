//! Allowed IPs: which peer an address belongs to, by the longest prefix that contains it.
//!
//! [`Routes`] is what is configured, and cheap to edit. [`RouteTable`] is what packets are looked up in: prefixes nest
//! but never cross, so they cut the address space into ranges of one answer each, and the longest match is the range
//! that an address lies in. Workers share a table in an `Arc`; an edit makes a new one.

mod range_tree;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use range_tree::{Prefix, RangeTree};

/// Prefixes and the value of each. Host bits of a prefix are ignored, as `wg` does.
#[derive(Debug, Clone)]
pub struct Routes<T> {
    v4: BTreeMap<Prefix<u32>, T>,
    v6: BTreeMap<Prefix<u128>, T>,
}

impl<T> Default for Routes<T> {
    fn default() -> Routes<T> {
        Routes {
            v4: BTreeMap::new(),
            v6: BTreeMap::new(),
        }
    }
}

impl<T: Copy> Routes<T> {
    /// No prefixes.
    pub fn new() -> Routes<T> {
        Routes::default()
    }

    /// Gives `prefix` to `value`; the value that had it before.
    pub fn insert(&mut self, prefix: IpNet, value: T) -> Option<T> {
        match prefix.trunc() {
            IpNet::V4(net) => self.v4.insert((net.addr().to_bits(), net.prefix_len()), value),
            IpNet::V6(net) => self.v6.insert((net.addr().to_bits(), net.prefix_len()), value),
        }
    }

    /// The value of exactly `prefix`.
    pub fn get(&self, prefix: &IpNet) -> Option<T> {
        match prefix.trunc() {
            IpNet::V4(net) => self.v4.get(&(net.addr().to_bits(), net.prefix_len())).copied(),
            IpNet::V6(net) => self.v6.get(&(net.addr().to_bits(), net.prefix_len())).copied(),
        }
    }

    /// Takes exactly `prefix` out; the value it had.
    pub fn remove(&mut self, prefix: &IpNet) -> Option<T> {
        match prefix.trunc() {
            IpNet::V4(net) => self.v4.remove(&(net.addr().to_bits(), net.prefix_len())),
            IpNet::V6(net) => self.v6.remove(&(net.addr().to_bits(), net.prefix_len())),
        }
    }

    /// Takes every prefix out whose value `matches`; how many there were.
    pub fn remove_all(&mut self, mut matches: impl FnMut(&T) -> bool) -> usize {
        let before = self.len();
        self.v4.retain(|_, value| !matches(value));
        self.v6.retain(|_, value| !matches(value));
        before - self.len()
    }

    /// Every prefix and its value: IPv4 first, each family in address order, outer before inner.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, T)> {
        let v4 = self
            .v4
            .iter()
            .map(|(&(first, len), &value)| (Ipv4Net::new(first.into(), len).map(IpNet::V4), value));
        let v6 = self
            .v6
            .iter()
            .map(|(&(first, len), &value)| (Ipv6Net::new(first.into(), len).map(IpNet::V6), value));
        v4.chain(v6)
            .map(|(net, value)| (net.expect("the length came from a prefix of the same family"), value))
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are no prefixes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The table to look these prefixes up in. Linear in their number.
    pub fn table(&self) -> RouteTable<T> {
        RouteTable {
            v4: RangeTree::new(&self.v4),
            v6: RangeTree::new(&self.v6),
        }
    }
}

/// Keys per node of the IPv4 tree. `bench/route.rs` at 10 to 100,000 prefixes: 16 is slower throughout, 4 among 100,000.
const KEYS_V4: usize = 8;
/// Keys per node of the IPv6 tree, a cache line: 8 and 16 are slower at 10 and 1,000 prefixes, and no faster at 100,000.
const KEYS_V6: usize = 4;

/// A snapshot of [`Routes`] for lookups.
#[derive(Debug, Clone)]
pub struct RouteTable<T> {
    v4: RangeTree<u32, T, KEYS_V4>,
    v6: RangeTree<u128, T, KEYS_V6>,
}

impl<T: Copy> RouteTable<T> {
    /// The value of the longest prefix that contains `address`.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => self.lookup_v4(address.octets()),
            IpAddr::V6(address) => self.lookup_v6(address.octets()),
        }
    }

    /// [`lookup`](Self::lookup) of an address as it stands in an IPv4 header.
    #[inline]
    pub fn lookup_v4(&self, address: [u8; 4]) -> Option<T> {
        self.v4.lookup(Ipv4Addr::from(address).to_bits())
    }

    /// [`lookup`](Self::lookup) of an address as it stands in an IPv6 header.
    #[inline]
    pub fn lookup_v6(&self, address: [u8; 16]) -> Option<T> {
        self.v6.lookup(Ipv6Addr::from(address).to_bits())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(prefixes: &[(&str, char)]) -> Routes<char> {
        let mut routes = Routes::new();
        for (prefix, value) in prefixes {
            routes.insert(prefix.parse().expect("a prefix"), *value);
        }
        routes
    }

    #[track_caller]
    fn assert_lookups(routes: &Routes<char>, expected: &[(&str, Option<char>)]) {
        let table = routes.table();
        for (address, value) in expected {
            assert_eq!(table.lookup(address.parse().expect("an address")), *value, "{address}");
        }
    }

    #[test]
    fn the_longest_prefix_wins_in_ipv4() {
        let routes = routes(&[
            ("198.51.100.0/24", 'a'),
            ("198.51.100.4/32", 'b'),
            ("198.51.0.0/16", 'c'),
            ("203.0.113.64/27", 'd'),
            ("203.0.113.65/27", 'e'), // The same prefix as d's: e takes it.
            ("0.0.0.0/0", 'f'),
            ("172.20.16.0/20", 'g'),
            ("172.20.27.128/25", 'h'),
            ("10.0.0.0/25", 'i'),
            ("10.0.0.128/25", 'j'),
        ]);
        assert_eq!(routes.len(), 9);
        assert_lookups(
            &routes,
            &[
                ("198.51.100.20", Some('a')),
                ("198.51.100.0", Some('a')),
                ("198.51.100.3", Some('a')),
                ("198.51.100.4", Some('b')),
                ("198.51.100.5", Some('a')),
                ("198.51.100.255", Some('a')),
                ("198.51.101.0", Some('c')),
                ("198.51.7.182", Some('c')),
                ("203.0.113.63", Some('f')),
                ("203.0.113.68", Some('e')),
                ("203.0.113.96", Some('f')),
                ("172.20.20.26", Some('g')),
                ("172.20.31.3", Some('g')),
                ("172.20.27.211", Some('h')),
                ("10.0.0.127", Some('i')),
                ("10.0.0.128", Some('j')),
                ("10.0.1.0", Some('f')),
                ("0.0.0.0", Some('f')),
                ("255.255.255.255", Some('f')),
                ("::", None),
            ],
        );
    }

    #[test]
    fn the_longest_prefix_wins_in_ipv6() {
        let routes = routes(&[
            ("2001:db8:6:b0::/64", 'a'),
            ("2001:db8:6:b0::5:43/128", 'b'),
            ("2001:db8::/32", 'c'),
            ("3fff:1:2:800::/56", 'd'),
            ("fd00::/8", 'e'),
        ]);
        assert_lookups(
            &routes,
            &[
                ("2001:db8:6:b0::5:42", Some('a')),
                ("2001:db8:6:b0::5:43", Some('b')),
                ("2001:db8:6:b0:ffff:ffff:ffff:ffff", Some('a')),
                ("2001:db8:6:b1::", Some('c')),
                ("3fff:1:2:806::16", Some('d')),
                ("3fff:1:2:900::", None),
                ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Some('e')),
                ("fe00::", None),
                ("::", None),
                ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
                ("0.0.0.0", None),
            ],
        );
    }

    #[test]
    fn prefixes_at_both_ends_of_the_address_space_have_exact_borders() {
        let routes = routes(&[
            ("0.0.0.0/32", 'a'),
            ("255.255.255.255/32", 'z'),
            ("128.0.0.0/1", 'm'),
            ("::/128", 'n'),
        ]);
        assert_lookups(
            &routes,
            &[
                ("0.0.0.0", Some('a')),
                ("0.0.0.1", None),
                ("127.255.255.255", None),
                ("128.0.0.0", Some('m')),
                ("255.255.255.254", Some('m')),
                ("255.255.255.255", Some('z')),
                ("::", Some('n')),
                ("::1", None),
            ],
        );
    }

    #[test]
    fn an_empty_table_knows_no_address() {
        assert_lookups(
            &Routes::new(),
            &[("10.0.0.1", None), ("::1", None), ("255.255.255.255", None)],
        );
    }

    #[test]
    fn removing_a_prefix_uncovers_the_one_around_it_and_leaves_those_inside() {
        let mut routes = routes(&[
            ("10.0.0.0/8", 'a'),
            ("10.1.0.0/16", 'b'),
            ("10.1.1.0/24", 'c'),
            ("fd::/16", 'b'),
        ]);
        let middle: IpNet = "10.1.99.99/16".parse().expect("a prefix");
        assert_eq!(routes.get(&middle), Some('b'));
        assert_eq!(routes.remove(&middle), Some('b'));
        assert_eq!((routes.get(&middle), routes.remove(&middle)), (None, None));
        assert_lookups(
            &routes,
            &[("10.1.2.1", Some('a')), ("10.1.1.1", Some('c')), ("fd::1", Some('b'))],
        );
        assert_eq!(routes.remove_all(|&value| value == 'b'), 1);
        assert_lookups(&routes, &[("10.1.1.1", Some('c')), ("fd::1", None)]);
        assert_eq!(routes.remove_all(|_| true), 2);
        assert!(routes.is_empty());
    }

    #[test]
    fn iteration_gives_back_what_was_inserted_outer_before_inner() {
        let routes = routes(&[
            ("fd::/16", 'd'),
            ("10.1.0.0/16", 'b'),
            ("10.0.0.0/8", 'a'),
            ("10.1.0.0/32", 'c'),
        ]);
        let listed: Vec<String> = routes
            .iter()
            .map(|(prefix, value)| format!("{prefix} {value}"))
            .collect();
        assert_eq!(listed, ["10.0.0.0/8 a", "10.1.0.0/16 b", "10.1.0.0/32 c", "fd::/16 d"]);
    }

    /// The slow twin: a list that is searched from end to end.
    #[derive(Default)]
    struct Scan(Vec<(IpNet, u16)>);

    impl Scan {
        fn remove(&mut self, prefix: &IpNet) -> Option<u16> {
            let at = self.0.iter().position(|(other, _)| *other == prefix.trunc())?;
            Some(self.0.swap_remove(at).1)
        }

        fn insert(&mut self, prefix: IpNet, value: u16) -> Option<u16> {
            let before = self.remove(&prefix);
            self.0.push((prefix.trunc(), value));
            before
        }

        fn lookup(&self, address: IpAddr) -> Option<u16> {
            let containing = self.0.iter().filter(|(prefix, _)| prefix.contains(&address));
            containing
                .max_by_key(|(prefix, _)| prefix.prefix_len())
                .map(|&(_, value)| value)
        }
    }

    #[derive(Debug, Clone)]
    enum Operation {
        Insert(IpNet, u16),
        Remove(IpNet),
        RemoveAll(u16),
    }

    /// Prefixes from few bit patterns, so that they nest, repeat and touch.
    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<u32>(), 0..=32u8).prop_map(|(bits, len)| {
            Ipv4Net::new((bits & 0xc1c0_00c1).into(), len)
                .expect("at most 32")
                .into()
        });
        let v6 = (any::<u128>(), 0..=128u8).prop_map(|(bits, len)| {
            Ipv6Net::new((bits & (0xc1 << 120 | 0xc1)).into(), len)
                .expect("at most 128")
                .into()
        });
        prop_oneof![v4, v6]
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            8 => (prefix(), 0..20u16).prop_map(|(prefix, value)| Operation::Insert(prefix, value)),
            3 => prefix().prop_map(Operation::Remove),
            1 => (0..20u16).prop_map(Operation::RemoveAll),
        ]
    }

    /// The addresses next to every border, where a range could be one too long or too short.
    fn around_borders(prefix: &IpNet) -> Vec<IpAddr> {
        match prefix.trunc() {
            IpNet::V4(net) => [net.network().to_bits(), net.broadcast().to_bits()]
                .iter()
                .flat_map(|&edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)])
                .map(|bits| IpAddr::V4(bits.into()))
                .collect(),
            IpNet::V6(net) => [net.network().to_bits(), net.broadcast().to_bits()]
                .iter()
                .flat_map(|&edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)])
                .map(|bits| IpAddr::V6(bits.into()))
                .collect(),
        }
    }

    proptest! {
        #[test]
        fn random_operations_give_what_a_linear_scan_gives(
            operations in prop::collection::vec(operation(), 0..400),
            elsewhere in prop::collection::vec(any::<IpAddr>(), 20),
        ) {
            let (mut routes, mut scan) = (Routes::new(), Scan::default());
            let mut addresses = elsewhere;
            for operation in operations {
                match operation {
                    Operation::Insert(prefix, value) => {
                        addresses.extend(around_borders(&prefix));
                        prop_assert_eq!(routes.insert(prefix, value), scan.insert(prefix, value));
                    }
                    Operation::Remove(prefix) => prop_assert_eq!(routes.remove(&prefix), scan.remove(&prefix)),
                    Operation::RemoveAll(value) => {
                        let before = scan.0.len();
                        scan.0.retain(|&(_, other)| other != value);
                        prop_assert_eq!(routes.remove_all(|&other| other == value), before - scan.0.len());
                    }
                }
            }
            prop_assert_eq!(routes.len(), scan.0.len());
            let table = routes.table();
            for address in addresses {
                prop_assert_eq!(table.lookup(address), scan.lookup(address), "{}", address);
            }
        }
    }
}
