//! How many receive buffers the kernel has at a time.
//!
//! Where one buffer brings 64 KiB, a pass over many of them has left the cache by the time it is worked off; where one brings
//! a single small packet, a pass over few is hardly worth its kernel entry. Nobody knows beforehand which it will be, so
//! what the last pass brought decides: fewer at once where its buffers were full, up to twice as many where they were not and the
//! kernel has used up all that it had. Pools give out last what came in first, so the buffers beyond that stay untouched.

/// What a full buffer brings, in bytes.
const FULL: usize = 1 << 16;

/// How many buffers of one group the kernel has at most.
#[derive(Debug)]
pub(super) struct Allowance {
    now: usize,
    /// How many full ones a pass should bring.
    full: usize,
    most: usize,
    /// What came since the kernel was last given buffers.
    buffers: usize,
    bytes: usize,
}

impl Allowance {
    /// From `full`, which is what the kernel has where buffers come full, up to `most`.
    pub(super) fn new(full: u16, most: u16) -> Allowance {
        Allowance {
            now: usize::from(full.min(most)),
            full: usize::from(full),
            most: usize::from(most),
            buffers: 0,
            bytes: 0,
        }
    }

    /// A buffer has come back with `bytes` in it.
    pub(super) fn used(&mut self, bytes: usize) {
        self.buffers += 1;
        self.bytes += bytes;
    }

    /// How many the kernel may have now, of which it has `left`.
    pub(super) fn buffers(&mut self, left: usize) -> usize {
        let is_telling = left == 0 || self.bytes >= FULL;
        if is_telling && self.buffers > 0 {
            let mean = (self.bytes / self.buffers).max(1);
            let wanted = (self.full * FULL / mean).min(2 * self.now);
            self.now = wanted.clamp(self.full.min(self.most), self.most);
        }
        (self.buffers, self.bytes) = (0, 0);
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(passes: &[(usize, usize, usize)]) -> usize {
        let mut allowance = Allowance::new(8, 64);
        for &(buffers, bytes, left) in passes {
            (0..buffers).for_each(|_| allowance.used(bytes));
            allowance.buffers(left);
        }
        allowance.buffers(1)
    }

    #[test]
    fn few_buffers_for_super_packets_and_all_for_small_ones() {
        assert_eq!(after(&[]), 8);
        assert_eq!(after(&[(8, 65_000, 0)]), 8);
        assert_eq!(after(&[(8, 1_452, 0)]), 16);
        assert_eq!(after(&[(8, 1_452, 0), (16, 64, 0), (32, 0, 0)]), 64);
        assert_eq!(after(&[(8, 32_768, 0)]), 16);
        assert_eq!(after(&[(8, 64, 0), (16, 64, 0), (32, 64, 0), (2, 65_000, 62)]), 8);
    }

    #[test]
    fn a_pass_of_few_small_packets_changes_nothing() {
        assert_eq!(after(&[(7, 100, 1)]), 8);
        assert_eq!(after(&[(8, 100, 0), (15, 100, 1)]), 16);
        assert_eq!(after(&[(0, 0, 0)]), 8);
    }
}
