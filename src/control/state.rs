//! What must outlive a restart: TAI64N timestamps, so that neither old initiations pass for new ones, nor ours for old
//! ones where the clock was set back.
//!
//! The file holds the latest timestamp received from each peer, and one timestamp that all of ours stay below. That one is
//! reserved ahead of time, so that handshakes need no write each; a daemon that was killed goes on above it. A file that
//! is missing is a first start, and one that is damaged a warning: the tunnel comes up as without it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::runtime::{Runtime, replace_file};
use crate::config::PublicKey;
use crate::proto::tai64n::Tai64n;
use crate::proto::{Time, Timestamps};
use crate::wire::message::TIMESTAMP_LEN;

/// How far ahead timestamps are reserved, in seconds.
const RESERVE_S: u64 = 600;
/// How far apart writes are at least, while handshakes go on.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// How long after the first handshake the first write comes.
const FIRST_WRITE_DELAY: Duration = Duration::from_secs(1);

const HEAD: &str = "ringway state 1";
const END: &str = "end";

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// No initiation of ours had a later timestamp.
    sent: Tai64n,
    /// The latest initiations of peers.
    received: HashMap<PublicKey, Tai64n>,
}

/// The file, while the tunnel runs.
pub(super) struct State {
    runtime: Runtime,
    path: PathBuf,
    /// What an earlier run left; a peer's part goes with the first peer that has its key.
    kept: Kept,
    /// What the file says that we stay below.
    reserved: Tai64n,
    /// What the file says of peers.
    written: HashMap<PublicKey, Tai64n>,
    next: Option<Time>,
    last: Option<Time>,
    writing: Option<JoinHandle<io::Result<()>>>,
    complained: bool,
}

impl State {
    /// Reads what an earlier run left at `path`.
    pub(super) fn open(runtime: Runtime, path: &Path) -> State {
        let kept = match std::fs::read_to_string(path) {
            Ok(text) => Kept::parse(&text).unwrap_or_else(|reason| {
                tracing::warn!(
                    "{}: {reason}; going on without what it kept: until their next handshakes, peers could be sent old \
                     initiations again",
                    path.display()
                );
                Kept::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => {
                tracing::warn!("{}: {error}; going on without what it kept", path.display());
                Kept::default()
            }
        };
        State {
            runtime,
            path: path.to_owned(),
            reserved: kept.sent,
            written: kept.received.clone(),
            kept,
            next: None,
            last: None,
            writing: None,
            complained: false,
        }
    }

    /// What was kept of a peer that is added.
    pub(super) fn of_new(&mut self, peer: &PublicKey) -> Timestamps {
        Timestamps {
            sent: self.kept.sent,
            // Once: whoever removes a peer and adds it again wants it to begin anew.
            received: self.kept.received.remove(peer).unwrap_or_default(),
        }
    }

    /// There was a handshake message from or to a peer.
    pub(super) fn touch(&mut self, now: Time) {
        if self.next.is_none() {
            self.next = Some(
                self.last
                    .map_or(now + FIRST_WRITE_DELAY, |last| (last + WRITE_INTERVAL).max(now)),
            );
        }
    }

    /// When [`State::write`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.next
    }

    /// Begins to write what changed, if anything that counts did. `timestamps`: of all peers.
    pub(super) fn write(&mut self, now: Time, timestamps: impl Iterator<Item = (PublicKey, Timestamps)>) {
        self.next = None;
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            self.next = Some(now + FIRST_WRITE_DELAY);
            return;
        }
        let (latest, received) = collect(timestamps);
        if latest.plus_seconds(RESERVE_S / 2) < self.reserved && received == self.written {
            return;
        }
        let reserved = latest.max(self.kept.sent).plus_seconds(RESERVE_S);
        let text = render(reserved, &received);
        (self.reserved, self.written, self.last) = (reserved, received, Some(now));
        let (runtime, path) = (self.runtime, self.path.clone());
        let complained = std::mem::replace(&mut self.complained, true);
        self.writing = Some(tokio::task::spawn_local(async move {
            let result = replace_file(runtime, &path, text.into_bytes()).await;
            if let Err(error) = &result
                && !complained
            {
                tracing::warn!(
                    "{}: cannot be written: {error}; timestamps will not outlive this run (see state_dir)",
                    path.display()
                );
            }
            result
        }));
    }

    /// Writes how it ended, without any reserve, if the file could be written at all.
    pub(super) async fn finish(mut self, timestamps: impl Iterator<Item = (PublicKey, Timestamps)>) {
        let can_be_written = match self.writing.take() {
            Some(writing) => matches!(writing.await, Ok(Ok(()))),
            // Not tried yet; without a handshake there is nothing to say.
            None => self.next.is_some(),
        };
        if !can_be_written {
            return;
        }
        let (latest, received) = collect(timestamps);
        let text = render(latest.max(self.kept.sent), &received);
        if let Err(error) = replace_file(self.runtime, &self.path, text.into_bytes()).await {
            tracing::warn!("{}: cannot be written: {error}", self.path.display());
        }
    }
}

/// The latest timestamp of ours, and what was received.
fn collect(timestamps: impl Iterator<Item = (PublicKey, Timestamps)>) -> (Tai64n, HashMap<PublicKey, Tai64n>) {
    let mut latest = Tai64n::default();
    let mut received = HashMap::new();
    for (peer, stamps) in timestamps {
        latest = latest.max(stamps.sent);
        if stamps.received != Tai64n::default() {
            received.insert(peer, stamps.received);
        }
    }
    (latest, received)
}

