//! Which answers are waited for: told by the thread that shakes hands, asked by the one that receives.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// Classes of indices: 128 KiB of counts.
const CLASSES: usize = 1 << 16;

/// The receiver indices that answers may come to, more or less: those that share their upper 16 bits are not told apart.
///
/// These bits are random, so whoever does not see our messages hits one of `n` with the chance `n` / 65,536, and a flood
/// of answers that nobody asked for ends where it is received.
pub struct Awaited(Box<[AtomicU16]>);

impl Default for Awaited {
    fn default() -> Awaited {
        Awaited((0..CLASSES).map(|_| AtomicU16::new(0)).collect())
    }
}

impl Awaited {
    /// An answer may come to `index` from here on. (Relaxed: only after a message with the index has left, and the answer
    /// has taken its way through the kernel.)
    pub(super) fn add(&self, index: u32) {
        // No class gets near 2^16: a peer has seven indices at most, spread at random.
        self.class(index).fetch_add(1, Relaxed);
    }

    /// Takes one [`Awaited::add`] back.
    pub(super) fn remove(&self, index: u32) {
        self.class(index).fetch_sub(1, Relaxed);
    }

    /// Whether an answer to `index` may be waited for.
    pub fn contains(&self, index: u32) -> bool {
        self.class(index).load(Relaxed) != 0
    }

    fn class(&self, index: u32) -> &AtomicU16 {
        &self.0[(index >> 16) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_awaited_from_its_first_add_to_its_last_remove() {
        let awaited = Awaited::default();
        assert!(!awaited.contains(0xffff_0001));
        awaited.add(0xffff_0001);
        awaited.add(0xffff_0200);
        awaited.remove(0xffff_0001);
        assert!(awaited.contains(0xffff_0203) && !awaited.contains(0xfffe_0203));
        awaited.remove(0xffff_0200);
        assert!(!awaited.contains(0xffff_0203));
    }
}
