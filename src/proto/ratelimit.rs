//! Who gets a handshake's worth of work: token buckets, and the decision when a cookie is demanded first.
//!
//! Load is decided per source: a source that asks more often than [`FREE`] allows has to show that it owns its
//! address, others do not notice. Only when all sources together ask for more than [`TOTAL`], which a flood from many
//! forged addresses does, everybody has to. Having shown it buys no more than [`PROVEN`] from one source.
//!
//! Sources share a fixed number of buckets by a keyed hash. Memory is bounded without an eviction that a flood could
//! play with; two sources in one bucket share a limit, and nobody can choose with whom.
#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use super::recent::Recent;
use super::time::Time;

/// Handshakes without a cookie from one source: enough for an office full of peers behind one NAT, and a few percent
/// of one core.
pub const FREE: Rate = Rate {
    per_second: 200,
    burst: 500,
};
/// Handshakes without a cookie from all sources. A bogus one costs about 0.06 ms and a genuine one 0.2 ms: in the long run a
/// flood gets a few percent of one core, and a thousand peers that come back at once need no cookie.
pub const TOTAL: Rate = Rate {
    per_second: 250,
    burst: 1_000,
};
/// Handshakes with a valid mac2 from one source: the rate of the kernel's ratelimiter.c.
pub const PROVEN: Rate = Rate {
    per_second: 20,
    burst: 5,
};

/// Cookie replies to whoever is turned away. One costs more than the rest of what a bogus message does: a flood from forged
/// sources must not turn into as many replies.
pub const FIRST_REPLIES: Rate = Rate {
    per_second: 500,
    burst: 2_000,
};
/// Cookie replies to sources that got none a few seconds before, as an honest initiator that tries again: forged sources that
/// are drawn at random hardly ever were there before. So whoever gets no reply to its first initiation gets one to its second.
pub const REPEATED_REPLIES: Rate = Rate {
    per_second: 3_000,
    burst: 3_000,
};
/// Cookie replies to sources that got one a moment before: who has its cookie asks for none while it is good, so sources that a
/// flood repeats leave the others' replies alone. Not none, because replies get lost, and because whoever writes an honest
/// peer's address onto a message of its own takes that peer's reply away.
pub const FURTHER_REPLIES: Rate = Rate {
    per_second: 1_000,
    burst: 1_000,
};

/// Buckets of each kind: 64 KiB.
const BUCKETS: usize = 4096;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once, after a pause.
    pub burst: u32,
}

impl Rate {
    /// Nanoseconds in which one token comes back.
    const fn interval_ns(self) -> u64 {
        NANOS_PER_SECOND / self.per_second as u64
    }
}

/// A token bucket as the time at which it is full again: taking a token moves that time one interval on.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    full_at_ns: u64,
}

impl Bucket {
    /// Whether there is a token to take.
    fn has(self, now: Time, rate: Rate) -> bool {
        let mut bucket = self;
        bucket.take(now, rate)
    }

    fn take(&mut self, now: Time, rate: Rate) -> bool {
        let full_at_ns = self.full_at_ns.max(now.as_nanos()).saturating_add(rate.interval_ns());
        let allowed = full_at_ns - now.as_nanos() <= rate.interval_ns() * u64::from(rate.burst);
        if allowed {
            self.full_at_ns = full_at_ns;
        }
        allowed
    }
}

/// One bucket per source, more or less.
struct PerSource {
    rate: Rate,
    buckets: Vec<Bucket>,
}

impl PerSource {
    fn new(rate: Rate) -> PerSource {
        PerSource {
            rate,
            buckets: Vec::new(),
        }
    }

    fn take(&mut self, now: Time, slot: usize) -> bool {
        if self.buckets.is_empty() {
            self.buckets.resize(BUCKETS, Bucket::default());
        }
        self.buckets[slot % BUCKETS].take(now, self.rate)
    }
}

/// What to do with a message whose mac1 is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Do the work.
    Admit,
    /// Answer with a cookie.
    DemandCookie,
    /// Its sender owns its address, and asks too often.
    RateLimited,
}

/// Decides who is admitted.
pub(super) struct Gate {
    hash_key: [u8; 16],
    free: PerSource,
    proven: PerSource,
    total: Bucket,
}

