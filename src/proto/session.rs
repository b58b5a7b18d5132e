//! The two halves of a session that workers hold: [`SealHalf`] and [`OpenHalf`].
//!
//! Both are self-contained: they know their keys, counters, age and limits, and refuse by themselves what the
//! protocol forbids, so a worker needs no word from the control thread to stop in time.
#![forbid(unsafe_code)]

mod handover;
mod run;

pub use handover::{COUNTER_SKIP, OpenState, SealState};
pub use run::GROUP;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use super::endpoint::SessionId;
use super::index::Base;
use super::limits::{REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_AFTER_TIME_RECEIVING, REKEY_TIMEOUT};
use super::replay::{ReplayError, ReplayWindow};
use super::suite::Suite;
use super::time::Time;
use crate::crypto::{Aead, Choice, Forged, KEY_LEN, Record};
use crate::wire::message::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, TAG_LEN};

/// Why a session seals no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is older than REJECT_AFTER_TIME.
    #[error("the session is too old")]
    Expired,
    /// The key sealed as many records as it may.
    #[error("the key sealed as many records as it may")]
    Exhausted,
}

/// Why a record was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its counter was seen before.
    #[error("the counter was seen before")]
    Replayed,
    /// Its counter is older than the replay window.
    #[error("the counter is older than the replay window")]
    TooOld,
    /// It does not authenticate.
    #[error("forged record")]
    Forged,
    /// The session may open no more: it is older than REJECT_AFTER_TIME, or the counter is beyond what a key may seal.
    #[error("the session's time or record count is used up")]
    Expired,
    /// It is of the other suite.
    #[error("the record is of the other suite")]
    WrongSuite,
}

impl From<ReplayError> for OpenError {
    fn from(error: ReplayError) -> OpenError {
        match error {
            ReplayError::Replayed => OpenError::Replayed,
            ReplayError::TooOld => OpenError::TooOld,
        }
    }
}

/// What both halves know about their session.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionFacts {
    pub(super) suite: Suite,
    pub(super) session: SessionId,
    pub(super) created: Time,
    /// Lanes of the other end; 1 in the WireGuard suite.
    pub(super) remote_lanes: u8,
    /// Whether this end sent the first handshake message; only that end rekeys because of age.
    pub(super) initiator: bool,
}

impl SessionFacts {
    #[inline]
    fn expired(&self, now: Time) -> bool {
        now - self.created >= REJECT_AFTER_TIME
    }
}

/// A key of one direction or lane.
pub(super) struct Key {
    aead: Aead,
    /// What the AEAD was made from, for a process that takes over.
    bytes: Zeroizing<[u8; KEY_LEN]>,
}

impl Key {
    pub(super) fn new(suite: Suite, crypto: Choice, bytes: &[u8; KEY_LEN]) -> Key {
        Key {
            aead: Aead::new(suite.algorithm(), crypto, bytes),
            bytes: Zeroizing::new(*bytes),
        }
    }
}

/// A key that seals, and its record counter, shared by every clone of a [`SealHalf`].
struct SealKey {
    aead: Aead,
    bytes: Zeroizing<[u8; KEY_LEN]>,
    next: Counter,
}

/// The counter of the next record, on a cache line pair of its own: in the WireGuard suite all workers write to it,
/// and all read the key next to it.
#[repr(align(128))]
struct Counter(AtomicU64);

impl SealKey {
    /// Takes the next counter below `limit`. The order of records between workers is of no interest.
    #[inline]
    fn claim(&self, limit: u64) -> Result<u64, Refused> {
        // Looking first keeps the number of attempts beyond the limit, and so the counter, from wrapping round.
        if self.next.0.load(Ordering::Relaxed) >= limit {
            return Err(Refused::Exhausted);
        }
        match self.next.0.fetch_add(1, Ordering::Relaxed) {
            counter if counter < limit => Ok(counter),
            _ => Err(Refused::Exhausted),
        }
    }
}

/// Says once per REKEY_TIMEOUT that something is due.
#[derive(Debug, Clone, Copy, Default)]
struct Reminder(Time);