impl Kept {
    fn parse(text: &str) -> Result<Kept, String> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(format!("is no state file: it should begin with \"{HEAD}\""));
        }
        let mut kept = Kept::default();
        for (line, number) in lines.by_ref().zip(2..) {
            let wrong = || format!("line {number} is damaged");
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["sent", stamp] => kept.sent = stamp_of(stamp).ok_or_else(wrong)?,
                ["received", key, stamp] => {
                    let key = key.parse().map_err(|_| wrong())?;
                    kept.received.insert(key, stamp_of(stamp).ok_or_else(wrong)?);
                }
                [END] => return Ok(kept),
                _ => return Err(wrong()),
            }
        }
        Err("is cut off".into())
    }
}

fn render(sent: Tai64n, received: &HashMap<PublicKey, Tai64n>) -> String {
    let mut text = format!("{HEAD}\nsent {}\n", hex(sent));
    let mut received: Vec<_> = received.iter().collect();
    received.sort();
    for (peer, stamp) in received {
        // Writing to a String can't fail.
        let _ = writeln!(text, "received {peer} {}", hex(*stamp));
    }
    text + END + "\n"
}

fn hex(stamp: Tai64n) -> String {
    stamp.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn stamp_of(text: &str) -> Option<Tai64n> {
    let mut bytes = [0; TIMESTAMP_LEN];
    if text.len() != 2 * TIMESTAMP_LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(Tai64n::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seconds: u64) -> Tai64n {
        Tai64n::from_unix(Duration::from_secs(seconds))
    }

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn file(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ringway-state-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_was_written_is_read_again() {
        let received = HashMap::from([(key(1), stamp(5)), (key(2), stamp(7))]);
        let text = render(stamp(9), &received);
        let kept = Kept {
            sent: stamp(9),
            received,
        };
        assert_eq!(Kept::parse(&text), Ok(kept));
    }

    #[test]
    fn damage_is_told_and_never_half_believed() {
        let text = render(stamp(9), &HashMap::from([(key(1), stamp(5))]));
        for (damaged, reason) in [
            (String::new(), "is no state file"),
            (text.replace("ringway", "ringwax"), "is no state file"),
            (text.replace("end\n", ""), "is cut off"),
            (text.replace("sent", "bent"), "line 2 is damaged"),
            (text.replacen('=', "", 1), "line 3 is damaged"),
            (text.replacen("received ", "received x", 1), "line 3 is damaged"),
            (text.replacen("sent 4", "sent g", 1), "line 2 is damaged"),
            (text.replacen("sent 4", "sent é", 1), "line 2 is damaged"),
        ] {
            let error = Kept::parse(&damaged).expect_err("damaged");
            assert!(error.contains(reason), "{error}: {damaged}");
        }
    }

    #[test]
    fn a_killed_run_is_followed_by_later_timestamps_whatever_the_clock_says() {
        let path = file("killed");
        let run = |sent: Option<u64>, finish: bool| {
            let stamps = sent.map(|sent| Timestamps {
                sent: stamp(sent),
                received: stamp(3),
            });
            let runtime = Runtime::Tokio;
            runtime
                .block_on(async |runtime| {
                    let mut state = State::open(runtime, &path);
                    let kept = state.of_new(&key(1));
                    if let Some(stamps) = stamps {
                        state.touch(at(0));
                        assert_eq!(state.poll_timeout(), Some(at(1)));
                        state.write(at(1), std::iter::once((key(1), stamps)));
                        let is_written = |state: &State| state.writing.as_ref().is_some_and(JoinHandle::is_finished);
                        while !is_written(&state) {
                            tokio::task::yield_now().await;
                        }
                        state.write(at(9), std::iter::once((key(1), stamps)));
                        assert_eq!(state.last, Some(at(1)), "nothing is new");
                        state.touch(at(9));
                        assert_eq!(state.poll_timeout(), Some(at(61)), "not so soon again");
                        if finish {
                            state.finish(std::iter::once((key(1), stamps))).await;
                        }
                    }
                    kept
                })
                .expect("a runtime")
        };
        assert_eq!(run(Some(1000), false), Timestamps::default());
        let kept = run(None, false);
        assert_eq!((kept.sent, kept.received), (stamp(1000 + RESERVE_S), stamp(3)));
        // It goes on above what was reserved, and says so where it ends in good order.
        run(Some(2000), true);
        assert_eq!(run(None, false).sent, stamp(2000));
        std::fs::remove_file(&path).expect("it was written");
    }

    #[test]
    fn a_damaged_file_and_one_that_cannot_be_written_stop_nothing() {
        let path = file("damaged");
        std::fs::write(&path, "rubbish").expect("it can be written");
        let runtime = Runtime::Tokio;
        let stamps = Timestamps {
            sent: stamp(1),
            received: stamp(1),
        };
        runtime
            .block_on(async |runtime| {
                let mut state = State::open(runtime, &path);
                assert_eq!(state.of_new(&key(1)), Timestamps::default());
                std::fs::remove_file(&path).expect("it is there");
                std::fs::create_dir(&path).expect("it is gone");
                state.write(at(1), std::iter::once((key(1), stamps)));
                state.finish(std::iter::once((key(1), stamps))).await;
            })
            .expect("a runtime");
        std::fs::remove_dir(&path).expect("it stays a directory");
    }
}
