//! What must outlive a restart: TAI64N timestamps, so that neither old initiations pass for new ones, nor ours for old
//! ones where the clock was set back.
//!
//! The file holds the latest timestamp received from each peer, and what ours can have been, reserved ahead of time so that
//! handshakes need no write each ([`super::stamps`]). A file that is missing is a first start, and one that is damaged
//! a warning: the tunnel comes up as without it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::runtime::{blocking, by_disk_deadline, disk_deadline, judge_place, replace_file};
use super::stamps::{Course, Reserved, Stamps};
use crate::config::PublicKey;
use crate::proto::tai64n::Tai64n;
use crate::proto::{Now, Time, Timestamps};
use crate::wire::message::TIMESTAMP_LEN;

/// How far apart writes are at least, while handshakes go on.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// How long after the first handshake the first write comes.
const FIRST_WRITE_DELAY: Duration = Duration::from_secs(1);

/// Names the boot of the machine (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const HEAD: &str = "ringway state 1";
const END: &str = "end";

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    sent: Reserved,
    /// The latest initiations of peers.
    received: HashMap<PublicKey, Tai64n>,
}

/// The file, while the tunnel runs.
pub(super) struct State {
    path: PathBuf,
    /// What an earlier run left; a peer's part goes with the first peer that has its key.
    kept: Kept,
    /// Ours.
    stamps: Stamps,
    /// What the file says of peers.
    written: HashMap<PublicKey, Tai64n>,
    next: Option<Time>,
    last: Option<Time>,
    writing: Option<JoinHandle<io::Result<()>>>,
    complained: bool,
    /// The file has no reserve, as if nothing more were sent.
    ended: bool,
}

