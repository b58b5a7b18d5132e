//! Halves of a session as data with which another process goes on, once this one has let go of them.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{Key, OpenHalf, SealHalf, SessionFacts};
use crate::crypto::{Choice, KEY_LEN};
use crate::proto::hex::Hex;
use crate::proto::replay::{BITMAP_LEN, ReplayWindow};

/// How many counters a half that seals leaves out when another process takes it over.
///
/// None of them can have been used: whoever tells a half's state has it back from the worker that sealed with it, and for
/// keys that several workers share, from all of them. The gap is for the mistake that nobody has thought of, because a
/// counter that comes twice under one key betrays what both records hold. It costs the native suite a 64th of the
/// records after which it makes new keys, and the far end nothing: its window moves with the highest counter.
pub const COUNTER_SKIP: u64 = 1 << 20;

/// A half that seals. Whoever has it must be the only one to go on with it, and only once.
#[derive(Debug, Serialize, Deserialize)]
pub struct SealState {
    receiver: u32,
    /// The next counter, [`COUNTER_SKIP`] above what was used.
    next: u64,
    key: Hex<KEY_LEN>,
}

/// A half that opens, with all that it has seen.
#[derive(Debug, Serialize, Deserialize)]
pub struct OpenState {
    index: u32,
    /// The replay window: one above the highest counter, and which were seen.
    edge: u64,
    seen: Box<Hex<BITMAP_LEN>>,
    key: Hex<KEY_LEN>,
}

impl SealState {
    /// One without a key.
    pub(in crate::proto) fn blank() -> SealState {
        SealState {
            receiver: 0,
            next: 0,
            key: Hex::new(&[0; KEY_LEN]),
        }
    }
}

impl OpenState {
    /// One without a key.
    pub(in crate::proto) fn blank() -> OpenState {
        OpenState {
            index: 0,
            edge: 0,
            seen: Box::new(Hex::new(&[0; BITMAP_LEN])),
            key: Hex::new(&[0; KEY_LEN]),
        }
    }
}

impl SealHalf {
    pub(in crate::proto) fn facts(&self) -> &SessionFacts {
        &self.facts
    }

    /// What another process goes on with. No half of this key may seal any more, in this process either unless it comes
    /// from [`SealHalf::resume`].
    pub(in crate::proto) fn state(&self) -> SealState {
        SealState {
            receiver: self.receiver,
            next: self.key.next.0.load(Ordering::Acquire).saturating_add(COUNTER_SKIP),
            key: Hex(self.key.bytes.clone()),
        }
    }

    /// Goes on from what [`SealHalf::state`] told.
    pub(in crate::proto) fn resume(state: &SealState, facts: SessionFacts, crypto: Choice) -> SealHalf {
        let key = Key::new(facts.suite, crypto, &state.key.0);
        SealHalf::counting_from(state.next, facts, state.receiver, key)
    }
}

impl OpenHalf {
    pub(in crate::proto) fn facts(&self) -> &SessionFacts {
        &self.facts
    }

    /// What another process goes on with. This half may open nothing any more: the other would open it again.
    pub(in crate::proto) fn state(&self) -> OpenState {
        OpenState {
            index: self.local_index,
            edge: self.window.edge(),
            seen: Box::new(Hex::new(&self.window.bitmap())),
            key: Hex(self.bytes.clone()),
        }
    }

