//! Which worker carries a new connection.
//!
//! The kernel puts a flow's packets into the TUN queue that its latest packet in the other direction was written to, and goes by a hash
//! of the addresses and ports where there was none for three seconds (tun_automq_select_queue, tun_flow_update and TUN_FLOW_EXPIRE,
//! drivers/net/tun.c). Each worker writes to its own queue what comes on its lanes, and what it reads leaves on its own lane; so the hash
//! decides, and of four connections over two workers it gives one of them three as often as not.
//!
//! Who gets the answer to a connection's first packet (SYN and ACK) therefore gives the connection to the worker that has the least to do, and
//! for some seconds all workers write what comes of it to that one's queue. So this end's packets leave by that worker's lane, the far
//! end writes them to its own queue of that number, and then its packets come by that lane too. Where the end that has called speaks first,
//! its data is on that lane from the first byte on. (The first packet itself is too early: the kernel answers it before it notes where it was
//! written to.) Only workers that open lanes of the peer come into question: to others its packets would not come.
//!
//! UDP does not say who has called. What comes between two ports that nothing has come between for a while ([`Met`]) begins, and is given
//! away only by a worker that has much to do, to one that has little: so a query, a call or a game does not wait behind a transfer that
//! the hash has put it together with. Where more of them come than there are places for, they stay where they are.
#![forbid(unsafe_code)]

mod fading;
mod led;
mod met;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use self::fading::{Fading, STEP};
use self::led::Led;
use self::met::Met;
use crate::path::coalesce::{Begins, Connection, Lanes};
use crate::proto::Time;
use crate::stats::counters::Cell;

/// Connections that are led at the same time. Another one in the same place ends that early, which leaves the first one where it is.
const LED_MAX: usize = 256;
/// What one worker gives, or tries to, in one pass: enough for any host, and little work where a peer sends answers to what nobody has asked.
const GIVEN_PER_PASS_MAX: u32 = 16;
/// How many of them datagrams may be.
const DATAGRAMS_PER_PASS_MAX: u32 = 8;
/// A new connection counts as this part of all that has come lately, until it shows what it is, ...
const SHARE: u64 = 8;
/// ... and at least as so many bytes: those that begin together, before any has moved much, are spread evenly.
const BYTES_MIN: u64 = 1 << 20;
/// Datagrams between two ports count as so many bytes: most are a few questions and answers.
const DATAGRAMS_BYTES: u64 = 1 << 16;
/// What a worker that gives datagrams away has to do at least, which is about 0.35 Gbit/s, both directions together, ...
const BUSY_MIN: u64 = 8 << 20;
/// ... and how many times as much as the one that it gives them to.
const BUSIER: u64 = 4;
/// How often a worker looks whether it is busier than any: most that it looks at are others' cache lines.
const LOOK: Duration = Duration::from_millis(1);

/// What all workers know of each other.
#[derive(Debug)]
pub struct Loads {
    each: Box<[Load]>,
    /// Whose turn it is where all have the same to do.
    turn: Alone<AtomicUsize>,
    /// When the last connection began that is led, or less than a step before, in nanoseconds.
    begun: Alone<AtomicU64>,
    led: Box<[Led; LED_MAX]>,
}

/// What goes through one worker, on cache lines of its own, as its counters are.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load {
    /// Bytes that have come lately, as [`Fading`]. The worker alone writes it.
    came: Cell,
    /// The same of connections that were given to it. All workers write it, once per connection.
    given: AtomicU64,
}

/// Alone on its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Alone<T>(T);

impl Loads {
    /// Of `workers` workers that have nothing to do.
    pub fn new(workers: usize) -> Arc<Loads> {
        Arc::new(Loads {
            each: (0..workers).map(|_| Load::default()).collect(),
            turn: Alone::default(),
            begun: Alone::default(),
            led: Box::new([const { Led::nothing() }; LED_MAX]),
        })
    }

    /// What worker `number` has to do, in bytes that have come lately or are expected.
    fn amount(&self, now: Time, number: usize) -> u64 {
        let load = &self.each[number];
        Fading(load.came.get()).amount(now) + Fading(load.given.load(Relaxed)).amount(now)
    }

