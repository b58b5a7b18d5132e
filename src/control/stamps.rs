//! Which timestamps of ours may have been sent, by what a file says: so that those of a daemon that follows one which was
//! killed are later than all of them, and yet not far ahead of the clock, however often it is killed.
//!
//! A file is written seldom, so it has to speak of the time until the next one. It does so twice. Whatever the clock may
//! do, no timestamp is later than the `limit`, which lies ahead; going on there is always right, and refuses whoever goes
//! by the clock with the same key until the clock comes that far. And while the clock goes its way, no timestamp is later
//! than it: whoever starts while it still does needs to begin only a little ahead of it. Whether it was set is told by
//! a clock that nobody sets, since the boot of the machine.

use std::time::Duration;

use crate::proto::Now;
use crate::proto::tai64n::Tai64n;

/// How far ahead timestamps are reserved.
pub(super) const RESERVE: Duration = Duration::from_secs(600);
/// How far the clock may be off its way without having been set: leap seconds, and two clocks that are read one after the
/// other.
const SKEW: Duration = Duration::from_secs(1);
/// How far ahead of the clock a killed daemon's successor begins: what was sent was off by one `SKEW` at most, and what
/// is read may be by another.
const LEAD: Duration = Duration::from_secs(3);
/// Timestamps that are ahead of the clock already are a nanosecond apart, so this is room for a thousand handshakes of
/// one peer, which has a few per minute. It is also all that each further kill adds.
const SPARE: Duration = Duration::from_micros(1);

/// What a file says of timestamps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Reserved {
    /// None is later.
    pub(super) limit: Tai64n,
    /// After an end in good order there is none: `limit` was sent itself.
    pub(super) course: Option<Course>,
}

/// The way of the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Course {
    /// The boot that it is measured from, as the kernel names it.
    pub(super) boot: String,
    /// When that was, by the clock that may be set, in nanoseconds of Unix time.
    pub(super) boot_ns: i64,
    /// As long as that does not change, no timestamp is later than both this and the clock.
    pub(super) base: Tai64n,
}

/// What the file says, while the tunnel runs.
pub(super) struct Stamps {
    /// This boot, where the kernel tells it.
    boot: Option<String>,
    floor: Tai64n,
    reserved: Reserved,
}

impl Stamps {
    /// A daemon starts at `now`, and finds this.
    pub(super) fn begin(boot: Option<String>, now: Now, found: Reserved) -> Stamps {
        let went_on = found.course.as_ref().filter(|course| {
            let is_same = boot.as_ref() == Some(&course.boot);
            is_same && boot_ns(now) >= course.boot_ns.saturating_sub(SKEW.as_nanos() as i64)
        });
        let floor = match went_on {
            Some(course) => found.limit.min(course.base.max(Tai64n::from_unix(now.unix + LEAD))),
            None => found.limit,
        };
        Stamps {
            boot,
            floor,
            reserved: found,
        }
    }

    /// What was sent before this daemon was not later.
    pub(super) fn floor(&self) -> Tai64n {
        self.floor
    }

    /// Whether the first timestamp would be ahead of the clock, so that it has to be reserved before it is sent.
    pub(super) fn begins_ahead(&self, now: Now) -> bool {
        self.floor > Tai64n::from_unix(now.unix)
    }

    /// Whether the clock was set since the last [`Stamps::renew`].
    pub(super) fn is_off_course(&self, now: Now) -> bool {
        let off = |course: &Course| boot_ns(now).abs_diff(course.boot_ns) > SKEW.as_nanos() as u64;
        self.reserved.course.as_ref().is_some_and(off)
    }

    /// Whether what is reserved runs out. `latest`: what was sent.
    pub(super) fn is_short(&self, latest: Tai64n, now: Now) -> bool {
        let clock = Tai64n::from_unix(now.unix);
        let base = self
            .reserved
            .course
            .as_ref()
            .map_or(self.reserved.limit, |course| course.base);
        clock.plus(RESERVE / 2) >= self.reserved.limit
            || (latest > clock && latest.plus(SPARE / 2) >= base)
            || self.is_off_course(now)
    }

    /// What is to be written so that it holds from `now` on. `latest`: what was sent.
    pub(super) fn renew(&mut self, latest: Tai64n, now: Now) -> Reserved {
        let base = latest.max(self.floor).plus(SPARE);
        self.reserved = Reserved {
            limit: Tai64n::from_unix(now.unix).plus(RESERVE).max(base),
            course: self.boot.clone().map(|boot| Course {
                boot,
                boot_ns: boot_ns(now),
                base,
            }),
        };
        self.reserved.clone()
    }

    /// What is to be written when nothing more is sent.
    pub(super) fn end(&self, latest: Tai64n) -> Reserved {
        Reserved {
            limit: latest.max(self.floor),
            course: None,
        }
    }
}

