//! Overlapping prefixes -> disjoint ranges, each its longest prefix's: what an interval map of nftables can hold.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range of addresses of one family, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: IpAddr,
    pub(super) last: IpAddr,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The ranges of one family, ascending, each with the owner of the longest prefix that covers it. No prefix stands twice
/// in `prefixes`; those of the other family are passed over.
pub(super) fn disjoint<T: Copy + PartialEq>(
    prefixes: impl IntoIterator<Item = (IpNet, T)>,
    ipv6: bool,
) -> Vec<(Range, T)> {
    let mut prefixes: Vec<(IpNet, T)> = prefixes
        .into_iter()
        .filter(|(network, _)| matches!(network, IpNet::V6(_)) == ipv6)
        .collect();
    // A prefix comes before those inside it.
    prefixes.sort_by_key(|(network, _)| (network.network(), network.prefix_len()));
    let mut sweep = Sweep {
        ranges: Vec::with_capacity(prefixes.len()),
        open: Vec::new(),
        next: 0,
        ipv6,
    };
    for (network, owner) in prefixes {
        let first = bits(network.network());
        sweep.close_before(first);
        sweep.advance(first);
        sweep.open.push((bits(network.broadcast()), owner));
    }
    while sweep.close() {}
    sweep.ranges
}

/// Goes through the addresses upwards.
struct Sweep<T> {
    ranges: Vec<(Range, T)>,
    /// Last address and owner of the prefixes around `next`, the longest on top.
    open: Vec<(u128, T)>,
    /// Addresses below it are done.
    next: u128,
    ipv6: bool,
}

impl<T: Copy + PartialEq> Sweep<T> {
    /// Closes the prefixes that end before `first`.
    fn close_before(&mut self, first: u128) {
        while self.open.last().is_some_and(|(last, _)| *last < first) {
            self.close();
        }
    }

    /// Gives the addresses up to `first` to the prefix around them.
    fn advance(&mut self, first: u128) {
        if let Some((_, owner)) = self.open.last().copied()
            && self.next < first
        {
            self.push(first - 1, owner);
        }
        self.next = first;
    }

    /// Ends the innermost prefix; false when there is none.
    fn close(&mut self) -> bool {
        let Some((last, owner)) = self.open.pop() else {
            return false;
        };
        if self.next <= last {
            self.push(last, owner);
            match last.checked_add(1) {
                Some(next) => self.next = next,
                // The last address of all: what is still open ends here too.
                None => self.open.clear(),
            }
        }
        true
    }

    fn push(&mut self, last: u128, owner: T) {
        let range = Range {
            first: address(self.next, self.ipv6),
            last: address(last, self.ipv6),
        };
        self.ranges.push((range, owner));
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Of what [`bits`] made.
fn address(bits: u128, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::from_bits(bits).into()
    } else {
        Ipv4Addr::from_bits(bits as u32).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(prefixes: &[(&str, char)], ipv6: bool) -> String {
        let prefixes = prefixes.iter().map(|(text, owner)| (text.parse().unwrap(), *owner));
        let ranges = disjoint(prefixes, ipv6);
        let texts: Vec<String> = ranges.iter().map(|(range, owner)| format!("{range} {owner}")).collect();
        texts.join(", ")
    }

    #[test]
    fn a_longer_prefix_is_cut_out_of_the_one_around_it() {
        let prefixes = [
            ("10.0.0.0/8", 'a'),
            ("10.1.0.0/16", 'b'),
            ("10.1.2.3/32", 'c'),
            ("fd::/16", 'd'),
        ];
        assert_eq!(
            shown(&prefixes, false),
            "10.0.0.0-10.0.255.255 a, 10.1.0.0-10.1.2.2 b, 10.1.2.3 c, 10.1.2.4-10.1.255.255 b, \
             10.2.0.0-10.255.255.255 a"
        );
        assert_eq!(shown(&prefixes, true), "fd::-fd:ffff:ffff:ffff:ffff:ffff:ffff:ffff d");
        assert_eq!(
            shown(
                &[("0.0.0.0/0", 'a'), ("255.255.255.255/32", 'b'), ("0.0.0.0/32", 'c')],
                false
            ),
            "0.0.0.0 c, 0.0.0.1-255.255.255.254 a, 255.255.255.255 b"
        );
        assert_eq!(
            shown(&[("::/0", 'a'), ("ffff::/16", 'b')], true),
            "::-fffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff a, ffff::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff b"
        );
        assert_eq!(shown(&[], false), "");
    }

    proptest! {
        #[test]
        fn the_owner_of_every_address_is_that_of_its_longest_prefix(
            prefixes in prop::collection::btree_map((any::<u8>(), 24u8..=32), any::<u8>(), 0..12),
        ) {
            let prefixes: std::collections::BTreeMap<IpNet, u8> = prefixes
                .into_iter()
                .map(|((low, len), owner)| (IpNet::new(IpAddr::from([255, 255, 255, low]), len).unwrap().trunc(), owner))
                .collect();
            let ranges = disjoint(prefixes.clone(), false);
            prop_assert!(ranges.is_sorted_by(|(a, _), (b, _)| a.last < b.first), "{ranges:?}");
            for low in 0..=255 {
                let address = IpAddr::from([255, 255, 255, low]);
                let longest = prefixes.iter().filter(|(network, _)| network.contains(&address));
                let longest = longest.max_by_key(|(network, _)| network.prefix_len()).map(|(_, owner)| *owner);
                let range = ranges.iter().find(|(range, _)| (range.first..=range.last).contains(&address));
                prop_assert_eq!(range.map(|(_, owner)| *owner), longest);
            }
        }
    }
}
