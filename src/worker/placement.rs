//! Which worker carries a new TCP connection.
//!
//! The kernel puts a flow's packets into the TUN queue that its latest packet in the other direction was written to, and goes by a hash
//! of the addresses and ports as long as there was none (tun_automq_select_queue and tun_flow_update, drivers/net/tun.c). Each
//! worker writes to its own queue what comes on its lanes, and what it reads leaves on its own lane; so a connection stays with the
//! worker that the hash has chosen, and of four connections over two workers it chooses one for three of them as often as not.
//!
//! Who gets the answer to a connection's first packet (SYN and ACK) therefore writes it, and what follows, to the queue of the worker
//! that has the least to do. From then on the connection's packets leave by that worker's lane; the far end writes them to the queue of the
//! same number there, and so its packets come by that lane too. Nothing is overtaken by that as long as the end that has called speaks first: only its ACK of
//! the answer is on the other lane. (The first packet itself is too early: the kernel answers it before it notes where it was written to.) Where the
//! far end has fewer workers, a connection may end up with another worker than was meant; it is none the worse.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::path::coalesce::Connection;
use crate::proto::Time;
use crate::stats::counters::Cell;

/// How long a connection's packets are written to the queue that was chosen wherever they come: until the far end has followed, which takes
/// one packet to it and one back.
const FOLLOWED_AFTER: Duration = Duration::from_secs(10);
/// Connections that one worker moves at the same time. Another one in the same place ends a move early, which leaves the first
/// connection where it is.
const MOVES_MAX: usize = 256;
/// A new connection counts as this part of all that has moved lately, until it shows what it is, ...
const SHARE: u64 = 8;
/// ... and at least as so many bytes: those that begin together, before any has moved much, are spread evenly.
const BYTES_MIN: u64 = 1 << 20;

/// What goes through each worker, and whose turn it is where that tells nothing.
#[derive(Debug)]
pub struct Loads {
    each: Box<[Load]>,
    turn: AtomicUsize,
}

/// One worker's, on cache lines of its own, as its counters are.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load {
    /// Bytes that have come lately, as [`Fading`]. The worker alone writes it.
    came: Cell,
    /// The same of connections that were given to it. All workers write it, once per connection.
    given: AtomicU64,
}

impl Loads {
    /// Of `workers` workers that have nothing to do.
    pub fn new(workers: usize) -> Arc<Loads> {
        Arc::new(Loads {
            each: (0..workers).map(|_| Load::default()).collect(),
            turn: AtomicUsize::new(0),
        })
    }

    /// Gives a connection to the worker that has the least to do, of several to the next in turn; which one that is.
    fn give(&self, now: Time) -> usize {
        let amount = |load: &Load| Fading(load.came.get()).amount(now) + Fading(load.given.load(Relaxed)).amount(now);
        let workers = self.each.len();
        let turn = self.turn.load(Relaxed);
        let in_turn = (turn..turn + workers).map(|number| number % workers);
        let (mut total, mut least, mut chosen) = (0, u64::MAX, 0);
        for number in in_turn {
            let amount = amount(&self.each[number]);
            total += amount;
            if amount < least {
                (least, chosen) = (amount, number);
            }
        }
        let bytes = BYTES_MIN.max(total / SHARE);
        let add = |given| Some(Fading(given).plus(now, bytes).0);
        // It never refuses.
        let _ = self.each[chosen].given.fetch_update(Relaxed, Relaxed, add);
        self.turn.store((chosen + 1) % workers, Relaxed);
        chosen
    }
}

/// A number of bytes that loses half of itself with each [`Fading::STEP`], and when it was written: 40 and 24 bits.
#[derive(Clone, Copy)]
struct Fading(u64);

impl Fading {
    /// 2^27 nanoseconds, about 0.13 s, and the logarithm of that.
    const STEP: u32 = 27;
    const AMOUNT_BITS: u32 = 40;
    const AMOUNT_MAX: u64 = (1 << Self::AMOUNT_BITS) - 1;

    /// Counted from the boot: it begins anew after 26 days, and what nothing was added to since would count as fresh for a moment.
    fn step(now: Time) -> u64 {
        (now.as_nanos() >> Self::STEP) & (u64::MAX >> Self::AMOUNT_BITS)
    }

    fn amount(self, now: Time) -> u64 {
        let steps = Self::step(now).wrapping_sub(self.0 >> Self::AMOUNT_BITS) & (u64::MAX >> Self::AMOUNT_BITS);
        (self.0 & Self::AMOUNT_MAX) >> steps.min(63)
    }

    fn plus(self, now: Time, bytes: u64) -> Fading {
        let amount = self.amount(now).saturating_add(bytes).min(Self::AMOUNT_MAX);
        Fading(Self::step(now) << Self::AMOUNT_BITS | amount)
    }
}

/// One worker's part in it.
#[derive(Debug)]
pub struct Placement {
    number: u8,
    loads: Arc<Loads>,
    /// By the connection's name.
    moves: Box<[Option<Move>; MOVES_MAX]>,
    /// When the last of them is over.
    over: Time,
}

#[derive(Debug, Clone, Copy)]
struct Move {
    name: u64,
    queue: u8,
    over: Time,
}