impl Reminder {
    #[inline]
    fn ring(&mut self, due: bool, now: Time) -> bool {
        if !due || now < self.0 {
            return false;
        }
        self.0 = now + REKEY_TIMEOUT;
        true
    }
}

/// The sending half of a session, or of one lane of it.
///
/// Clones share the record counter. In the WireGuard suite every worker seals with a clone of the only half; in the
/// native suite each worker owns the half of its lane.
#[derive(Clone)]
pub struct SealHalf {
    key: Arc<SealKey>,
    facts: SessionFacts,
    /// The index, lane included, that the peer wants to see.
    receiver: u32,
    rekey: Reminder,
}

impl SealHalf {
    pub(super) fn new(facts: SessionFacts, receiver: u32, key: Key) -> SealHalf {
        SealHalf::counting_from(0, facts, receiver, key)
    }

    fn counting_from(next: u64, facts: SessionFacts, receiver: u32, key: Key) -> SealHalf {
        let key = SealKey {
            aead: key.aead,
            bytes: key.bytes,
            next: Counter(AtomicU64::new(next)),
        };
        SealHalf {
            key: Arc::new(key),
            facts,
            receiver,
            rekey: Reminder::default(),
        }
    }

    /// The suite, which says what flags mean and whether data may be padded.
    pub fn suite(&self) -> Suite {
        self.facts.suite
    }

    /// The session that this is a half of.
    pub fn session(&self) -> SessionId {
        self.facts.session
    }

    /// Seals `datagram` = 16 header bytes of any value | plaintext | 16 tag bytes of any value, in place: afterwards
    /// it is a data message, ready to send. `flags` are the native header's and must be 0 in the WireGuard suite.
    ///
    /// # Errors
    /// [`Refused`] when the session is too old or the key used up; `datagram` is untouched.
    ///
    /// # Panics
    /// When `datagram` has no room for header and tag (32 bytes).
    #[inline]
    pub fn seal(&mut self, now: Time, flags: u8, datagram: &mut [u8]) -> Result<(), Refused> {
        assert!(
            datagram.len() >= DATA_OVERHEAD,
            "the caller leaves room for header and tag"
        );
        if self.facts.expired(now) {
            return Err(Refused::Expired);
        }
        let counter = self.key.claim(self.facts.suite.reject_after_messages())?;
        self.key.aead.seal_run(&mut [self.record(counter, flags, datagram)]);
        Ok(())
    }

    /// The record of `datagram`, which gets its header.
    #[inline]
    fn record<'a>(&self, counter: u64, flags: u8, datagram: &'a mut [u8]) -> Record<'a> {
        let suite = self.facts.suite;
        let (head, text) = datagram.split_first_chunk_mut().expect("longer than a header");
        *head = self.header(counter, flags);
        Record::new(suite.nonce(counter), associated_data(suite, head), text)
    }

    #[inline]
    fn header(&self, counter: u64, flags: u8) -> [u8; DATA_HEADER_LEN] {
        debug_assert!(flags == 0 || self.facts.suite.is_native(), "WireGuard has no flags");
        DataHeader {
            kind: self.facts.suite.data_kind(),
            flags,
            receiver: self.receiver,
            counter,
        }
        .bytes()
    }

    /// Goes on from record number `counter`, as if the ones before it had been sealed.
    #[cfg(test)]
    pub(crate) fn skip_to(&self, counter: u64) {
        self.key.next.0.fetch_max(counter, Ordering::Relaxed);
    }

    /// Whether `receiver` is an index of the peer's in this session, whichever lane it names.
    #[inline]
    pub fn is_for(&self, receiver: u32) -> bool {
        Base::of(receiver) == Base::of(self.receiver)
    }

    /// Whether the session is too old to seal anything (REJECT_AFTER_TIME).
    #[inline]
    pub fn is_expired(&self, now: Time) -> bool {
        self.facts.expired(now)
    }

    /// Whether a new handshake should begin: this key sealed REKEY_AFTER_MESSAGES records, or this end initiated the
    /// session and it is REKEY_AFTER_TIME old. True at most once per REKEY_TIMEOUT and half, so it can be passed on
    /// as it comes; costs two comparisons and a load.
    #[inline]
    pub fn wants_rekey(&mut self, now: Time) -> bool {
        let by_age = self.facts.initiator && now - self.facts.created >= REKEY_AFTER_TIME;
        let by_count = self.key.next.0.load(Ordering::Relaxed) >= self.facts.suite.rekey_after_messages();
        self.rekey.ring(by_age || by_count, now)
    }
}

