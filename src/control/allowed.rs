//! Which peer each allowed IP belongs to, to be asked both ways. A prefix belongs to one peer at most: giving it to
//! another takes it from the first, as in WireGuard.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::path::route::{RouteTable, Routes};
use crate::proto::PeerId;

/// All allowed IPs.
#[derive(Default)]
pub(super) struct AllowedIps {
    routes: Routes<PeerId>,
    /// The same from the other side, so that a peer's prefixes are found without looking at everybody's.
    of_peer: BTreeMap<PeerId, BTreeSet<IpNet>>,
    changed: bool,
}

impl AllowedIps {
    /// Gives `prefix` to `peer`, whoever had it.
    pub(super) fn insert(&mut self, prefix: IpNet, peer: PeerId) {
        let prefix = prefix.trunc();
        match self.routes.insert(prefix, peer) {
            Some(owner) if owner == peer => return,
            Some(owner) => self.forget(&prefix, owner),
            None => {}
        }
        self.of_peer.entry(peer).or_default().insert(prefix);
        self.changed = true;
    }

    /// Takes `prefix` from `peer`; nothing happens when it is not the peer's.
    pub(super) fn remove(&mut self, prefix: IpNet, peer: PeerId) {
        let prefix = prefix.trunc();
        if self.routes.get(&prefix) == Some(peer) {
            self.routes.remove(&prefix);
            self.forget(&prefix, peer);
            self.changed = true;
        }
    }

    /// Takes every prefix from `peer`.
    pub(super) fn clear(&mut self, peer: PeerId) {
        for prefix in self.of_peer.remove(&peer).unwrap_or_default() {
            self.routes.remove(&prefix);
            self.changed = true;
        }
    }

    /// The prefixes of `peer`, in order.
    pub(super) fn of(&self, peer: PeerId) -> Vec<IpNet> {
        self.of_peer
            .get(&peer)
            .map_or_else(Vec::new, |prefixes| prefixes.iter().copied().collect())
    }

    /// The table for packets, if it is not what it was at the last call.
    pub(super) fn changed_table(&mut self) -> Option<RouteTable<PeerId>> {
        std::mem::take(&mut self.changed).then(|| self.routes.table())
    }

    fn forget(&mut self, prefix: &IpNet, peer: PeerId) {
        if let Some(prefixes) = self.of_peer.get_mut(&peer) {
            prefixes.remove(prefix);
            if prefixes.is_empty() {
                self.of_peer.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    #[test]
    fn a_prefix_moves_to_the_peer_that_it_is_given_to() {
        let mut allowed = AllowedIps::default();
        let (a, b) = (PeerId(1), PeerId(2));
        allowed.insert(net("10.0.0.7/8"), a);
        allowed.insert(net("10.1.0.0/16"), a);
        let before = allowed.changed_table().expect("two prefixes are new");
        assert_eq!(before.lookup("10.1.0.1".parse().expect("ip")), Some(a));
        allowed.insert(net("10.1.0.0/16"), b);
        let after = allowed.changed_table().expect("one prefix moved");
        assert_eq!(after.lookup("10.1.0.1".parse().expect("ip")), Some(b));
        assert_eq!(after.lookup("10.2.0.1".parse().expect("ip")), Some(a));
        assert_eq!(
            (allowed.of(a), allowed.of(b)),
            (vec![net("10.0.0.0/8")], vec![net("10.1.0.0/16")])
        );
    }

    #[test]
    fn only_its_owner_loses_a_prefix() {
        let mut allowed = AllowedIps::default();
        let (a, b) = (PeerId(1), PeerId(2));
        allowed.insert(net("fd00::/8"), a);
        assert!(allowed.changed_table().is_some());
        allowed.remove(net("fd00::/8"), b);
        allowed.insert(net("fd00::1/8"), a);
        allowed.clear(b);
        assert!(allowed.changed_table().is_none(), "nothing has changed");
        allowed.remove(net("fd00::/8"), a);
        let table = allowed.changed_table().expect("a prefix went");
        assert_eq!(table.lookup("fd00::1".parse().expect("ip")), None);
    }

    #[derive(Debug, Clone)]
    enum Operation {
        Insert(IpNet, u32),
        Remove(IpNet, u32),
        Clear(u32),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let prefix = (0..8u32, 28..=32u8)
            .prop_map(|(host, len)| IpNet::new(std::net::Ipv4Addr::from(host << 1).into(), len).expect("at most 32"));
        prop_oneof![
            6 => (prefix.clone(), 0..4u32).prop_map(|(prefix, peer)| Operation::Insert(prefix, peer)),
            3 => (prefix, 0..4u32).prop_map(|(prefix, peer)| Operation::Remove(prefix, peer)),
            1 => (0..4u32).prop_map(Operation::Clear),
        ]
    }

    proptest! {
        #[test]
        fn both_sides_agree_with_a_plain_list(operations in prop::collection::vec(operation(), 0..100)) {
            let mut allowed = AllowedIps::default();
            let mut list: Vec<(IpNet, u32)> = Vec::new();
            for operation in operations {
                match operation {
                    Operation::Insert(prefix, peer) => {
                        list.retain(|(other, _)| *other != prefix.trunc());
                        list.push((prefix.trunc(), peer));
                        allowed.insert(prefix, PeerId(peer));
                    }
                    Operation::Remove(prefix, peer) => {
                        list.retain(|entry| *entry != (prefix.trunc(), peer));
                        allowed.remove(prefix, PeerId(peer));
                    }
                    Operation::Clear(peer) => {
                        list.retain(|(_, owner)| *owner != peer);
                        allowed.clear(PeerId(peer));
                    }
                }
            }
            list.sort();
            for peer in 0..4 {
                let expected: Vec<IpNet> =
                    list.iter().filter(|(_, owner)| *owner == peer).map(|(prefix, _)| *prefix).collect();
                prop_assert_eq!(allowed.of(PeerId(peer)), expected);
            }
            let mut routed: Vec<_> = allowed.routes.iter().map(|(prefix, peer)| (prefix, peer.0)).collect();
            routed.sort();
            prop_assert_eq!(routed, list);
        }
    }
}