    /// Whether worker `number` is busy, and may have so much more to do than another one that it gives away even datagrams.
    fn is_busy(&self, now: Time, number: usize) -> bool {
        let amount = self.amount(now, number);
        Fading(self.each[number].came.get()).amount(now) >= BUSY_MIN
            && (0..self.each.len()).any(|other| self.amount(now, other) <= amount / BUSIER)
    }

    /// Worker `giver` gives a connection to that worker of `lanes` that has the least to do, of several to the next in turn; which one that
    /// is. `None` for datagrams where nobody has much less to do than `giver`.
    fn give(&self, now: Time, giver: usize, lanes: Lanes, begins: Begins) -> Option<usize> {
        let workers = self.each.len();
        let is_theirs = |&number: &usize| (number + workers - usize::from(lanes.first)) % workers < lanes.count.into();
        let turn = self.turn.0.load(Relaxed);
        let mut in_turn = (turn..turn + workers).map(|number| number % workers).filter(is_theirs);
        let amount = |number: usize| self.amount(now, number);
        let amounts = in_turn.clone().map(amount);
        let (total, least) = amounts.fold((0, u64::MAX), |(total, least), amount| {
            (total + amount, least.min(amount))
        });
        let bytes = match begins {
            Begins::Unknown if least > amount(giver) / BUSIER => return None,
            Begins::Unknown => DATAGRAMS_BYTES,
            Begins::Answered(_) | Begins::No => BYTES_MIN.max(total / SHARE),
        };
        // What is less than half a connection is no difference: a few words on the one before would decide.
        let has_least = |&number: &usize| amount(number) <= least + bytes / 2;
        // None where amounts have grown meanwhile.
        let chosen = in_turn.find(has_least).unwrap_or(lanes.first.into());
        let add = |given| Some(Fading(given).plus(now, bytes).0);
        // It never refuses.
        let _ = self.each[chosen].given.fetch_update(Relaxed, Relaxed, add);
        self.turn.0.store((chosen + 1) % workers, Relaxed);
        Some(chosen)
    }
}