impl fmt::Debug for SealHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealHalf")
            .field("facts", &self.facts)
            .field("receiver", &self.receiver)
            .finish_non_exhaustive()
    }
}

/// The receiving half of a session, or of one lane of it: exactly one worker's.
pub struct OpenHalf {
    aead: Aead,
    bytes: Zeroizing<[u8; KEY_LEN]>,
    facts: SessionFacts,
    local_index: u32,
    window: ReplayWindow,
    rekey: Reminder,
}

impl OpenHalf {
    pub(super) fn new(facts: SessionFacts, local_index: u32, key: Key) -> OpenHalf {
        OpenHalf::with_window(ReplayWindow::new(), facts, local_index, key)
    }

    fn with_window(window: ReplayWindow, facts: SessionFacts, local_index: u32, key: Key) -> OpenHalf {
        OpenHalf {
            aead: key.aead,
            bytes: key.bytes,
            facts,
            local_index,
            window,
            rekey: Reminder::default(),
        }
    }

    /// The suite, which says what flags and plaintexts mean.
    pub fn suite(&self) -> Suite {
        self.facts.suite
    }

    /// The session that this is a half of.
    pub fn session(&self) -> SessionId {
        self.facts.session
    }

    /// How many lanes the other end has; 1 in the WireGuard suite.
    pub fn remote_lanes(&self) -> u8 {
        self.facts.remote_lanes
    }

    /// The receiver index of the data messages that this opens. Its low byte is the lane in the native suite; see
    /// [`owner`](crate::wire::message::owner).
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The number above the highest counter that was authentic; 0 while there was none.
    pub fn newest(&self) -> u64 {
        self.window.edge()
    }

    /// Opens `datagram`, whose header is `header`, in place: suite, age and counter are checked first, and the
    /// counter is marked only once the record proved authentic.
    ///
    /// Returns where in `datagram` the plaintext is.
    ///
    /// # Errors
    /// [`OpenError`]; after `Forged` the text is zeroed, after the others `datagram` is untouched.
    #[inline]
    pub fn open(&mut self, now: Time, header: &DataHeader, datagram: &mut [u8]) -> Result<Range<usize>, OpenError> {
        self.refuses(now, header)?;
        let suite = self.facts.suite;
        let plaintext = DATA_HEADER_LEN..datagram.len().checked_sub(TAG_LEN).ok_or(OpenError::Forged)?;
        let (head, text) = datagram.split_first_chunk_mut().ok_or(OpenError::Forged)?;
        self.aead
            .open_in_place(&suite.nonce(header.counter), associated_data(suite, head), text)
            .map_err(|Forged| OpenError::Forged)?;
        self.window.mark(header.counter);
        Ok(plaintext)
    }

    /// What can be refused without looking at the ciphertext.
    #[inline]
    fn refuses(&self, now: Time, header: &DataHeader) -> Result<(), OpenError> {
        let suite = self.facts.suite;
        if header.kind != suite.data_kind() {
            return Err(OpenError::WrongSuite);
        }
        if self.facts.expired(now) || header.counter >= suite.reject_after_messages() {
            return Err(OpenError::Expired);
        }
        Ok(self.window.check(header.counter)?)
    }

    /// Whether a new handshake should begin: this end initiated the session and it is so old that what is left of
    /// REJECT_AFTER_TIME is needed for the handshake. True at most once per REKEY_TIMEOUT and half.
    #[inline]
    pub fn wants_rekey(&mut self, now: Time) -> bool {
        let due = self.facts.initiator && now - self.facts.created >= REKEY_AFTER_TIME_RECEIVING;
        self.rekey.ring(due, now)
    }
}

impl fmt::Debug for OpenHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenHalf")
            .field("facts", &self.facts)
            .field("local_index", &self.local_index)
            .finish_non_exhaustive()
    }
}