impl State {
    /// Reads what an earlier run left at `path`, and reserves what this one goes on with where that is ahead of the clock. `None`, and
    /// the file stays as it is, where its disk does not answer or others can have chosen what it is.
    pub(super) async fn open(path: &Path, now: Now) -> Option<State> {
        let file = path.to_owned();
        let read = blocking(move || judge_place(&file).map(|()| std::fs::read_to_string(&file)));
        let deadline = disk_deadline();
        let read = match by_disk_deadline(deadline, async { read.await.flatten() }).await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!("{}: {error}; nothing is kept over a restart", path.display());
                return None;
            }
        };
        let kept = match read {
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
        let boot = std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned());
        let mut state = State {
            path: path.to_owned(),
            stamps: Stamps::begin(boot.ok(), now, kept.sent.clone()),
            written: kept.received.clone(),
            kept,
            next: None,
            last: None,
            writing: None,
            complained: false,
            ended: false,
        };
        if state.stamps.begins_ahead(now) {
            let reserved = state.stamps.renew(state.stamps.floor(), now);
            let text = render(&reserved, &state.kept.received);
            state.begin_to_write(text, true);
            if let Err(error) = by_disk_deadline(deadline, async { Ok(state.written().await) }).await {
                tracing::warn!("{}: {error}", path.display());
            }
        }
        Some(state)
    }

    /// What was kept of a peer that is added.
    pub(super) fn of_new(&mut self, peer: &PublicKey) -> Timestamps {
        Timestamps {
            sent: self.stamps.floor(),
            // Once: whoever removes a peer and adds it again wants it to begin anew.
            received: self.kept.received.remove(peer).unwrap_or_default(),
        }
    }

    /// There was a handshake message from or to a peer.
    pub(super) fn touch(&mut self, now: Now) {
        if self.stamps.is_off_course(now) {
            self.next = Some(now.mono);
        }
        if self.next.is_none() {
            self.next = Some(self.last.map_or(now.mono + FIRST_WRITE_DELAY, |last| {
                (last + WRITE_INTERVAL).max(now.mono)
            }));
        }
    }

    /// When [`State::write`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.next
    }

    /// Begins to write what changed, if anything that counts did. `timestamps`: of all peers.
    pub(super) fn write(&mut self, now: Now, timestamps: impl Iterator<Item = (PublicKey, Timestamps)>) {
        self.next = None;
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            self.next = Some(now.mono + FIRST_WRITE_DELAY);
            return;
        }
        let (latest, received) = collect(timestamps);
        if !self.ended && !self.stamps.is_short(latest, now) && received == self.written {
            return;
        }
        let text = render(&self.stamps.renew(latest, now), &received);
        (self.written, self.last, self.ended) = (received, Some(now.mono), false);
        let complained = std::mem::replace(&mut self.complained, true);
        self.begin_to_write(text, !complained);
    }

    /// Begins to write this, on a thread of its own; to be called when nothing is being written.
    fn begin_to_write(&mut self, text: String, complain: bool) {
        let path = self.path.clone();
        self.writing = Some(tokio::task::spawn_local(async move {
            let result = replace_file(&path, text.into_bytes()).await;
            result.inspect_err(|error| {
                if complain {
                    tracing::warn!(
                        "{}: cannot be written: {error}; timestamps will not outlive this run (see state_dir)",
                        path.display()
                    );
                }
            })
        }));
    }

    /// Waits until nothing is being written, and tells how that ended, if anything was. Who stops waiting may wait again.
    async fn written(&mut self) -> Option<bool> {
        let result = self.writing.as_mut()?.await;
        self.writing = None;
        Some(matches!(result, Ok(Ok(()))))
    }

    /// Writes how it ended, without any reserve, if the file could be written at all. Where it goes on after all, the reserve
    /// comes back with the next write, which is due at once. Who stops waiting has it written all the same, unless the disk had
    /// not yet taken what it was given before.
    pub(super) async fn finish(&mut self, now: Now, timestamps: Vec<(PublicKey, Timestamps)>) {
        let can_be_written = match self.written().await {
            Some(was_written) => was_written,
            // Not tried yet; without a handshake there is nothing to say.
            None => self.next.is_some(),
        };
        if !can_be_written {
            return;
        }
        let (latest, received) = collect(timestamps.into_iter());
        let text = render(&self.stamps.end(latest), &received);
        (self.next, self.ended) = (Some(now.mono), true);
        self.begin_to_write(text, true);
        self.written().await;
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
                ["sent", stamp] => kept.sent.limit = stamp_of(stamp).ok_or_else(wrong)?,
                ["clock", boot, boot_ns, base] => {
                    kept.sent.course = Some(Course {
                        boot: boot.to_owned(),
                        boot_ns: boot_ns.parse().map_err(|_| wrong())?,
                        base: stamp_of(base).ok_or_else(wrong)?,
                    });
                }
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

fn render(sent: &Reserved, received: &HashMap<PublicKey, Tai64n>) -> String {
    let mut text = format!("{HEAD}\nsent {}\n", hex(sent.limit));
    // Writing to a String can't fail.
    if let Some(Course { boot, boot_ns, base }) = &sent.course {
        let _ = writeln!(text, "clock {boot} {boot_ns} {}", hex(*base));
    }
    let mut received: Vec<_> = received.iter().collect();
    received.sort();
    for (peer, stamp) in received {
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
    use crate::control::runtime::block_on;

    fn stamp(seconds: u64) -> Tai64n {
        Tai64n::from_unix(Duration::from_secs(seconds))
    }

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    /// `seconds` after a boot, by a clock that had `unix` then.
    fn now(seconds: u64, unix: u64) -> Now {
        Now {
            mono: at(seconds),
            unix: Duration::from_secs(unix + seconds),
        }
    }

    fn reserved(course: bool) -> Reserved {
        Reserved {
            limit: stamp(9),
            course: course.then(|| Course {
                boot: "an-id".into(),
                boot_ns: -5,
                base: stamp(8),
            }),
        }
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn file(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ringway-state-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_was_written_is_read_again() {
        for sent in [reserved(true), reserved(false)] {
            let received = HashMap::from([(key(1), stamp(5)), (key(2), stamp(7))]);
            let text = render(&sent, &received);
            assert_eq!(Kept::parse(&text), Ok(Kept { sent, received }));
        }
    }

    #[test]
    fn damage_is_told_and_never_half_believed() {
        let text = render(&reserved(true), &HashMap::from([(key(1), stamp(5))]));
        for (damaged, reason) in [
            (String::new(), "is no state file"),
            (text.replace("ringway", "ringwax"), "is no state file"),
            (text.replace("end\n", ""), "is cut off"),
            (text.replace("sent", "bent"), "line 2 is damaged"),
            (text.replace(" -5 ", " x "), "line 3 is damaged"),
            (text.replace("clock ", "clock 1 "), "line 3 is damaged"),
            (text.replacen('=', "", 1), "line 4 is damaged"),
            (text.replacen("received ", "received x", 1), "line 4 is damaged"),
            (text.replacen("sent 4", "sent g", 1), "line 2 is damaged"),
            (text.replacen("sent 4", "sent é", 1), "line 2 is damaged"),
        ] {
            let error = Kept::parse(&damaged).expect_err("damaged");
            assert!(error.contains(reason), "{error}: {damaged}");
        }
    }

    #[test]
    fn a_run_goes_on_where_the_last_one_can_have_been() {
        let path = file("killed");
        // A run of nine seconds from `start` on, by a clock that had `unix` at boot. Gives back what it began with.
        let run = |start: u64, unix: u64, sends: bool, finish: bool| {
            let stamps = |at: u64| {
                std::iter::once((
                    key(1),
                    Timestamps {
                        sent: stamp(unix + start + at),
                        received: stamp(3),
                    },
                ))
            };
            block_on(async {
                let now = |seconds| now(start + seconds, unix);
                let mut state = State::open(&path, now(0)).await.expect("the disk answers");
                let kept = state.of_new(&key(1));
                if sends {
                    state.touch(now(0));
                    assert_eq!(state.poll_timeout(), Some(at(start + 1)));
                    state.write(now(1), stamps(0));
                    let is_written = |state: &State| state.writing.as_ref().is_some_and(JoinHandle::is_finished);
                    while !is_written(&state) {
                        tokio::task::yield_now().await;
                    }
                    state.write(now(9), stamps(0));
                    assert_eq!(state.last, Some(at(start + 1)), "nothing is new");
                    state.touch(now(9));
                    assert_eq!(state.poll_timeout(), Some(at(start + 61)), "not so soon again");
                    let set = Now {
                        unix: now(9).unix + Duration::from_secs(5),
                        ..now(9)
                    };
                    state.touch(set);
                    assert_eq!(state.poll_timeout(), Some(at(start + 9)), "the clock was set");
                    if finish {
                        state.finish(now(9), stamps(0).collect()).await;
                    }
                }
                kept
            })
            .expect("a runtime")
        };
        assert_eq!(run(100, 1000, true, false), Timestamps::default());
        // Killed, and the clock has gone its way: a little ahead of it.
        let kept = run(110, 1000, false, false);
        assert!(kept.sent > stamp(1110) && kept.sent < stamp(1115), "{kept:?}");
        assert_eq!(kept.received, stamp(3));
        // The clock was set back: at what had been reserved.
        let kept = run(120, 500, false, false);
        assert!(kept.sent > stamp(1600) && kept.sent < stamp(1800), "{kept:?}");
        // What ended in good order says what it sent.
        std::fs::remove_file(&path).expect("it was written");
        run(2000, 1000, true, true);
        assert_eq!(run(2010, 1000, false, false).sent, stamp(3000));
        std::fs::remove_file(&path).expect("it was written");
    }

    #[test]
    fn a_damaged_file_and_one_that_cannot_be_written_stop_nothing() {
        let path = file("damaged");
        std::fs::write(&path, "rubbish").expect("it can be written");
        let stamps = Timestamps {
            sent: stamp(1),
            received: stamp(1),
        };
        block_on(async {
            let mut state = State::open(&path, now(0, 0)).await.expect("the disk answers");
            assert_eq!(state.of_new(&key(1)), Timestamps::default());
            std::fs::remove_file(&path).expect("it is there");
            std::fs::create_dir(&path).expect("it is gone");
            state.write(now(1, 0), std::iter::once((key(1), stamps)));
            state.finish(now(1, 0), vec![(key(1), stamps)]).await;
        })
        .expect("a runtime");
        std::fs::remove_dir(&path).expect("it stays a directory");
    }

    #[test]
    fn who_does_not_wait_for_a_slow_disk_loses_nothing_that_is_written() {
        let path = file("slow");
        let read = || Kept::parse(&std::fs::read_to_string(&path).expect("it was written")).expect("it is whole");
        let stamps = || {
            let (sent, received) = (stamp(1001), stamp(7));
            vec![(key(1), Timestamps { sent, received })]
        };
        block_on(async {
            let mut state = State::open(&path, now(0, 1000)).await.expect("the disk answers");
            state.touch(now(0, 1000));
            let (end_stall, stalled) = tokio::sync::oneshot::channel();
            state.writing = Some(tokio::task::spawn_local(async {
                stalled.await.map_err(io::Error::other)
            }));
            for _ in 0..2 {
                let finished = tokio::time::timeout(Duration::from_millis(1), state.finish(now(1, 1000), stamps()));
                finished.await.expect_err("the disk stalls");
            }
            end_stall.send(()).expect("it is waited for yet");
            // Nobody waits for the end's own write either; the first poll begins it.
            {
                let mut finish = std::pin::pin!(state.finish(now(2, 1000), stamps()));
                while !path.exists() && !Path::new(&format!("{}.new", path.display())).exists() {
                    tokio::select! {
                        biased;
                        () = &mut finish => break,
                        () = tokio::task::yield_now() => {}
                    }
                }
            }
            state.written().await;
            let kept = read();
            assert_eq!((kept.sent.limit, kept.sent.course), (stamp(1001), None));
            assert_eq!(kept.received[&key(1)], stamp(7));
            // The tunnel stays: its reserve comes back.
            assert_eq!(state.poll_timeout(), Some(at(2)));
            state.write(now(2, 1000), stamps().into_iter());
            assert_eq!(state.written().await, Some(true));
            assert!(read().sent.limit > stamp(1500), "{:?}", read());
        })
        .expect("a runtime");
        std::fs::remove_file(&path).expect("it was written");
    }
}