impl Placement {
    /// Of worker `number` of those that share `loads`.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn new(number: u8, loads: Arc<Loads>) -> Placement {
        assert!(usize::from(number) < loads.each.len(), "no such worker");
        Placement {
            number,
            loads,
            moves: Box::new([None; MOVES_MAX]),
            over: Time::from_nanos(0),
        }
    }

    /// So many bytes came to this worker.
    #[inline]
    pub fn came(&self, now: Time, bytes: usize) {
        let came = &self.loads.each[usize::from(self.number)].came;
        came.set(Fading(came.get()).plus(now, bytes as u64).0);
    }

    /// To which worker's queue a packet of `connection` is written; `None` for this worker's own.
    #[inline]
    pub fn queue(&mut self, now: Time, connection: Option<Connection>) -> Option<u8> {
        let connection = connection.filter(|connection| connection.begins || now < self.over)?;
        let place = &mut self.moves[connection.name as usize % MOVES_MAX];
        let is_moved = |a_move: &Move| a_move.name == connection.name && now < a_move.over;
        if let Some(a_move) = place.filter(is_moved) {
            return Some(a_move.queue);
        }
        let queue = connection.begins.then(|| self.loads.give(now))? as u8;
        self.over = now + FOLLOWED_AFTER;
        *place = Some(Move {
            name: connection.name,
            queue,
            over: self.over,
        });
        Some(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_nanos(77 << 40);
    const BUSY: usize = 100 << 20;

    fn beginning(name: u64) -> Option<Connection> {
        Some(Connection { name, begins: true })
    }

    fn following(name: u64) -> Option<Connection> {
        Some(Connection { name, begins: false })
    }

    fn workers(count: usize) -> Vec<Placement> {
        let loads = Loads::new(count);
        (0..count as u8)
            .map(|number| Placement::new(number, loads.clone()))
            .collect()
    }

    /// How many of `connections` new ones each worker gets, when the first worker receives them.
    fn shares(workers: &mut [Placement], now: Time, connections: u64) -> Vec<usize> {
        let mut shares = vec![0; workers.len()];
        for name in 0..connections {
            let queue = workers[0].queue(now, beginning(name));
            shares[usize::from(queue.expect("a place for what begins"))] += 1;
        }
        shares
    }

    #[test]
    fn connections_that_begin_together_are_spread_evenly() {
        for (count, each) in [(1, 5), (2, 2), (2, 16), (4, 8), (7, 10)] {
            let connections = (count * each) as u64;
            assert_eq!(shares(&mut workers(count), START, connections), vec![each; count]);
        }
    }

    #[test]
    fn one_connection_after_the_other_takes_turns() {
        let mut workers = workers(3);
        let later = |seconds| START + Duration::from_secs(60 * seconds);
        let queues: Vec<_> = (0..6)
            .map(|name| workers[1].queue(later(name), beginning(name)))
            .collect();
        assert_eq!(queues, [0, 1, 2, 0, 1, 2].map(Some));
    }

    #[test]
    fn all_workers_know_what_the_others_have_given() {
        let mut workers = workers(2);
        let queues: Vec<_> = (0..4)
            .map(|name| workers[name % 2].queue(START, beginning(name as u64)))
            .collect();
        assert_eq!(queues, [0, 1, 0, 1].map(Some));
    }

    #[test]
    fn a_busy_worker_gets_nothing_until_others_have_as_much_or_it_has_done() {
        let mut busy = workers(3);
        busy[1].came(START, BUSY);
        assert_eq!(shares(&mut busy, START, 10), [5, 0, 5]);
        let after = START + Duration::from_secs(30);
        assert_eq!(shares(&mut busy, after, 30), [10, 10, 10]);
    }

    #[test]
    fn of_equally_busy_workers_each_gets_its_share_for_all_their_differences() {
        let mut busy = workers(2);
        busy[0].came(START, BUSY);
        busy[1].came(START, BUSY * 9 / 10);
        assert_eq!(shares(&mut busy, START, 8), [4, 4]);
    }

    #[test]
    fn what_follows_goes_where_the_connection_began_as_long_as_it_takes() {
        let mut workers = workers(2);
        workers[0].came(START, BUSY);
        assert_eq!(workers[0].queue(START, following(7)), None);
        assert_eq!(workers[0].queue(START, beginning(7)), Some(1));
        let soon = START + FOLLOWED_AFTER / 2;
        assert_eq!(workers[0].queue(soon, following(7)), Some(1));
        assert_eq!(workers[0].queue(soon, following(8)), None, "another connection");
        assert_eq!(
            workers[0].queue(soon, following(7 + MOVES_MAX as u64)),
            None,
            "another one in the same place"
        );
        assert_eq!(workers[0].queue(soon, None), None, "no connection");
        assert_eq!(workers[1].queue(soon, following(7)), None, "it has arrived");
        assert_eq!(workers[0].queue(START + FOLLOWED_AFTER, following(7)), None);
    }

    #[test]
    fn a_beginning_that_is_repeated_changes_nothing() {
        let mut workers = workers(2);
        let queues = [7, 7, 8, 7, 8].map(|name| workers[0].queue(START, beginning(name)));
        assert_eq!(queues, [0, 0, 1, 0, 1].map(Some));
    }

    #[test]
    fn amounts_fade_by_halves_and_end_at_the_most_that_there_is_room_for() {
        let step = Duration::from_nanos(1 << Fading::STEP);
        let amount = Fading(0).plus(START, 1000);
        let after = |steps| amount.amount(START + step * steps);
        assert_eq!([0, 1, 2, 9, 10, 40, 1000].map(after), [1000, 500, 250, 1, 0, 0, 0]);
        assert_eq!(amount.plus(START + step, 7).amount(START + step), 507);
        assert_eq!(amount.plus(START, u64::MAX).amount(START), Fading::AMOUNT_MAX);
        // The last step before it begins anew, and the first one after.
        let last = Time::from_nanos(((1 << 24) - 1) << Fading::STEP);
        assert_eq!(Fading(0).plus(last, 1000).amount(last + step), 500);
    }
}