impl Gate {
    /// Nobody has asked yet. `hash_key` is secret and random.
    pub(super) fn new(hash_key: [u8; 16]) -> Gate {
        Gate {
            hash_key,
            free: PerSource::new(FREE),
            proven: PerSource::new(PROVEN),
            total: Bucket::default(),
        }
    }

    /// Counts a message from `source`; `has_cookie` says whether its mac2 is valid and is asked under load only.
    pub(super) fn judge(&mut self, now: Time, source: IpAddr, has_cookie: impl FnOnce() -> bool) -> Verdict {
        // In a flood from everywhere this comes first, because buckets of sources are not in the cache. A source beyond its own
        // share does not use up everybody's.
        if self.total.has(now, TOTAL) && self.free.take(now, self.slot(source)) && self.total.take(now, TOTAL) {
            return Verdict::Admit;
        }
        if !has_cookie() {
            return Verdict::DemandCookie;
        }
        match self.proven.take(now, self.slot(source)) {
            true => Verdict::Admit,
            false => Verdict::RateLimited,
        }
    }

    fn slot(&self, source: IpAddr) -> usize {
        let mut hasher = DefaultHasher::new();
        self.hash_key.hash(&mut hasher);
        match source.to_canonical() {
            IpAddr::V4(ip) => ip.octets().hash(&mut hasher),
            // One customer gets a /64 at least (RFC 6177), so any smaller unit costs an attacker nothing.
            IpAddr::V6(ip) => ip.segments()[..4].hash(&mut hasher),
        }
        hasher.finish() as usize
    }
}

/// Decides who gets a cookie reply.
pub(super) struct Replies {
    hash_key: [u8; 16],
    first: Bucket,
    repeated: Bucket,
    further: Bucket,
    turned_away: Recent,
    answered: Recent,
}

impl Replies {
    /// Nobody was turned away yet. `hash_key` is secret and random.
    pub(super) fn new(hash_key: [u8; 16]) -> Replies {
        Replies {
            hash_key,
            first: Bucket::default(),
            repeated: Bucket::default(),
            further: Bucket::default(),
            turned_away: Recent::default(),
            answered: Recent::default(),
        }
    }

