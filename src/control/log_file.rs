//! A file that grows at its end, and the only module that knows tokio-uring.
//!
//! A thread of its own writes it, through a ring of its own where the kernel grants one. At its end a ring waits for all that it
//! was given, so neither the control thread nor its runtime has one: where a disk does not answer, this thread alone waits, and goes
//! with the process.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use tokio::sync::{mpsc, oneshot};

use super::runtime::{UnderWay, begin_thread, open_log};
use crate::sandbox;

/// How a log is written.
#[derive(Debug, Clone, Copy)]
pub struct Means {
    /// By a ring, if the kernel grants one; else by plain system calls.
    pub uring: bool,
    /// The thread gives up all but its file, as a worker does.
    pub sandbox: bool,
}

/// The file, for who writes to it. Dropping it ends the thread once that has written what it was given.
#[derive(Debug)]
pub(super) struct LogFile {
    texts: mpsc::UnboundedSender<Text>,
}

/// What is to be written, and where to say what became of it.
struct Text {
    bytes: Vec<u8>,
    written: oneshot::Sender<io::Result<()>>,
}

impl LogFile {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// What open(2) says; what is in the way.
    pub(super) async fn create(means: Means, path: &Path) -> io::Result<LogFile> {
        let path = path.to_owned();
        LogFile::begin(means, move || {
            let file = open_log(File::options().write(true), &path)?;
            file.set_len(0)?;
            Ok((file, 0))
        })
        .await
    }

    /// Opens a file to write behind what it has; makes one where somebody has moved it away in the meantime.
    ///
    /// # Errors
    /// As [`LogFile::create`].
    pub(super) async fn open(means: Means, path: &Path) -> io::Result<LogFile> {
        let path = path.to_owned();
        LogFile::begin(means, move || {
            let file = open_log(File::options().append(true), &path)?;
            let len = file.metadata()?.len();
            Ok((file, len))
        })
        .await
    }

    async fn begin(
        means: Means,
        open: impl FnOnce() -> io::Result<(File, u64)> + Send + 'static,
    ) -> io::Result<LogFile> {
        let (texts, given) = mpsc::unbounded_channel();
        let (opened, is_open) = oneshot::channel();
        let opening = UnderWay::begin();
        begin_thread("log", move || {
            let open = open();
            drop(opening);
            match open {
                Ok((file, len)) => {
                    let _ = opened.send(Ok(()));
                    write(means, file, len, given);
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        })?;
        is_open.await.map_err(io::Error::other)??;
        Ok(LogFile { texts })
    }

    /// Writes `bytes` behind everything that was written before. That goes on should nobody wait for it any more.
    ///
    /// # Errors
    /// What write(2) says. Nothing can be written after that.
    pub(super) async fn append(&self, bytes: Vec<u8>) -> io::Result<()> {
        let (written, is_written) = oneshot::channel();
        // Where the thread has ended, so has the other end of this.
        let _ = self.texts.send(Text { bytes, written });
        is_written.await.map_err(io::Error::other)?
    }
}

/// The thread: writes each text behind the `len` bytes that are there, up to the first that fails.
fn write(means: Means, mut file: File, mut len: u64, mut given: mpsc::UnboundedReceiver<Text>) {
    let ring = means
        .uring
        .then(|| tokio_uring::Runtime::new(&tokio_uring::builder()))
        .transpose()
        .inspect_err(|error| tracing::warn!(%error, "no ring for the latency log, so plain system calls write it"));
    if means.sandbox {
        for missing in sandbox::confine_worker() {
            tracing::debug!(thread = "log", "{missing}");
        }
    }
    let tell = |written: oneshot::Sender<_>, result: io::Result<()>| {
        let goes_on = result.is_ok();
        let _ = written.send(result);
        goes_on
    };
    match ring {
        Ok(Some(ring)) => ring.block_on(async {
            let file = tokio_uring::fs::File::from_std(file);
            while let Some(Text { bytes, written }) = given.recv().await {
                let more = bytes.len() as u64;
                let (result, _) = file.write_all_at(bytes, len).await;
                len += more;
                if !tell(written, result) {
                    break;
                }
            }
        }),
        _ => {
            while let Some(Text { bytes, written }) = given.blocking_recv() {
                if !tell(written, file.write_all(&bytes)) {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::runtime::block_on;

    #[test]
    fn a_disk_that_does_not_answer_keeps_no_runtime_from_its_end() {
        for uring in [true, false] {
            let means = Means { uring, sandbox: false };
            // Nobody reads, and it holds 64 KiB (pipe(7)).
            let (reader, writer) = std::io::pipe().expect("a pipe");
            let ended = block_on(async {
                let open = move || Ok((File::from(std::os::fd::OwnedFd::from(writer)), 0));
                let log = LogFile::begin(means, open).await.expect("it is open");
                let stalled = log.append(vec![0; 1 << 20]);
                tokio::time::timeout(std::time::Duration::from_millis(50), stalled).await
            });
            ended.expect("a runtime starts").expect_err("it is full");
            drop(reader);
        }
    }

    #[test]
    fn appended_lines_follow_each_other_with_and_without_a_ring() {
        let folder = std::env::temp_dir().join(format!("ringway-log-file-{}", std::process::id()));
        for (uring, sandbox) in [(true, false), (true, true), (false, false), (false, true)] {
            let means = Means { uring, sandbox };
            std::fs::create_dir(&folder).expect("a directory");
            let path = folder.join("log");
            let text = || std::fs::read_to_string(&path).expect("the file exists");
            let ran = block_on(async {
                let log = LogFile::create(means, &path).await.expect("a file");
                log.append(b"one\n".to_vec()).await.expect("written");
                // Nobody waits for this one.
                let last = log.append(b"two\n".to_vec());
                tokio::select! { biased; _ = last => {}, () = std::future::ready(()) => {} }
                drop(log);
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
                while text() != "one\ntwo\n" {
                    assert!(std::time::Instant::now() < deadline, "{}", text());
                    tokio::task::yield_now().await;
                }
                let log = LogFile::open(means, &path).await.expect("the file exists");
                log.append(b"three\n".to_vec()).await.expect("written");
                assert_eq!(text(), "one\ntwo\nthree\n", "{means:?}");
                let link = folder.join("link");
                std::os::unix::fs::symlink(&path, &link).expect("a link");
                let pipe = folder.join("pipe");
                let made = std::process::Command::new("mkfifo").arg(&pipe).status();
                assert!(made.expect("coreutils are there").success());
                let name = folder.join("name");
                std::fs::hard_link(&path, &name).expect("a second name");
                for (other, why) in [
                    (&link, "link: is in the way and is no file; remove it"),
                    (&pipe, "pipe: is in the way and is no file; remove it"),
                    (
                        &name,
                        "name: the file has other names too (hard links); remove this one",
                    ),
                ] {
                    for refused in [LogFile::create(means, other).await, LogFile::open(means, other).await] {
                        let told = refused.map(drop).expect_err("it leads elsewhere").to_string();
                        assert!(told.ends_with(why), "{told}");
                    }
                }
                assert_eq!(text(), "one\ntwo\nthree\n");
            });
            ran.expect("a runtime starts");
            std::fs::remove_dir_all(&folder).expect("it can be removed");
        }
    }
}