/// WireGuard authenticates the header only through key and nonce; the native suite authenticates all of it.
#[inline]
fn associated_data(suite: Suite, header: &[u8; DATA_HEADER_LEN]) -> &[u8] {
    match suite {
        Suite::Native => header,
        Suite::WireGuard => &[],
    }
}

/// An opening half of a session that nobody else is part of.
#[cfg(test)]
pub(crate) fn open_half(session: SessionId, index: u32) -> OpenHalf {
    let facts = SessionFacts {
        suite: Suite::Native,
        session,
        created: Time::default(),
        remote_lanes: 1,
        initiator: true,
    };
    OpenHalf::new(facts, index, Key::new(facts.suite, Choice::Auto, &[9; 32]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::message::FLAG_PARTIAL_CHECKSUM;

    pub(super) const START: Time = Time::from_nanos(5_000_000_000);
    const INDEX: u32 = 0xabcd_ef01;

    /// Both halves of one direction, created at [`START`].
    pub(super) fn pair(suite: Suite, initiator: bool) -> (SealHalf, OpenHalf) {
        let facts = SessionFacts {
            suite,
            session: SessionId(7),
            created: START,
            remote_lanes: 1,
            initiator,
        };
        let key = || Key::new(suite, Choice::Auto, &[9; 32]);
        (SealHalf::new(facts, INDEX, key()), OpenHalf::new(facts, INDEX, key()))
    }

    pub(super) fn datagram(plaintext: &[u8]) -> Vec<u8> {
        [&[0xee; DATA_HEADER_LEN], plaintext, &[0xee; TAG_LEN]].concat()
    }

    fn sealed(half: &mut SealHalf, plaintext: &[u8]) -> Vec<u8> {
        let mut datagram = datagram(plaintext);
        half.seal(START, 0, &mut datagram).unwrap();
        datagram
    }

    fn open(half: &mut OpenHalf, now: Time, datagram: &mut [u8]) -> Result<Vec<u8>, OpenError> {
        let header = DataHeader::parse(datagram).expect("sealed datagrams have a header");
        half.open(now, &header, datagram).map(|range| datagram[range].to_vec())
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_one_half_seals_the_other_opens_once() {
        for suite in Suite::ALL {
            let (mut seal, mut open_half) = pair(suite, true);
            for plaintext in [&b""[..], b"x", &[7; 1420]] {
                let record = sealed(&mut seal, plaintext);
                assert_eq!(open(&mut open_half, START, &mut record.clone()).unwrap(), plaintext);
                assert_eq!(
                    open(&mut open_half, START, &mut record.clone()),
                    Err(OpenError::Replayed)
                );
            }
        }
    }

    #[test]
    fn a_header_carries_type_flags_index_and_a_counter_from_zero() {
        let (mut seal, _) = pair(Suite::Native, true);
        for counter in 0..3 {
            let mut record = datagram(b"");
            seal.seal(START, FLAG_PARTIAL_CHECKSUM, &mut record).unwrap();
            let header = DataHeader::parse(&record).unwrap();
            assert_eq!(
                header,
                DataHeader {
                    kind: 0x84,
                    flags: 1,
                    receiver: INDEX,
                    counter
                }
            );
        }
    }

    #[test]
    fn clones_of_a_seal_half_never_share_a_counter() {
        let (seal, mut open_half) = pair(Suite::WireGuard, true);
        let records: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    let mut half = seal.clone();
                    scope.spawn(move || (0..500).map(|_| sealed(&mut half, b"")).collect::<Vec<_>>())
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        for mut record in records {
            open(&mut open_half, START, &mut record).unwrap();
        }
        assert_eq!(seal.key.next.0.load(Ordering::Relaxed), 2000);
    }

    #[test]
    fn a_forged_record_is_refused_and_does_not_use_up_its_counter() {
        for suite in Suite::ALL {
            let (mut seal, mut open_half) = pair(suite, true);
            let record = sealed(&mut seal, b"genuine");
            let mut forged = record.clone();
            forged[DATA_HEADER_LEN] ^= 1;
            assert_eq!(open(&mut open_half, START, &mut forged), Err(OpenError::Forged));
            assert_eq!(open(&mut open_half, START, &mut record.clone()).unwrap(), b"genuine");
        }
    }

    #[test]
    fn the_native_suite_authenticates_its_flags() {
        let (mut seal, mut open_half) = pair(Suite::Native, true);
        let mut record = sealed(&mut seal, b"genuine");
        record[1] ^= FLAG_PARTIAL_CHECKSUM;
        assert_eq!(open(&mut open_half, START, &mut record), Err(OpenError::Forged));
    }

    #[test]
    fn records_of_the_other_suite_and_cut_ones_are_refused_without_a_panic() {
        let (mut seal, _) = pair(Suite::Native, true);
        let (_, mut open_half) = pair(Suite::WireGuard, true);
        let mut record = sealed(&mut seal, b"native");
        assert_eq!(open(&mut open_half, START, &mut record), Err(OpenError::WrongSuite));
        let header = DataHeader {
            kind: 4,
            flags: 0,
            receiver: INDEX,
            counter: 0,
        };
        for len in 0..DATA_OVERHEAD {
            assert_eq!(
                open_half.open(START, &header, &mut vec![0; len]),
                Err(OpenError::Forged)
            );
        }
    }

    #[test]
    fn a_session_ends_with_its_time() {
        let (mut seal, mut open_half) = pair(Suite::Native, true);
        let last = START + REJECT_AFTER_TIME;
        let almost = Time::from_nanos(last.as_nanos() - 1);
        let (mut early, mut late) = (datagram(b"early"), datagram(b"late"));
        assert_eq!(seal.seal(almost, 0, &mut early), Ok(()));
        assert_eq!(seal.seal(last, 0, &mut late), Err(Refused::Expired));
        assert_eq!(late, datagram(b"late"), "untouched");
        assert_eq!(open(&mut open_half, last, &mut early.clone()), Err(OpenError::Expired));
        assert_eq!(open(&mut open_half, almost, &mut early).unwrap(), b"early");
    }

    #[test]
    fn a_session_ends_with_its_record_count() {
        for suite in Suite::ALL {
            let limit = suite.reject_after_messages();
            let (mut seal, mut open_half) = pair(suite, false);
            seal.key.next.0.store(limit - 1, Ordering::Relaxed);
            let mut last = sealed(&mut seal, b"last");
            for _ in 0..3 {
                assert_eq!(seal.seal(START, 0, &mut datagram(b"")), Err(Refused::Exhausted));
            }
            assert_eq!(
                seal.key.next.0.load(Ordering::Relaxed),
                limit,
                "attempts do not move the counter"
            );
            assert_eq!(open(&mut open_half, START, &mut last).unwrap(), b"last");
            let header = DataHeader {
                kind: suite.data_kind(),
                flags: 0,
                receiver: INDEX,
                counter: limit,
            };
            assert_eq!(
                open_half.open(START, &header, &mut datagram(b"")),
                Err(OpenError::Expired)
            );
        }
    }

    #[test]
    fn either_end_rekeys_by_count_but_only_the_initiator_by_age() {
        for initiator in [true, false] {
            let (mut seal, mut open_half) = pair(Suite::Native, initiator);
            assert!(!seal.wants_rekey(START + seconds(119)));
            assert_eq!(seal.wants_rekey(START + seconds(120)), initiator);
            assert!(!open_half.wants_rekey(START + seconds(164)));
            assert_eq!(open_half.wants_rekey(START + seconds(165)), initiator);

            let (mut seal, _) = pair(Suite::Native, initiator);
            seal.key.next.0.store(NATIVE_REKEY - 1, Ordering::Relaxed);
            assert!(!seal.wants_rekey(START));
            sealed(&mut seal, b"");
            assert!(seal.wants_rekey(START));
        }
    }

    const NATIVE_REKEY: u64 = super::super::limits::NATIVE_REKEY_AFTER_MESSAGES;

    #[test]
    fn a_wish_to_rekey_is_repeated_only_after_rekey_timeout() {
        let (mut seal, _) = pair(Suite::WireGuard, true);
        let due = START + REKEY_AFTER_TIME;
        assert!(seal.wants_rekey(due));
        assert!(!seal.wants_rekey(due + seconds(4)));
        assert!(seal.wants_rekey(due + seconds(5)));
    }
}