/// When the machine was booted, by the clock at `now`, in nanoseconds of Unix time.
fn boot_ns(now: Now) -> i64 {
    let unix = i64::try_from(now.unix.as_nanos()).unwrap_or(i64::MAX);
    unix.saturating_sub_unsigned(now.mono.as_nanos())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::Time;

    /// Something that happens to a daemon or its clock.
    #[derive(Debug, Clone)]
    enum Event {
        /// So many milliseconds pass.
        Pass(u64),
        /// The clock is set so many milliseconds forward.
        Set(i64),
        Send,
        /// The daemon is killed and started again.
        Kill,
        /// It ends in good order and is started again.
        End,
        /// It is killed with the machine.
        Boot,
    }

    fn event() -> impl Strategy<Value = Event> {
        // Far more time passes than the clock is set back, so that it is often where it never was before.
        prop_oneof![
            8 => (0..200_000u64).prop_map(Event::Pass),
            1 => (-1_000_000..200_000i64).prop_map(Event::Set),
            1 => (-3_000..3_000i64).prop_map(Event::Set),
            1 => Just(Event::Set(5_000_000)),
            8 => Just(Event::Send),
            4 => Just(Event::Kill),
            1 => Just(Event::End),
            1 => Just(Event::Boot),
        ]
    }

    /// A machine, its daemon, and its disk.
    struct World {
        boots: u64,
        mono_ms: u64,
        unix_ms: u64,
        unix_ms_max: u64,
        disk: Reserved,
        stamps: Stamps,
        sent: Tai64n,
        sent_in_this_run: Tai64n,
    }

    impl World {
        fn new() -> World {
            let mut world = World {
                boots: 1,
                mono_ms: 20_000,
                unix_ms: 1_700_000_000_000,
                unix_ms_max: 0,
                disk: Reserved::default(),
                stamps: Stamps::begin(None, Now::default(), Reserved::default()),
                sent: Tai64n::default(),
                sent_in_this_run: Tai64n::default(),
            };
            world.pass(0);
            world.start();
            world
        }

        fn now(&self) -> Now {
            Now {
                mono: Time::from_nanos(self.mono_ms * 1_000_000),
                unix: Duration::from_millis(self.unix_ms),
            }
        }

        fn pass(&mut self, ms: u64) {
            self.mono_ms += ms;
            self.unix_ms += ms;
            self.unix_ms_max = self.unix_ms_max.max(self.unix_ms);
        }

        fn start(&mut self) {
            self.pass(5);
            let now = self.now();
            self.stamps = Stamps::begin(Some(format!("boot-{}", self.boots)), now, self.disk.clone());
            self.sent_in_this_run = Tai64n::default();
            if self.stamps.begins_ahead(now) {
                self.disk = self.stamps.renew(Tai64n::default(), now);
            }
        }

        fn send(&mut self) {
            let last = self.sent_in_this_run.max(self.stamps.floor());
            let stamp = Tai64n::newer_than(last, self.now().unix);
            assert!(stamp > self.sent, "later than all before");
            let ahead_max = Duration::from_millis(self.unix_ms_max) + RESERVE + 2 * LEAD;
            assert!(stamp <= Tai64n::from_unix(ahead_max), "not far ahead of the clock");
            (self.sent, self.sent_in_this_run) = (stamp, stamp);
            // State writes within a second. A clock that is set back in it, before a kill in it, is one coincidence more
            // than this holds for.
            if self.stamps.is_short(stamp, self.now()) {
                self.disk = self.stamps.renew(stamp, self.now());
            }
        }

        fn happen(&mut self, event: &Event) {
            match *event {
                Event::Pass(ms) => self.pass(ms),
                Event::Set(ms) => {
                    self.unix_ms = self.unix_ms.saturating_add_signed(ms);
                    self.pass(0);
                }
                Event::Send => self.send(),
                Event::Kill => self.start(),
                Event::End => {
                    self.disk = self.stamps.end(self.sent_in_this_run);
                    self.start();
                }
                Event::Boot => {
                    self.boots += 1;
                    self.mono_ms = 9_000;
                    self.pass(30_000);
                    self.start();
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn timestamps_grow_over_kills_and_jumps_of_the_clock_and_stay_near_it(
            events in proptest::collection::vec(event(), 0..200),
        ) {
            let mut world = World::new();
            for event in &events {
                world.happen(event);
            }
            world.send();
        }
    }

    #[test]
    fn a_daemon_that_is_killed_again_and_again_stays_within_seconds_of_a_clock_that_goes_its_way() {
        let mut world = World::new();
        for _ in 0..1000 {
            world.happen(&Event::Send);
            world.happen(&Event::Kill);
        }
        world.happen(&Event::Send);
        let near = world.now().unix + LEAD + Duration::from_millis(20);
        assert!(world.sent < Tai64n::from_unix(near));
    }

    #[test]
    fn a_clock_that_was_set_back_is_not_believed() {
        let mut world = World::new();
        for (set_back, lost) in [(-4_000, Event::Kill), (-500_000, Event::Kill), (0, Event::Boot)] {
            world.happen(&Event::Pass(2_000_000));
            world.happen(&Event::Send);
            // What is sent on is within what was reserved, so nothing more is written of it.
            world.happen(&Event::Pass(100_000));
            world.happen(&Event::Send);
            let limit = world.disk.limit;
            world.happen(&Event::Set(set_back));
            world.happen(&lost);
            world.happen(&Event::Send);
            assert!(world.sent > limit, "it goes on above what was reserved");
        }
    }
}
