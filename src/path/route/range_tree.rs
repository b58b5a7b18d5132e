//! The ranges that prefixes cut all addresses into, searched by their ends in a static B-tree.
//!
//! A lookup has no branch to mispredict, however the prefixes lie; among 100,000 it reads six nodes (IPv4) or nine
//! (IPv6), of which only the lowest are too many to stay in the cache.

use std::collections::BTreeMap;

/// A first address and a length: sorted, a prefix comes right before those inside it.
pub(super) type Prefix<A> = (A, u8);

/// The ranges that nested prefixes cut all addresses into, as a B-tree without pointers: child `i` of node `n` is node
/// `n * WIDTH + i` one level down, and key `i` of a node is the last key below child `i`.
#[derive(Debug, Clone)]
pub(super) struct RangeTree<A, T, const WIDTH: usize> {
    /// All levels, root first; each is as long as it needs to be.
    nodes: Vec<Node<A, WIDTH>>,
    /// Where each level begins in `nodes`.
    levels: Vec<usize>,
    /// The answer of each range.
    answers: Vec<Option<T>>,
}

impl<A: Address, T: Copy, const WIDTH: usize> RangeTree<A, T, WIDTH> {
    /// The ranges of `prefixes`; linear in their number.
    pub(super) fn new(prefixes: &BTreeMap<Prefix<A>, T>) -> RangeTree<A, T, WIDTH> {
        let (ends, answers) = ranges(prefixes);
        let mut bottom_up = vec![level(&ends)];
        while let Some(below) = bottom_up.last().filter(|level| level.len() > 1) {
            let last_keys: Vec<A> = below.iter().map(|node| node.0[WIDTH - 1]).collect();
            bottom_up.push(level(&last_keys));
        }
        let mut tree = RangeTree {
            nodes: Vec::new(),
            levels: Vec::new(),
            answers,
        };
        for level in bottom_up.into_iter().rev() {
            tree.levels.push(tree.nodes.len());
            tree.nodes.extend(level);
        }
        tree
    }

    /// The answer of the range that `address` lies in.
    #[inline]
    pub(super) fn lookup(&self, address: A) -> Option<T> {
        // The largest address is a key on every level, so the count of smaller keys is always less than WIDTH.
        let child = |node: usize, level: &usize| {
            let keys = &self.nodes[level + node].0;
            node * WIDTH + keys.iter().map(|&key| u32::from(key < address)).sum::<u32>() as usize
        };
        self.answers[self.levels.iter().fold(0, child)]
    }
}

/// Keys in nodes, the last one filled up with the largest address.
fn level<A: Address, const WIDTH: usize>(keys: &[A]) -> Vec<Node<A, WIDTH>> {
    let node = |keys: &[A]| {
        let mut node = Node([A::MAX; WIDTH]);
        node.0[..keys.len()].copy_from_slice(keys);
        node
    };
    keys.chunks(WIDTH).map(node).collect()
}

/// The last address and the answer of each range, in order; together they cover every address.
fn ranges<A: Address, T: Copy>(prefixes: &BTreeMap<Prefix<A>, T>) -> (Vec<A>, Vec<Option<T>>) {
    let (mut ends, mut answers) = (Vec::new(), Vec::new());
    let mut extend_to = |end: A, answer: Option<T>| {
        if ends.last().is_none_or(|&covered| covered < end) {
            ends.push(end);
            answers.push(answer);
        }
    };
    // The prefixes around the current address, outermost first.
    let mut around: Vec<(A, T)> = Vec::new();
    for (&(first, len), &value) in prefixes {
        while let Some((last, outer)) = around.pop_if(|(last, _)| *last < first) {
            extend_to(last, Some(outer));
        }
        if let Some(before) = first.before() {
            extend_to(before, around.last().map(|&(_, outer)| outer));
        }
        around.push((first.last_of_prefix(len), value));
    }
    while let Some((last, outer)) = around.pop() {
        extend_to(last, Some(outer));
    }
    extend_to(A::MAX, None);
    (ends, answers)
}

/// Range ends in order; what is unused at the end is the largest address. Never in more cache lines than needed.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Node<A, const WIDTH: usize>([A; WIDTH]);

/// An address as a number.
pub(super) trait Address: Copy + Ord {
    const MAX: Self;
    fn before(self) -> Option<Self>;
    /// The last address of the prefix of `len` bits that begins at `self`.
    fn last_of_prefix(self, len: u8) -> Self;
}

macro_rules! address {
    ($number:ty) => {
        impl Address for $number {
            const MAX: Self = <$number>::MAX;

            fn before(self) -> Option<Self> {
                self.checked_sub(1)
            }

            fn last_of_prefix(self, len: u8) -> Self {
                self | <$number>::MAX.checked_shr(len.into()).unwrap_or(0)
            }
        }
    };
}

address!(u32);
address!(u128);
