//! Whom a worker knows.
#![forbid(unsafe_code)]

use super::fading::{step, steps_since};
use crate::proto::Time;

/// Between which ports a worker has met datagrams lately: in each place one name, 40 bits of it, and the step when it last did, which comes
/// again after 26 days.
#[derive(Debug)]
pub(super) struct Met(Box<[u64; Met::LEN]>);

impl Met {
    const LEN: usize = 4096;
    const STEPS: u64 = 0xff_ffff;
    /// About 13 s. Who is silent for longer begins anew; the kernel has forgotten him long before.
    pub(super) const OVER: u64 = 96;

    /// Nobody yet.
    pub(super) fn nobody() -> Met {
        Met(Box::new([0; Met::LEN]))
    }

    /// Meets datagrams between the ports of `name`; whether they are new. What finds its place taken is not known to be.
    #[inline]
    pub(super) fn is_new(&mut self, now: Time, name: u64) -> bool {
        let word = &mut self.0[name as usize % Met::LEN];
        let is_over = *word == 0 || steps_since(*word & Met::STEPS, now, Met::STEPS) > Met::OVER;
        let is_same = *word >> 24 == name >> 24;
        if is_same || is_over {
            *word = name >> 24 << 24 | step(now, Met::STEPS);
        }
        is_over
    }
}