    /// Whether `source`, which is turned away, gets a reply.
    pub(super) fn allow(&mut self, now: Time, source: SocketAddr) -> bool {
        let mut hasher = DefaultHasher::new();
        self.hash_key.hash(&mut hasher);
        (source.ip().to_canonical(), source.port()).hash(&mut hasher);
        let hash = hasher.finish();
        let (bucket, rate) = if self.first.has(now, FIRST_REPLIES) {
            (&mut self.first, FIRST_REPLIES)
        } else if self.turned_away.insert(now, hash) {
            (&mut self.repeated, REPEATED_REPLIES)
        } else {
            return false;
        };
        if self.answered.contains(now, hash) {
            return self.further.take(now, FURTHER_REPLIES);
        }
        let allowed = bucket.take(now, rate);
        if allowed {
            self.answered.insert(now, hash);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use super::*;

    const START: Time = Time::from_nanos(77 * NANOS_PER_SECOND);

    fn gate() -> Gate {
        Gate::new([3; 16])
    }

    fn v4(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    /// How many of `count` messages at `now` get which verdict.
    fn tally(gate: &mut Gate, now: Time, source: IpAddr, count: u32, cookie: bool) -> [u32; 3] {
        let mut tally = [0; 3];
        for _ in 0..count {
            tally[gate.judge(now, source, || cookie) as usize] += 1;
        }
        tally
    }

    #[test]
    fn a_source_is_free_up_to_its_burst_and_then_has_to_show_a_cookie() {
        let mut gate = gate();
        assert_eq!(tally(&mut gate, START, v4(1), 550, false), [500, 50, 0]);
        assert_eq!(
            tally(&mut gate, START, v4(2), 10, false),
            [10, 0, 0],
            "others do not notice"
        );
        let later = START + Duration::from_secs(1);
        assert_eq!(tally(&mut gate, later, v4(1), 210, false), [200, 10, 0]);
    }

    #[test]
    fn a_cookie_buys_a_limited_rate_only() {
        let mut gate = gate();
        tally(&mut gate, START, v4(1), FREE.burst, false);
        assert_eq!(tally(&mut gate, START, v4(1), 30, true), [5, 0, 25]);
        let later = START + Duration::from_millis(150);
        assert_eq!(
            tally(&mut gate, later, v4(1), 30, false),
            [30, 0, 0],
            "the free bucket filled up"
        );
        assert_eq!(tally(&mut gate, later, v4(1), 30, true), [3, 0, 27]);
    }

    #[test]
    fn a_flood_from_many_sources_makes_everyone_show_a_cookie() {
        let mut gate = gate();
        let mut admitted = 0;
        for source in 0..20_000u32 {
            admitted += tally(&mut gate, START, Ipv4Addr::from(source).into(), 1, false)[0];
        }
        assert_eq!(admitted, TOTAL.burst);
        let honest = v4(9);
        assert_eq!(tally(&mut gate, START, honest, 1, false), [0, 1, 0]);
        assert_eq!(tally(&mut gate, START, honest, 1, true), [1, 0, 0]);
    }

    #[test]
    fn the_addresses_of_one_ipv6_subnet_are_one_source() {
        let mut gate = gate();
        let host = |n: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, n).into();
        let admitted: u32 = (0..600).map(|n| tally(&mut gate, START, host(n), 1, false)[0]).sum();
        assert_eq!(admitted, FREE.burst);

        let mut gate = Gate::new([4; 16]);
        let mapped = |last| IpAddr::V6(Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped());
        assert_eq!(tally(&mut gate, START, mapped(1), 500, false), [500, 0, 0]);
        assert_eq!(
            tally(&mut gate, START, v4(1), 1, false),
            [0, 1, 0],
            "a mapped address is the IPv4 address"
        );
    }

    #[test]
    fn in_a_flood_from_forged_sources_whoever_asks_again_gets_a_reply() {
        let mut replies = Replies::new([5; 16]);
        let source = |number: u32| SocketAddr::from((Ipv4Addr::from(number), 9));
        let answered = (0..50_000)
            .filter(|&number| replies.allow(START, source(number)))
            .count();
        assert!(
            answered >= FIRST_REPLIES.burst as usize && answered < 2 * FIRST_REPLIES.burst as usize,
            "{answered}"
        );
        let honest = source(60_000);
        assert!(!replies.allow(START, honest));
        let mut later = START;
        for second in 1..=5 {
            later = START + Duration::from_secs(second);
            for number in 0..50_000 {
                replies.allow(later, source(second as u32 * 100_000 + number));
            }
        }
        assert!(replies.allow(later, honest));
    }

    #[test]
    fn a_flood_that_repeats_its_sources_leaves_replies_to_others() {
        let mut replies = Replies::new([5; 16]);
        let source = |number: u32| SocketAddr::from((Ipv4Addr::from(number), 9));
        let honest = source(60_000);
        let (mut now, mut answered) = (START, 0);
        let mut first = None;
        for second in 0..12u64 {
            for number in 0..50_000 {
                now = START + Duration::from_secs(second) + Duration::from_micros(20) * number;
                answered += u32::from(replies.allow(now, source(number % 5_000)));
            }
            // As an initiator does, every 5 seconds.
            if second % 5 == 4 && replies.allow(now, honest) {
                first.get_or_insert(second);
            }
        }
        assert!(first.is_some_and(|second| second <= 9), "{first:?}");
        let further = FURTHER_REPLIES.burst + 12 * FURTHER_REPLIES.per_second;
        assert!(answered <= 3 * 5_000 + further, "each once per generation: {answered}");
    }

    #[test]
    fn a_reply_that_a_stranger_took_away_is_made_up_for() {
        let mut replies = Replies::new([5; 16]);
        let honest = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 51820));
        assert!(replies.allow(START, honest), "to the stranger's message");
        for number in 0..50_000u32 {
            replies.allow(START, (Ipv4Addr::from(number), 9).into());
        }
        assert!(!replies.allow(START, honest), "turned away for the first time");
        assert!(replies.allow(START + Duration::from_secs(5), honest));
    }

    #[test]
    fn refused_messages_do_not_push_the_limit_away() {
        let mut gate = gate();
        tally(&mut gate, START, v4(1), 100_000, false);
        assert_eq!(
            tally(&mut gate, START + Duration::from_secs(3), v4(1), 500, false),
            [500, 0, 0]
        );
    }
}
