//! Peers whose endpoint is a host name: when the name is looked up, and what the answer means. No I/O in here; the
//! look-ups themselves are [`super::lookup`]'s.
//!
//! A name is looked up when its peer comes, again and again until there is a first answer, and from then on only while
//! handshakes go unanswered: where a peer was heard last counts more than what its name says. Look-ups of one name keep
//! a growing distance, which the next handshake that succeeds makes small again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::HostPort;
use crate::proto::{PeerId, Time};

/// The distance between the first two look-ups of a name.
const SPACING_MIN: Duration = Duration::from_secs(1);
/// The largest one.
const SPACING_MAX: Duration = Duration::from_secs(64);
/// How many look-ups may be under way: one that hangs holds up few others.
const RUNNING_MAX: usize = 8;
/// Addresses of one name that are kept.
const ADDRESSES_MAX: usize = 16;

/// All peers with names.
#[derive(Default)]
pub(super) struct Names {
    names: BTreeMap<PeerId, Name>,
    due: BTreeSet<(Time, PeerId)>,
    running: usize,
    next_ticket: u64,
}

struct Name {
    host: HostPort,
    state: State,
    spacing: Duration,
    /// Not looked up again before.
    earliest: Time,
    /// There was an answer.
    known: bool,
    /// The next answer moves the peer, whatever is known of where it is: somebody has given it this name.
    moves: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody needs it.
    Idle,
    Due(Time),
    /// Under way, with this ticket.
    Running(u64),
}

/// A name to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) peer: PeerId,
    /// Tells the answer to this question from those to earlier ones.
    pub(super) ticket: u64,
    pub(super) host: HostPort,
}

/// What a name said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) peer: PeerId,
    /// At least one, without duplicates, in the resolver's order.
    pub(super) addresses: Vec<SocketAddr>,
    /// Send there from here on; otherwise they are candidates only.
    pub(super) moves: bool,
}

impl Names {
    /// The peer has this name, which is looked up at once. `moves`: the answer counts more than where the peer is.
    pub(super) fn insert(&mut self, peer: PeerId, host: HostPort, moves: bool, now: Time) {
        self.remove(peer);
        self.names.insert(
            peer,
            Name {
                host,
                state: State::Due(now),
                spacing: SPACING_MIN,
                earliest: now,
                known: false,
                moves,
            },
        );
        self.due.insert((now, peer));
    }

    /// The peer's name.
    pub(super) fn host(&self, peer: PeerId) -> Option<&HostPort> {
        self.names.get(&peer).map(|name| &name.host)
    }

    /// The peer has no name any more. An answer that is still under way is passed over.
    pub(super) fn remove(&mut self, peer: PeerId) {
        if let Some(name) = self.names.remove(&peer)
            && let State::Due(at) = name.state
        {
            self.due.remove(&(at, peer));
        }
    }

    /// A handshake with the peer goes unanswered.
    pub(super) fn unanswered(&mut self, peer: PeerId, now: Time) {
        if let Some(name) = self.names.get_mut(&peer)
            && name.state == State::Idle
        {
            let at = now.max(name.earliest);
            name.state = State::Due(at);
            self.due.insert((at, peer));
        }
    }

    /// A handshake with the peer was done: the next trouble is a new one.
    pub(super) fn handshake_done(&mut self, peer: PeerId, now: Time) {
        if let Some(name) = self.names.get_mut(&peer) {
            name.spacing = SPACING_MIN;
            if name.known
                && let State::Due(at) = name.state
            {
                self.due.remove(&(at, peer));
                name.state = State::Idle;
            }
            name.earliest = name.earliest.min(now + SPACING_MIN);
        }
    }

    /// The next name whose time has come, which is under way from here on. To be called until there is none.
    pub(super) fn next(&mut self, now: Time) -> Option<Question> {
        let &(at, peer) = self.due.first()?;
        if at > now || self.running >= RUNNING_MAX {
            return None;
        }
        self.due.pop_first();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.running += 1;
        let name = self.names.get_mut(&peer)?;
        name.state = State::Running(ticket);
        Some(Question {
            peer,
            ticket,
            host: name.host.clone(),
        })
    }

    /// The answer to a question of [`Names::next`]; empty when there was none. `jitter` of 0 to 1 spreads the look-ups
    /// that begin together.
    pub(super) fn answered(
        &mut self,
        question: &Question,
        mut addresses: Vec<SocketAddr>,
        now: Time,
        jitter: f64,
    ) -> Option<Found> {
        self.running -= 1;
        let peer = question.peer;
        let name = self.names.get_mut(&peer)?;
        if name.state != State::Running(question.ticket) {
            return None;
        }
        name.earliest = now + name.spacing.mul_f64(1.0 + jitter / 4.0);
        name.spacing = (name.spacing * 2).min(SPACING_MAX);
        name.state = State::Idle;
        name.known |= !addresses.is_empty();
        if !name.known || (name.moves && addresses.is_empty()) {
            name.state = State::Due(name.earliest);
            self.due.insert((name.earliest, peer));
        }
        let mut seen = BTreeSet::new();
        addresses.retain(|address| seen.insert(*address));
        addresses.truncate(ADDRESSES_MAX);
        let moves = !addresses.is_empty() && std::mem::take(&mut name.moves);
        (!addresses.is_empty()).then_some(Found { peer, addresses, moves })
    }

    /// When [`Names::next`] has something, unless answers have to come first.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let &(at, _) = self.due.first()?;
        (self.running < RUNNING_MAX).then_some(at)
    }

    /// Whether some name was never looked up to the end.
    pub(super) fn any_untried(&self) -> bool {
        self.names
            .values()
            .any(|name| name.spacing == SPACING_MIN && !name.known && name.state != State::Idle)
    }
}