    /// Goes on from what [`OpenHalf::state`] told.
    pub(in crate::proto) fn resume(state: &OpenState, facts: SessionFacts, crypto: Choice) -> OpenHalf {
        let window = ReplayWindow::from_parts(state.edge, &state.seen.0);
        let key = Key::new(facts.suite, crypto, &state.key.0);
        OpenHalf::with_window(window, facts, state.index, key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{START, datagram, pair};
    use super::super::{OpenError, Refused};
    use super::*;
    use crate::proto::suite::Suite;
    use crate::wire::message::DataHeader;

    fn again(seal: &SealHalf) -> SealHalf {
        let json = serde_json::to_string(&seal.state()).unwrap();
        SealHalf::resume(&serde_json::from_str(&json).unwrap(), *seal.facts(), Choice::Auto)
    }

    fn again_open(open: &OpenHalf) -> OpenHalf {
        let json = serde_json::to_string(&open.state()).unwrap();
        OpenHalf::resume(&serde_json::from_str(&json).unwrap(), *open.facts(), Choice::Auto)
    }

    fn sealed(half: &mut SealHalf) -> (u64, Vec<u8>) {
        let mut record = datagram(b"text");
        half.seal(START, 0, &mut record).unwrap();
        (DataHeader::parse(&record).unwrap().counter, record)
    }

    fn opened(half: &mut OpenHalf, record: &[u8]) -> Result<(), OpenError> {
        let mut record = record.to_vec();
        half.open(START, &DataHeader::parse(&record).unwrap(), &mut record)
            .map(drop)
    }

    proptest! {
        // Records are sealed, some arrive, and either end is handed over at any time: every record that arrives is opened
        // once and never again, and no counter comes twice.
        #[test]
        fn no_counter_comes_twice_and_no_record_is_opened_twice(
            steps in prop::collection::vec((0usize..12, any::<prop::sample::Index>()), 1..60),
            wireguard: bool,
        ) {
            let suite = [Suite::Native, Suite::WireGuard][usize::from(wireguard)];
            let (mut seal, mut open) = pair(suite, true);
            let mut counters = Vec::new();
            let mut records: Vec<(Vec<u8>, bool)> = Vec::new();
            let mut hand_overs = 0;
            for (step, index) in steps {
                match step {
                    0 => (seal, hand_overs) = (again(&seal), hand_overs + 1),
                    1 => open = again_open(&open),
                    2..7 => {
                        let (counter, record) = sealed(&mut seal);
                        counters.push(counter);
                        records.push((record, false));
                    }
                    _ if records.is_empty() => {}
                    _ => {
                        let (record, was_opened) = index.get(&records).clone();
                        let at = index.index(records.len());
                        match opened(&mut open, &record) {
                            Ok(()) => prop_assert!(!std::mem::replace(&mut records[at].1, true), "opened twice"),
                            // What is older than the window may have been opened or not.
                            Err(OpenError::TooOld) => {}
                            Err(error) => prop_assert!(was_opened && error == OpenError::Replayed, "{error}"),
                        }
                    }
                }
            }
            prop_assert!(counters.is_sorted_by(|before, after| before < after));
            let last = counters.last().copied().unwrap_or(0);
            prop_assert!(last <= hand_overs * COUNTER_SKIP + counters.len() as u64);
        }
    }

    #[test]
    fn after_a_hand_over_counters_go_on_above_the_gap_and_replays_stay_refused() {
        for suite in Suite::ALL {
            let (mut seal, mut open) = pair(suite, true);
            let before: Vec<_> = (0..3).map(|_| sealed(&mut seal).1).collect();
            opened(&mut open, &before[2]).unwrap();
            opened(&mut open, &before[0]).unwrap();
            let (mut seal, mut open) = (again(&seal), again_open(&open));
            assert_eq!(opened(&mut open, &before[0]), Err(OpenError::Replayed));
            assert_eq!(opened(&mut open, &before[2]), Err(OpenError::Replayed));
            assert_eq!(opened(&mut open, &before[1]), Ok(()), "it was on its way");
            let (counter, record) = sealed(&mut seal);
            assert_eq!(counter, 3 + COUNTER_SKIP);
            assert_eq!(opened(&mut open, &record), Ok(()));
        }
    }

    #[test]
    fn a_key_that_is_almost_used_up_is_used_up_and_wraps_nowhere() {
        let (seal, _) = pair(Suite::WireGuard, true);
        for used in [Suite::WireGuard.reject_after_messages() - 1, u64::MAX] {
            seal.key.next.0.store(used, Ordering::Relaxed);
            assert_eq!(again(&seal).seal(START, 0, &mut datagram(b"")), Err(Refused::Exhausted));
        }
    }

    #[test]
    fn no_state_shows_its_key() {
        let (seal, open) = pair(Suite::Native, true);
        let shown = format!("{:?} {:?}", seal.state(), open.state());
        assert!(!shown.contains("0909"), "{shown}");
    }
}
