//! Whether a peer can be reached from a lane's own UDP port.
//!
//! A network card spreads arriving datagrams over its queues by addresses and ports, and all datagrams of one peer have
//! the same four. With `lane_ports` each lane's data leaves from a port of its own, which makes as many flows of one
//! peer as there are lanes. Nobody listens on these ports: answers go to the port that all workers share, and the
//! datagrams say so (FLAG_LANE_PORT), so that the peer does not take one of them for our new address.
//!
//! A firewall or NAT at the far end may know the shared port only. So data goes by the lane's port only while echoes that
//! were sent from there come back, and by the shared one otherwise. Where we moved, the peer learns from datagrams that
//! left from the shared port, one of which therefore goes with each echo.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::proto::Time;

/// How often an echo is sent from the lane's port while data goes to the peer.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer counts: two further echoes may get lost.
const PROOF_LIFETIME: Duration = Duration::from_millis(3_500);

/// In the tokens of these echoes, so that they are not taken for those that measure the round-trip time.
const TOKEN_BIT: u64 = 1 << 63;
/// Above it is the worker's number, below it the time in units of 1,024 ns.
const TOKEN_WORKER_SHIFT: u32 = 55;
const TOKEN_TIME_SHIFT: u32 = 10;
const TOKEN_TIME_MASK: u64 = (1 << TOKEN_WORKER_SHIFT) - 1;

/// Which echo of each worker's came back last. An answer comes on the far end's lane, so not always to the worker that
/// asked; once a second one writes what another reads.
#[derive(Debug)]
pub(super) struct LaneProofs {
    workers: usize,
    /// Tokens; made with the first answer.
    answered: OnceLock<Box<[AtomicU64]>>,
}

impl LaneProofs {
    /// Nothing came back for any of `workers` workers.
    pub(super) fn new(workers: usize) -> LaneProofs {
        LaneProofs {
            workers,
            answered: OnceLock::new(),
        }
    }

    /// An answer came back; a token that is no such echo's changes nothing.
    pub(super) fn answered(&self, token: u64) {
        let worker = ((token & !TOKEN_BIT) >> TOKEN_WORKER_SHIFT) as usize;
        if token & TOKEN_BIT != 0 && worker < self.workers {
            let nothing = || (0..self.workers).map(|_| AtomicU64::new(0)).collect();
            self.answered.get_or_init(nothing)[worker].store(token, Relaxed);
        }
    }

    fn last(&self, worker: usize) -> u64 {
        self.answered.get().map_or(0, |answered| answered[worker].load(Relaxed))
    }
}

/// What one worker knows of one peer's reachability from the worker's own port.
#[derive(Debug)]
pub(super) struct LanePort {
    worker: u8,
    probed: Option<Time>,
    /// The lowest token whose answer counts.
    since: u64,
}

impl LanePort {
    /// Worker `worker`'s.
    pub(super) fn new(worker: u8) -> LanePort {
        LanePort {
            worker,
            probed: None,
            since: 1,
        }
    }

    /// Whether the worker's data may leave from its own port.
    #[inline]
    pub(super) fn carries(&self, now: Time, proofs: &LaneProofs) -> bool {
        let last = proofs.last(usize::from(self.worker));
        let age_ns = token(now, self.worker).saturating_sub(last) << TOKEN_TIME_SHIFT;
        last >= self.since && age_ns < PROOF_LIFETIME.as_nanos() as u64
    }

    /// The token of an echo that is due from the worker's own port.
    #[inline]
    pub(super) fn due_probe(&mut self, now: Time) -> Option<u64> {
        if self.probed.is_some_and(|last| now - last < PROBE_INTERVAL) {
            return None;
        }
        self.probed = Some(now);
        Some(token(now, self.worker))
    }

    /// The peer is elsewhere: nothing that came back so far counts.
    pub(super) fn moved(&mut self) {
        if let Some(probed) = self.probed.take() {
            self.since = token(probed, self.worker) + 1;
        }
    }
}

/// Names an echo.
#[inline]
fn token(now: Time, worker: u8) -> u64 {
    TOKEN_BIT | u64::from(worker) << TOKEN_WORKER_SHIFT | now.as_nanos() >> TOKEN_TIME_SHIFT & TOKEN_TIME_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Time {
        Time::from_nanos(milliseconds * 1_000_000)
    }

    #[test]
    fn the_lanes_port_carries_data_while_its_echoes_are_answered() {
        let (mut port, proofs) = (LanePort::new(3), LaneProofs::new(4));
        assert!(!port.carries(at(0), &proofs));
        let token = port.due_probe(at(1_000)).expect("nothing was asked yet");
        assert_eq!(port.due_probe(at(1_500)), None, "one echo per second");
        assert!(!port.carries(at(1_500), &proofs));
        proofs.answered(token);
        assert!(port.carries(at(1_500), &proofs));
        assert!(
            !LanePort::new(2).carries(at(1_500), &proofs),
            "that was not the other worker's"
        );
        port.due_probe(at(2_000)).expect("a second is over");
        assert!(port.carries(at(4_400), &proofs), "a lost echo does not matter");
        assert!(!port.carries(at(4_501), &proofs), "but silence does");
    }

    #[test]
    fn after_a_move_only_new_echoes_count() {
        let (mut port, proofs) = (LanePort::new(0), LaneProofs::new(1));
        let old = port.due_probe(at(1_000)).expect("nothing was asked yet");
        port.moved();
        proofs.answered(old);
        assert!(!port.carries(at(1_001), &proofs));
        let new = port.due_probe(at(1_001)).expect("asked anew at once");
        proofs.answered(new);
        assert!(port.carries(at(1_002), &proofs));
    }

    #[test]
    fn tokens_that_are_no_such_echoes_prove_nothing() {
        let (mut port, proofs) = (LanePort::new(0), LaneProofs::new(1));
        let token = port.due_probe(at(7)).expect("nothing was asked yet");
        for other in [
            at(7).as_nanos(),
            token & !TOKEN_BIT,
            token | 9 << TOKEN_WORKER_SHIFT,
            0,
            u64::MAX,
        ] {
            proofs.answered(other);
            assert!(!port.carries(at(7), &proofs), "{other:x}");
        }
    }
}