/// One worker's part in it.
#[derive(Debug)]
pub struct Placement {
    number: u8,
    loads: Arc<Loads>,
    /// When it last gave, and how many in that pass.
    pass: Time,
    given: u32,
    met: Met,
    /// When it last looked whether it has much more to do than others, and whether it had.
    looked: Time,
    is_busy: bool,
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
            pass: Time::from_nanos(0),
            given: 0,
            met: Met::nobody(),
            looked: Time::from_nanos(0),
            is_busy: false,
        }
    }

    /// So many bytes came to this worker.
    #[inline]
    pub fn came(&self, now: Time, bytes: usize) {
        let came = &self.loads.each[usize::from(self.number)].came;
        came.set(Fading(came.get()).plus(now, bytes as u64).0);
    }

    /// To which worker's queue a packet of `connection` is written that has come in the pass that began `now`; `None` for the queue of
    /// whoever writes it.
    #[inline]
    pub fn queue(&mut self, now: Time, connection: Option<Connection>) -> Option<u8> {
        let Connection { name, lanes, begins } = connection?;
        let is_given = lanes.count > 1
            && match begins {
                Begins::No => false,
                Begins::Answered(_) => true,
                Begins::Unknown => self.met.is_new(now, name) && self.is_busy(now),
            };
        let last = Time::from_nanos(self.loads.begun.0.load(Relaxed));
        let nothing_is_led = now - last > Duration::from_nanos((Led::OVER + 2) << STEP);
        if !is_given && nothing_is_led {
            return None;
        }
        let led = &self.loads.led[Led::place(name)];
        match led.queue(now, name, begins) {
            None if is_given => self.give(now, name, lanes, begins),
            queue => queue,
        }
    }

    #[inline]
    fn is_busy(&mut self, now: Time) -> bool {
        if now - self.looked >= LOOK {
            self.is_busy = self.loads.is_busy(now, self.number.into());
            self.looked = now;
        }
        self.is_busy
    }

    fn give(&mut self, now: Time, name: u64, lanes: Lanes, begins: Begins) -> Option<u8> {
        if std::mem::replace(&mut self.pass, now) != now {
            self.given = 0;
        }
        let led = &self.loads.led[Led::place(name)];
        let (seq, most) = match begins {
            Begins::Answered(seq) => (seq, GIVEN_PER_PASS_MAX),
            Begins::Unknown if led.is_free(now) => (0, DATAGRAMS_PER_PASS_MAX),
            Begins::Unknown | Begins::No => return None,
        };
        if self.given >= most {
            return None;
        }
        self.given += 1;
        let queue = self.loads.give(now, self.number.into(), lanes, begins)? as u8;
        led.begin(now, name, seq, queue);
        // All workers read it, so it is written once per step.
        if now - Time::from_nanos(self.loads.begun.0.load(Relaxed)) >= Duration::from_nanos(1 << STEP) {
            self.loads.begun.0.fetch_max(now.as_nanos(), Relaxed);
        }
        Some(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_nanos(77 << 40);
    const BUSY: usize = 100 << 20;
    /// As many lanes as any test has workers.
    const ALL: Lanes = Lanes { first: 0, count: 8 };

    fn steps(count: u64) -> Duration {
        Duration::from_nanos(count << STEP)
    }

    /// Well mixed, as names are.
    fn name(number: u64) -> u64 {
        (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn beginning(number: u64, lanes: Lanes, seq: u32) -> Option<Connection> {
        Some(Connection {
            name: name(number),
            lanes,
            begins: Begins::Answered(seq),
        })
    }

    fn first(number: u64) -> Option<Connection> {
        beginning(number, ALL, 1)
    }

    fn following(number: u64) -> Option<Connection> {
        Some(Connection {
            name: name(number),
            lanes: ALL,
            begins: Begins::No,
        })
    }

    fn datagram(number: u64) -> Option<Connection> {
        Some(Connection {
            name: name(number),
            lanes: ALL,
            begins: Begins::Unknown,
        })
    }

    fn workers(count: usize) -> Vec<Placement> {
        let loads = Loads::new(count);
        (0..count as u8)
            .map(|number| Placement::new(number, loads.clone()))
            .collect()
    }

    /// How many of `connections` new ones on `lanes` each worker gets, when the first worker receives them.
    fn shares_of(workers: &mut [Placement], now: Time, lanes: Lanes, connections: u64) -> Vec<usize> {
        let mut shares = vec![0; workers.len()];
        for number in 0..connections {
            // One pass each.
            let now = now + Duration::from_nanos(number);
            let queue = workers[0].queue(now, beginning(number, lanes, now.as_nanos() as u32));
            shares[usize::from(queue.expect("a place for what begins"))] += 1;
        }
        shares
    }

    fn shares(workers: &mut [Placement], now: Time, connections: u64) -> Vec<usize> {
        shares_of(workers, now, ALL, connections)
    }

    #[test]
    fn connections_that_begin_together_are_spread_evenly() {
        for (count, each) in [(1, 5), (2, 2), (2, 16), (4, 8), (7, 10)] {
            let connections = (count * each) as u64;
            assert_eq!(shares(&mut workers(count), START, connections), vec![each; count]);
        }
    }

    #[test]
    fn connections_keep_to_the_workers_that_open_their_lanes() {
        let lanes = |first, count| Lanes { first, count };
        assert_eq!(shares_of(&mut workers(6), START, lanes(2, 2), 8), [0, 0, 4, 4, 0, 0]);
        assert_eq!(shares_of(&mut workers(6), START, lanes(5, 3), 9), [3, 3, 0, 0, 0, 3]);
        assert_eq!(shares_of(&mut workers(3), START, lanes(2, 200), 9), [3, 3, 3]);
        assert_eq!(workers(6)[2].queue(START, beginning(7, lanes(2, 1), 1)), None);
    }

    #[test]
    fn one_connection_after_the_other_takes_turns() {
        let mut workers = workers(3);
        let later = |number| START + Duration::from_secs(60 * number);
        let queues: Vec<_> = (0..6)
            .map(|number| workers[1].queue(later(number), first(number)))
            .collect();
        assert_eq!(queues, [0, 1, 2, 0, 1, 2].map(Some));
    }

    #[test]
    fn a_busy_worker_gets_nothing_until_others_have_as_much_or_it_has_done() {
        let mut busy = workers(3);
        busy[1].came(START, BUSY);
        assert_eq!(shares(&mut busy, START, 8), [4, 0, 4]);
        let after = START + Duration::from_secs(30);
        assert_eq!(shares(&mut busy, after, 30), [10, 10, 10]);
    }

    #[test]
    fn a_few_words_on_one_connection_do_not_decide_about_the_next() {
        let mut workers = workers(2);
        let mut queues = Vec::new();
        for number in 0..6 {
            queues.push(workers[0].queue(START, first(number)));
            workers[0].came(START, 5_000);
        }
        assert_eq!(queues, [0, 1, 0, 1, 0, 1].map(Some));
    }

    #[test]
    fn of_equally_busy_workers_each_gets_its_share_for_all_their_differences() {
        let mut busy = workers(2);
        busy[0].came(START, BUSY);
        busy[1].came(START, BUSY * 9 / 10);
        assert_eq!(shares(&mut busy, START, 8), [4, 4]);
    }

    #[test]
    fn every_worker_leads_what_follows_to_where_the_connection_was_given_as_long_as_it_takes() {
        let mut workers = workers(3);
        workers[0].came(START, BUSY);
        assert_eq!(workers[0].queue(START, following(7)), None);
        assert_eq!(workers[0].queue(START, first(7)), Some(1));
        let soon = START + steps(Led::OVER / 2);
        for worker in &mut workers {
            assert_eq!(worker.queue(soon, following(7)), Some(1));
            assert_eq!(worker.queue(soon, following(8)), None, "another connection");
            assert_eq!(worker.queue(soon, None), None, "no connection");
            // By a clock that was read before.
            assert_eq!(
                worker.queue(Time::from_nanos(START.as_nanos() - 1), following(7)),
                Some(1)
            );
        }
        assert_eq!(workers[1].queue(soon, first(8)), Some(2), "it ends nothing");
        assert_eq!(workers[0].queue(soon, following(7)), Some(1));
        assert_eq!(workers[0].queue(START + steps(Led::OVER + 1), following(7)), None);
    }

    #[test]
    fn a_beginning_that_is_repeated_changes_nothing() {
        let mut workers = workers(2);
        let queues = [7, 7, 8, 7, 8].map(|number| workers[0].queue(START, first(number)));
        assert_eq!(queues, [0, 0, 1, 0, 1].map(Some));
        workers[0].came(START, BUSY);
        assert_eq!(
            workers[0].queue(START, beginning(7, ALL, 2)),
            Some(1),
            "another one between the same ports"
        );
        assert_eq!(workers[0].queue(START, following(7)), Some(1));
    }

    #[test]
    fn one_pass_gives_no_more_than_it_has_time_for() {
        let mut workers = workers(2);
        let given = |worker: &mut Placement, now| {
            (0..100)
                .filter(|&number| worker.queue(now, first(number)).is_some())
                .count()
        };
        assert_eq!(given(&mut workers[0], START), GIVEN_PER_PASS_MAX as usize);
        // Those once more, and as many others.
        let next = START + Duration::from_nanos(1);
        assert_eq!(given(&mut workers[0], next), 2 * GIVEN_PER_PASS_MAX as usize);
    }

    #[test]
    fn a_busy_worker_gives_away_new_datagrams_and_all_lead_what_follows() {
        let mut workers = workers(3);
        workers[0].came(START, BUSY);
        workers[1].came(START, BUSY / 2);
        let queue = workers[0].queue(START, datagram(7));
        assert_eq!(queue, Some(2));
        let soon = START + steps(Led::OVER / 2);
        for worker in &mut workers {
            worker.came(soon, BUSY);
            assert_eq!(worker.queue(soon, datagram(7)), queue);
        }
    }

    #[test]
    fn datagrams_stay_where_they_are_once_they_have_been_met_there() {
        let mut workers = workers(2);
        assert_eq!(workers[0].queue(START, datagram(7)), None, "nobody is busy");
        let mut now = START;
        for _ in 0..5 {
            now = now + steps(Met::OVER);
            workers[0].came(now, BUSY);
            assert_eq!(workers[0].queue(now, datagram(7)), None);
        }
        now = now + steps(Met::OVER + 1);
        workers[0].came(now, BUSY);
        assert_eq!(workers[0].queue(now, datagram(7)), Some(1), "silent for so long");
    }

    #[test]
    fn datagrams_stay_where_nobody_has_much_less_to_do_or_nobody_is_busy() {
        let mut workers = workers(2);
        workers[0].came(START, BUSY);
        workers[1].came(START, BUSY / 3);
        assert_eq!(workers[0].queue(START, datagram(1)), None);
        assert_eq!(workers[1].queue(START, datagram(2)), None);
        let later = START + Duration::from_secs(60);
        workers[0].came(later, BUSY_MIN as usize - 1);
        assert_eq!(workers[0].queue(later, datagram(3)), None);
    }

    #[test]
    fn datagrams_are_given_to_none_but_who_has_much_less_to_do_and_opens_their_lanes() {
        let mut workers = workers(3);
        workers[0].came(START, BUSY);
        workers[1].came(START, BUSY / 3);
        let on = |first| {
            let lanes = Lanes { first, count: 2 };
            datagram(u64::from(first)).map(|connection| Connection { lanes, ..connection })
        };
        assert_eq!(workers[0].queue(START, on(0)), None, "workers 0 and 1");
        assert_eq!(workers[0].queue(START, on(1)), Some(2), "workers 1 and 2");
    }

    #[test]
    fn datagrams_end_no_connection_that_is_led_and_take_half_of_a_pass() {
        let mut workers = workers(2);
        assert_eq!(workers[0].queue(START, first(7)), Some(0));
        workers[0].came(START, BUSY);
        let same_place = name(7) ^ 1 << 40;
        let other = datagram(0).map(|other| Connection {
            name: same_place,
            ..other
        });
        assert_eq!(workers[0].queue(START, other), None);
        assert_eq!(workers[1].queue(START, following(7)), Some(0));
        let next = START + Duration::from_nanos(1);
        let given = (10..99).filter(|&number| workers[0].queue(next, datagram(number)).is_some());
        assert_eq!(given.count(), DATAGRAMS_PER_PASS_MAX as usize);
        assert!(workers[0].queue(next, first(100)).is_some());
    }

    #[test]
    fn datagrams_that_find_their_place_taken_are_not_taken_for_new() {
        let mut met = Met::nobody();
        let (one, other) = (7 << 40, 9 << 40);
        assert!(met.is_new(START, one));
        assert!(!met.is_new(START, other));
        assert!(!met.is_new(START + steps(Met::OVER), one));
        assert!(!met.is_new(START + steps(2 * Met::OVER), other), "kept for the first");
        assert!(met.is_new(START + steps(2 * Met::OVER + 1), other));
        assert!(!met.is_new(START + steps(2 * Met::OVER + 1), one));
    }

    #[test]
    fn amounts_fade_by_halves_and_end_at_the_most_that_there_is_room_for() {
        let amount = Fading(0).plus(START, 1000);
        let after = |count| amount.amount(START + steps(count));
        assert_eq!([0, 1, 2, 9, 10, 40, 1000].map(after), [1000, 500, 250, 1, 0, 0, 0]);
        assert_eq!(amount.plus(START + steps(1), 7).amount(START + steps(1)), 507);
        assert_eq!(amount.plus(START, u64::MAX).amount(START), Fading::AMOUNT_MAX);
        // The last step before it begins anew, and the first one after.
        let last = Time::from_nanos(Fading::STEPS << STEP);
        let amount = Fading(Fading::STEPS << Fading::AMOUNT_BITS | 1000);
        assert_eq!([last, last + steps(1)].map(|now| amount.amount(now)), [1000, 500]);
    }

    #[test]
    fn an_amount_that_a_later_clock_has_written_is_there_all_the_same() {
        let later = START + steps(1);
        let amount = Fading(0).plus(later, 1000);
        assert_eq!(amount.amount(START), 1000);
        let added = amount.plus(START, 24);
        assert_eq!(
            (added.amount(START), added.amount(later), added.amount(later + steps(1))),
            (1024, 1024, 512)
        );
    }
}
