//! Runs of datagrams: what one GSO batch takes and one GRO buffer brings.
//!
//! ChaCha20-Poly1305 works on eight records side by side in much less time than one after the other, so groups of eight
//! go to the AEAD together; what is left over goes alone.

use std::ops::Range;

use super::{OpenError, OpenHalf, Refused, SealHalf, SealKey, associated_data};
use crate::crypto::Record;
use crate::proto::time::Time;
use crate::wire::message::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, TAG_LEN};

/// Records that the AEAD gets together.
pub const GROUP: usize = 8;

impl SealKey {
    /// Takes `count` counters in a row, all below `limit`; the first of them. See [`SealKey::claim`].
    #[inline]
    fn claim_run(&self, limit: u64, count: u64) -> Result<u64, Refused> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.next.0.load(Relaxed) >= limit {
            return Err(Refused::Exhausted);
        }
        let first = self.next.0.fetch_add(count, Relaxed);
        if limit.saturating_sub(first) < count {
            return Err(Refused::Exhausted);
        }
        Ok(first)
    }
}

impl SealHalf {
    /// [`SealHalf::seal`] for datagrams laid end to end in `run`, each `len` bytes long, their counters in a row. All of
    /// them are sealed, or none. `tails`: the last bytes of the plaintexts, an equal number of each, end to end, which are taken from here
    /// and not from `run`; empty when all is there.
    ///
    /// # Errors
    /// As [`SealHalf::seal`]; the session must have counters left for the whole run.
    ///
    /// # Panics
    /// When `len` is less than [`DATA_OVERHEAD`], `run` is no multiple of it, or `tails` no multiple of the number of datagrams or longer than
    /// their plaintexts.
    #[inline]
    pub fn seal_run(&mut self, now: Time, flags: u8, len: usize, run: &mut [u8], tails: &[u8]) -> Result<(), Refused> {
        assert!(len >= DATA_OVERHEAD && run.len().is_multiple_of(len), "whole datagrams");
        let count = run.len() / len;
        assert!(tails.len().is_multiple_of(count), "a tail for each datagram, or none");
        if self.facts.expired(now) {
            return Err(Refused::Expired);
        }
        let first = self
            .key
            .claim_run(self.facts.suite.reject_after_messages(), count as u64)?;
        let tail_len = tails.len().checked_div(count).unwrap_or(0);
        let counters = (first..).step_by(GROUP);
        for (index, (counter, group)) in counters.zip(run.chunks_mut(GROUP * len)).enumerate() {
            let is_whole = group.len() == GROUP * len;
            let tails = &tails[index * GROUP * tail_len..];
            let mut records = (counter..)
                .zip(group.chunks_mut(len))
                .enumerate()
                .map(|(index, (counter, datagram))| {
                    let tail = &tails[index * tail_len..][..tail_len];
                    self.record(counter, flags, datagram).with_tail(tail)
                });
            if is_whole {
                let mut records: [Record<'_>; GROUP] =
                    std::array::from_fn(|_| records.next().expect("a group has this many datagrams"));
                self.key.aead.seal_run(&mut records);
            } else {
                records.for_each(|record| self.key.aead.seal_run(&mut [record]));
            }
        }
        Ok(())
    }
}

impl OpenHalf {
    /// [`OpenHalf::open`] for [`GROUP`] datagrams laid end to end, each `len` bytes long but perhaps the last, and their
    /// headers. A counter that comes twice within the group is accepted once.
    ///
    /// # Panics
    /// Unless `datagrams` are that many.
    pub fn open_group(
        &mut self,
        now: Time,
        headers: &[DataHeader; GROUP],
        len: usize,
        datagrams: &mut [u8],
    ) -> [Result<Range<usize>, OpenError>; GROUP] {
        let suite = self.facts.suite;
        if headers.iter().any(|header| self.refuses(now, header).is_err()) {
            // Rare: each on its own, so that one refusal costs the others nothing.
            let mut each = headers.iter().zip(datagrams.chunks_mut(len));
            return std::array::from_fn(|_| {
                let (header, datagram) = each.next().expect("a group has this many datagrams");
                self.open(now, header, datagram)
            });
        }
        let mut each = headers.iter().zip(datagrams.chunks_mut(len));
        let mut records: [Record<'_>; GROUP] = std::array::from_fn(|_| {
            let (header, datagram) = each.next().expect("a group has this many datagrams");
            let (head, text) = datagram.split_first_chunk_mut().expect("a parsed header was there");
            Record::new(suite.nonce(header.counter), associated_data(suite, head), text)
        });
        self.aead.open_run(&mut records);
        let opened = records.map(|record| (!record.forged).then_some(record.text.len() - TAG_LEN));
        let mut opened = headers.iter().zip(opened);
        std::array::from_fn(|_| {
            let (header, text_len) = opened.next().expect("as many as went in");
            let text_len = text_len.ok_or(OpenError::Forged)?;
            // A twin in the same group may have been marked since the first look.
            self.window.check(header.counter)?;
            self.window.mark(header.counter);
            Ok(DATA_HEADER_LEN..DATA_HEADER_LEN + text_len)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{START, pair};
    use super::*;
    use crate::proto::suite::Suite;

    const SUITES: [Suite; 2] = [Suite::Native, Suite::WireGuard];

    fn plain(count: usize, len: usize) -> Vec<u8> {
        (0..count * len).map(|at| (at * 7 + at / 256) as u8).collect()
    }

    proptest! {
        #[test]
        fn tails_may_lie_elsewhere(count in 1usize..40, len in DATA_OVERHEAD..1500, tail: prop::sample::Index, wireguard: bool) {
            let (mut seal, _) = pair(SUITES[usize::from(wireguard)], true);
            let other = seal.clone();
            let mut expected = plain(count, len);
            seal.seal_run(START, 0, len, &mut expected, &[]).expect("a fresh session");
            let tail_len = tail.index(len - DATA_OVERHEAD + 1);
            let mut run = plain(count, len);
            let mut tails = Vec::new();
            for datagram in run.chunks_mut(len) {
                let tail = &mut datagram[..len - TAG_LEN][len - TAG_LEN - tail_len..];
                tails.extend_from_slice(tail);
                tail.fill(0xaa);
            }
            other.key.next.0.store(0, std::sync::atomic::Ordering::Relaxed);
            let mut again = other;
            again.seal_run(START, 0, len, &mut run, &tails).expect("a fresh session");
            prop_assert_eq!(run, expected);
        }

        #[test]
        fn a_run_opens_one_by_one_and_in_groups(count in 1usize..40, len in DATA_OVERHEAD..1500, wireguard: bool) {
            let suite = SUITES[usize::from(wireguard)];
            let (mut seal, mut open) = pair(suite, true);
            let original = plain(count, len);
            let mut run = original.clone();
            seal.seal_run(START, 0, len, &mut run, &[]).expect("a fresh session");
            for (at, group) in run.chunks_mut(GROUP * len).enumerate() {
                let headers: Vec<_> = group.chunks(len).filter_map(DataHeader::parse).collect();
                let counters: Vec<_> = headers.iter().map(|header| header.counter).collect();
                let expected: Vec<_> = (0..headers.len()).map(|index| (at * GROUP + index) as u64).collect();
                prop_assert_eq!(counters, expected);
                let results = match headers.first_chunk::<GROUP>() {
                    Some(headers) => open.open_group(START, headers, len, group).to_vec(),
                    None => headers.iter().zip(group.chunks_mut(len)).map(|(header, datagram)| open.open(START, header, datagram)).collect(),
                };
                let original = original[at * GROUP * len..].chunks(len);
                for ((result, datagram), original) in results.into_iter().zip(group.chunks(len)).zip(original) {
                    let text = result.expect("authentic");
                    prop_assert_eq!(&datagram[text.clone()], &original[text]);
                }
            }
        }

        #[test]
        fn within_a_group_forgeries_and_repetitions_are_refused_alone(
            forged in 0..GROUP, twin in 0..GROUP, of in 0..GROUP, wireguard: bool,
        ) {
            let (len, suite) = (200, SUITES[usize::from(wireguard)]);
            let (mut seal, mut open) = pair(suite, true);
            let mut run = plain(GROUP, len);
            seal.seal_run(START, 0, len, &mut run, &[]).expect("a fresh session");
            let original = run[of * len..][..len].to_vec();
            run[twin * len..][..len].copy_from_slice(&original);
            run[forged * len + 60] ^= 1;
            let headers: Vec<_> = run.chunks(len).filter_map(DataHeader::parse).collect();
            let headers = headers.first_chunk().expect("eight headers");
            let results = open.open_group(START, headers, len, &mut run);
            let mut seen = std::collections::HashSet::new();
            for (index, result) in results.into_iter().enumerate() {
                let expected = if index == forged {
                    Err(OpenError::Forged)
                } else if seen.insert(headers[index].counter) {
                    Ok(DATA_HEADER_LEN..len - TAG_LEN)
                } else {
                    Err(OpenError::Replayed)
                };
                prop_assert_eq!(result, expected, "{} of {:?}", index, headers);
            }
        }
    }

    #[test]
    fn a_run_that_does_not_fit_the_limit_is_refused_whole() {
        let (mut seal, _) = pair(Suite::Native, true);
        let limit = Suite::Native.reject_after_messages();
        seal.key.next.0.store(limit - 3, std::sync::atomic::Ordering::Relaxed);
        let mut run = plain(4, 100);
        let before = run.clone();
        assert_eq!(seal.seal_run(START, 0, 100, &mut run, &[]), Err(Refused::Exhausted));
        assert_eq!(run, before);
        assert_eq!(
            seal.seal_run(START, 0, 100, &mut run[..100], &[]),
            Err(Refused::Exhausted)
        );
    }
}
