//! Timers: a few deadlines per peer, and the order of all peers' earliest ones.
//!
//! Packets move deadlines far more often than deadlines pass. So a peer's place in the [`Schedule`] moves forward at
//! once, but back only when its old time has come; an idle peer has no place and costs nothing.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::endpoint::PeerId;
use super::time::Time;

/// What may come due for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(usize)]
pub(super) enum Timer {
    /// Begin a handshake, or send the next initiation of one.
    Handshake,
    /// Ask in the other suite too.
    Fallback,
    /// Something was received and not answered.
    Keepalive,
    /// Something was sent and not answered.
    DeadPeer,
    /// Nothing went either way.
    PersistentKeepalive,
    /// A session's time is up.
    Expiry,
    /// There was no new session for so long that nothing secret should be left.
    ZeroKeys,
}

impl Timer {
    const ALL: [Timer; 7] = [
        Timer::Handshake,
        Timer::Fallback,
        Timer::Keepalive,
        Timer::DeadPeer,
        Timer::PersistentKeepalive,
        Timer::Expiry,
        Timer::ZeroKeys,
    ];
}

/// A time that does not come.
const NEVER: Time = Time::from_nanos(u64::MAX);

/// One peer's deadlines.
#[derive(Debug, Clone)]
pub(super) struct Timers([Time; Timer::ALL.len()]);

impl Default for Timers {
    fn default() -> Timers {
        Timers([NEVER; Timer::ALL.len()])
    }
}

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Time) {
        self.0[timer as usize] = at;
    }

    /// Sets or, for `None`, clears.
    pub(super) fn set_or_clear(&mut self, timer: Timer, at: Option<Time>) {
        self.set(timer, at.unwrap_or(NEVER));
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.set(timer, NEVER);
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.0[timer as usize] != NEVER
    }

    /// Those that are set.
    pub(super) fn each(&self) -> impl Iterator<Item = (Timer, Time)> + '_ {
        let set = Timer::ALL.into_iter().filter(|&timer| self.is_set(timer));
        set.map(|timer| (timer, self.0[timer as usize]))
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Time> {
        self.0.into_iter().min().filter(|&at| at != NEVER)
    }

    /// Takes the earliest deadline that has come, and clears it.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<Timer> {
        let timer = Timer::ALL.into_iter().min_by_key(|&timer| self.0[timer as usize])?;
        let due = self.is_set(timer) && self.0[timer as usize] <= now;
        due.then(|| {
            self.clear(timer);
            timer
        })
    }
}

/// A peer's place in the [`Schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place(Option<Time>);

/// Peers in the order in which they have to be looked at.
#[derive(Default)]
pub(super) struct Schedule(BTreeSet<(Time, PeerId)>);

impl Schedule {
    /// When a peer has to be looked at next.
    pub(super) fn first(&self) -> Option<Time> {
        self.0.first().map(|&(at, _)| at)
    }

    /// Sees to it that `peer` is looked at by `next`; a later time changes nothing.
    pub(super) fn ensure(&mut self, peer: PeerId, place: &mut Place, next: Option<Time>) {
        let Some(next) = next else { return };
        if place.0.is_some_and(|at| at <= next) {
            return;
        }
        self.forget(peer, place);
        self.0.insert((next, peer));
        place.0 = Some(next);
    }

    /// Takes the first peer whose time has come; its place is void then.
    pub(super) fn pop(&mut self, now: Time) -> Option<PeerId> {
        match self.first() {
            Some(at) if at <= now => self.0.pop_first().map(|(_, peer)| peer),
            _ => None,
        }
    }

    /// How many peers have a place.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Removes `peer`.
    pub(super) fn forget(&mut self, peer: PeerId, place: &mut Place) {
        if let Some(at) = place.0.take() {
            self.0.remove(&(at, peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(nanos: u64) -> Time {
        Time::from_nanos(nanos)
    }

    #[test]
    fn due_timers_come_in_the_order_of_their_deadlines() {
        let mut timers = Timers::default();
        assert_eq!(timers.next(), None);
        assert_eq!(timers.pop_due(at(u64::MAX)), None);
        timers.set(Timer::Expiry, at(1));
        timers.set(Timer::Handshake, at(3));
        timers.set(Timer::Keepalive, at(2));
        timers.set(Timer::DeadPeer, at(9));
        timers.clear(Timer::DeadPeer);
        assert_eq!(timers.next(), Some(at(1)));
        let due: Vec<Timer> = std::iter::from_fn(|| timers.pop_due(at(2))).collect();
        assert_eq!(due, [Timer::Expiry, Timer::Keepalive]);
        assert_eq!(timers.next(), Some(at(3)));
    }

    #[test]
    fn a_peer_moves_forward_at_once_and_back_when_its_time_has_come() {
        let (mut schedule, mut place) = (Schedule::default(), Place::default());
        schedule.ensure(PeerId(1), &mut place, None);
        assert_eq!(schedule.first(), None);
        for (next, first) in [(9, 9), (5, 5), (7, 5)] {
            schedule.ensure(PeerId(1), &mut place, Some(at(next)));
            assert_eq!(schedule.first(), Some(at(first)));
        }
        assert_eq!(schedule.pop(at(4)), None);
        assert_eq!(schedule.pop(at(5)), Some(PeerId(1)));
        assert_eq!(schedule.first(), None);
        place = Place::default();
        schedule.ensure(PeerId(1), &mut place, Some(at(7)));
        schedule.forget(PeerId(1), &mut place);
        assert_eq!((schedule.first(), place), (None, Place::default()));
    }
}