/// The addresses with those of `family_of`'s family first: it is the one that works.
pub(super) fn prefer_family(addresses: &mut [SocketAddr], family_of: SocketAddr) {
    addresses.sort_by_key(|address| address.is_ipv4() != family_of.is_ipv4());
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerId = PeerId(1);

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn names() -> Names {
        let mut names = Names::default();
        names.insert(A, "vpn.example:51820".parse().expect("a name"), false, at(0));
        names
    }

    /// Looks up what is due at `now`.
    fn look_up(names: &mut Names, now: Time, addresses: &[&str]) -> Option<Found> {
        let question = names.next(now).expect("a name is due");
        let addresses = addresses.iter().map(|text| address(text)).collect();
        names.answered(&question, addresses, now, 0.0)
    }

    #[test]
    fn a_name_without_an_answer_is_looked_up_for_ever_at_growing_distances() {
        let mut names = names();
        let mut now = at(0);
        let mut distances = Vec::new();
        for _ in 0..9 {
            assert_eq!(look_up(&mut names, now, &[]), None);
            let next = names.poll_timeout().expect("it is tried again");
            distances.push((next - now).as_secs());
            now = next;
            assert_eq!(names.next(at(now.as_nanos() / 1_000_000 - 1)), None, "not earlier");
        }
        assert_eq!(distances, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        let found = look_up(&mut names, now, &["192.0.2.1:5", "[2001:db8::1]:5", "192.0.2.1:5"]).expect("an answer");
        assert_eq!(found.addresses, [address("192.0.2.1:5"), address("[2001:db8::1]:5")]);
        assert!(!found.moves, "somebody may have heard of the peer meanwhile");
        assert_eq!(names.poll_timeout(), None, "known: nobody asks");
    }

    #[test]
    fn a_known_name_is_looked_up_only_while_handshakes_go_unanswered() {
        let mut names = names();
        look_up(&mut names, at(0), &["192.0.2.1:5"]).expect("an answer");
        names.unanswered(A, at(500));
        assert_eq!(
            names.poll_timeout(),
            Some(at(1000)),
            "not more often than once a second"
        );
        look_up(&mut names, at(1000), &["192.0.2.2:5"]).expect("an answer");
        assert_eq!(names.poll_timeout(), None);
        names.unanswered(A, at(10_000));
        look_up(&mut names, at(10_000), &[]);
        assert_eq!(
            names.poll_timeout(),
            None,
            "there are addresses to try: the next silence asks again"
        );
        names.unanswered(A, at(10_001));
        assert_eq!(names.poll_timeout(), Some(at(14_000)));
        names.handshake_done(A, at(11_000));
        assert_eq!(names.poll_timeout(), None, "it was heard of");
        names.unanswered(A, at(20_000));
        look_up(&mut names, at(20_000), &["192.0.2.2:5"]).expect("an answer");
        names.unanswered(A, at(20_000));
        assert_eq!(names.poll_timeout(), Some(at(21_000)), "the distance is small again");
    }

    #[test]
    fn look_ups_that_begin_together_are_spread() {
        let mut names = names();
        let question = names.next(at(0)).expect("due");
        names.answered(&question, Vec::new(), at(0), 1.0);
        assert_eq!(names.poll_timeout(), Some(at(1250)));
    }

    #[test]
    fn a_new_name_of_a_peer_moves_it_and_old_answers_count_no_more() {
        let mut names = names();
        let old = names.next(at(0)).expect("due");
        names.insert(A, "new.example:1".parse().expect("a name"), true, at(5));
        assert_eq!(names.answered(&old, vec![address("192.0.2.1:5")], at(6), 0.0), None);
        let found = look_up(&mut names, at(6), &["192.0.2.9:1"]).expect("an answer");
        assert!(found.moves);
        names.unanswered(A, at(9000));
        assert!(
            !look_up(&mut names, at(9000), &["192.0.2.9:1"])
                .expect("an answer")
                .moves,
            "once"
        );
        let late = {
            names.unanswered(A, at(99_000));
            names.next(at(99_000)).expect("due")
        };
        names.remove(A);
        assert_eq!(
            names.answered(&late, vec![address("192.0.2.1:5")], at(99_001), 0.0),
            None
        );
        assert_eq!((names.poll_timeout(), names.running), (None, 0));
    }

    #[test]
    fn few_names_are_looked_up_at_once() {
        let mut names = Names::default();
        for peer in 0..20 {
            names.insert(PeerId(peer), "vpn.example:1".parse().expect("a name"), false, at(0));
        }
        let running: Vec<Question> = std::iter::from_fn(|| names.next(at(0))).collect();
        assert_eq!(running.len(), RUNNING_MAX);
        assert_eq!(names.poll_timeout(), None, "an answer comes first");
        assert!(names.any_untried());
        names.answered(&running[0], vec![address("192.0.2.1:5")], at(1), 0.0);
        assert_eq!(names.next(at(1)).map(|question| question.peer), Some(PeerId(8)));
    }

    #[test]
    fn the_family_that_works_comes_first() {
        let mut addresses = ["[2001:db8::1]:5", "192.0.2.1:5", "[2001:db8::2]:5", "192.0.2.2:5"].map(address);
        prefer_family(&mut addresses, address("198.51.100.1:9"));
        let expected = ["192.0.2.1:5", "192.0.2.2:5", "[2001:db8::1]:5", "[2001:db8::2]:5"].map(address);
        assert_eq!(addresses, expected);
    }
}
