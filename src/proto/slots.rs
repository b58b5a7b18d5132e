//! The three sessions that a peer may have: previous, current, next (WireGuard paper, section 6.3; the order of
//! replacement is noise_keypairs' in the kernel's noise.c).
//!
//! One seals with `current` and opens with all three. An initiator's new session is current at once. A responder's is
//! `next` until the first data message shows that the initiator has the keys: before that the answer may be lost.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::endpoint::SessionId;
use super::index::Base;
use super::limits::REJECT_AFTER_TIME;
use super::suite::Suite;
use super::time::Time;

/// What the control thread remembers of a session; the keys are with the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) session: SessionId,
    pub(super) suite: Suite,
    pub(super) created: Time,
    /// This end's index.
    pub(super) base: Base,
    /// Lanes of the other end.
    pub(super) remote_lanes: u8,
}

impl Slot {
    pub(super) fn expires(&self) -> Time {
        self.created + REJECT_AFTER_TIME
    }
}

/// A peer's sessions.
#[derive(Debug, Default)]
pub(super) struct Slots {
    previous: Option<Slot>,
    current: Option<Slot>,
    next: Option<Slot>,
    /// When `current` became it.
    current_since: Time,
}

/// Which of its peer's sessions one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing {
    /// Opens what is still on its way.
    Previous,
    /// Seals.
    Current,
    /// Waits for confirmation.
    Next,
}

/// Sessions that fell out.
pub(super) type Retired = [Option<Slot>; 3];

impl Slots {
    /// The session to seal with.
    pub(super) fn current(&self) -> Option<&Slot> {
        self.current.as_ref()
    }

    /// The session to seal with, unless its time is up.
    pub(super) fn usable(&self, now: Time) -> Option<&Slot> {
        self.current().filter(|slot| now < slot.expires())
    }

    /// Since when [`current`](Slots::current) is it.
    pub(super) fn current_since(&self) -> Option<Time> {
        self.current().map(|_| self.current_since)
    }

    /// The answered session that is not confirmed.
    pub(super) fn next(&self) -> Option<&Slot> {
        self.next.as_ref()
    }

    /// Every session, the oldest first.
    pub(super) fn each(&self) -> impl Iterator<Item = (Standing, &Slot)> {
        let all = [
            (Standing::Previous, &self.previous),
            (Standing::Current, &self.current),
            (Standing::Next, &self.next),
        ];
        all.into_iter()
            .filter_map(|(standing, slot)| Some((standing, slot.as_ref()?)))
    }

    /// Puts a session where it was in an earlier process.
    pub(super) fn put_back(&mut self, standing: Standing, slot: Slot, current_since: Time) {
        *match standing {
            Standing::Previous => &mut self.previous,
            Standing::Current => &mut self.current,
            Standing::Next => &mut self.next,
        } = Some(slot);
        self.current_since = current_since;
    }

    /// Takes in a session that this end initiated.
    pub(super) fn initiated(&mut self, now: Time, slot: Slot) -> Retired {
        self.current_since = now;
        // When both ends began a handshake at the same time, the other end may seal with what is `next` here.
        let (previous, retired) = match self.next.take() {
            Some(next) => (Some(next), self.current.take()),
            None => (self.current.take(), None),
        };
        let oldest = std::mem::replace(&mut self.previous, previous);
        self.current = Some(slot);
        [oldest, retired, None]
    }

    /// Takes in a session that this end answered.
    pub(super) fn answered(&mut self, slot: Slot) -> Retired {
        // A peer that asks anew has no use for a session before the current one.
        [self.previous.take(), self.next.replace(slot), None]
    }

    /// The first data message came on `session`: if it is the next one, it becomes the current one.
    pub(super) fn confirm(&mut self, now: Time, session: SessionId) -> Option<(Slot, Retired)> {
        let slot = self.next.take_if(|next| next.session == session)?;
        self.current_since = now;
        let oldest = std::mem::replace(&mut self.previous, self.current.replace(slot));
        Some((slot, [oldest, None, None]))
    }

    /// Takes out all that `which` says.
    pub(super) fn take(&mut self, which: impl Fn(&Slot) -> bool) -> Retired {
        [&mut self.previous, &mut self.current, &mut self.next].map(|slot| slot.take_if(|slot| which(slot)))
    }

    /// When the first of them expires.
    pub(super) fn expires(&self) -> Option<Time> {
        [&self.previous, &self.current, &self.next]
            .into_iter()
            .flatten()
            .map(Slot::expires)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(session: u64) -> Slot {
        Slot {
            session: SessionId(session),
            suite: Suite::Native,
            created: Time::from_nanos(session),
            base: Base::of(0),
            remote_lanes: 1,
        }
    }

    fn ids(slots: &Slots) -> [Option<u64>; 3] {
        [&slots.previous, &slots.current, &slots.next].map(|slot| slot.map(|slot| slot.session.0))
    }

    fn gone(retired: Retired) -> Vec<u64> {
        retired.into_iter().flatten().map(|slot| slot.session.0).collect()
    }

    const NONE: [u64; 0] = [];
    const NOW: Time = Time::from_nanos(1);

    #[test]
    fn an_initiators_sessions_move_from_current_to_previous_and_out() {
        let mut slots = Slots::default();
        assert_eq!(gone(slots.initiated(NOW, slot(1))), NONE);
        assert_eq!(gone(slots.initiated(NOW, slot(2))), NONE);
        assert_eq!(ids(&slots), [Some(1), Some(2), None]);
        assert_eq!(gone(slots.initiated(NOW, slot(3))), [1]);
        assert_eq!(ids(&slots), [Some(2), Some(3), None]);
    }

    #[test]
    fn a_responders_session_waits_for_confirmation() {
        let mut slots = Slots::default();
        assert_eq!(gone(slots.answered(slot(1))), NONE);
        assert_eq!(ids(&slots), [None, None, Some(1)]);
        assert!(slots.confirm(NOW, SessionId(9)).is_none());
        assert_eq!(gone(slots.confirm(NOW, SessionId(1)).unwrap().1), NONE);
        assert!(slots.confirm(NOW, SessionId(1)).is_none(), "once");
        assert_eq!(gone(slots.answered(slot(2))), NONE);
        assert_eq!(gone(slots.answered(slot(3))), [2], "an unconfirmed one gives way");
        assert_eq!(ids(&slots), [None, Some(1), Some(3)]);
        slots.confirm(NOW, SessionId(3)).unwrap();
        assert_eq!(ids(&slots), [Some(1), Some(3), None]);
        assert_eq!(gone(slots.answered(slot(4))), [1]);
    }

    #[test]
    fn with_simultaneous_handshakes_the_answered_session_stays_open() {
        let mut slots = Slots::default();
        slots.initiated(NOW, slot(1));
        slots.answered(slot(2));
        assert_eq!(gone(slots.initiated(NOW, slot(3))), [1]);
        assert_eq!(ids(&slots), [Some(2), Some(3), None]);
    }

    #[test]
    fn the_oldest_session_expires_first() {
        let mut slots = Slots::default();
        assert_eq!(slots.expires(), None);
        slots.initiated(NOW, slot(1));
        slots.initiated(NOW, slot(2));
        assert_eq!(slots.expires(), Some(slot(1).expires()));
        assert_eq!(gone(slots.take(|slot| slot.session.0 < 2)), [1]);
        assert_eq!(slots.expires(), Some(slot(2).expires()));
        assert!(
            slots
                .usable(Time::from_nanos(slot(2).expires().as_nanos() - 1))
                .is_some()
        );
        assert!(slots.usable(slot(2).expires()).is_none());
    }
}
