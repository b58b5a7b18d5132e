//! The control thread's runtime, and the only module that knows tokio-uring.
//!
//! `tokio_uring::start` is a tokio current-thread runtime whose file operations go through a ring of its own, so the
//! latency log is written without blocking the thread that answers handshakes. Where the kernel refuses io_uring, the
//! same futures run on plain tokio and the file is written by its blocking pool. Either runtime ends when what it has begun
//! has ended: what must not keep a daemon from its end runs on a thread that neither knows of.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::Foreign;
use crate::sys::exec;

/// How long a disk may take to write one file while something else waits for that: less than the 10 s in which the service's
/// manager wants a sign of life, whatever else happens in them included.
pub const DISK_TIME_MAX: Duration = Duration::from_secs(5);

/// Which runtime the control thread runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// tokio-uring.
    Uring,
    /// Plain tokio.
    Tokio,
}

impl Runtime {
    /// Runs `main` to its end on this thread, and tells it which runtime it got: plain tokio too where the kernel grants
    /// no ring any more, because workers or others have taken what there was.
    pub fn block_on<T>(self, main: impl AsyncFnOnce(Runtime) -> T) -> io::Result<T> {
        if self == Runtime::Uring {
            match tokio_uring::Runtime::new(&tokio_uring::builder()) {
                Ok(runtime) => return Ok(runtime.block_on(main(Runtime::Uring))),
                Err(error) => tracing::warn!(%error, "no ring for the control thread; it goes on with plain tokio"),
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(tokio::task::LocalSet::new().block_on(&runtime, main(Runtime::Tokio)))
    }
}

/// Runs what waits for a disk on a thread of its own. It gets none of the signals that the control thread acts on: after an upgrade
/// nobody would ask for one that came to it.
///
/// # Errors
/// `work` has panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    #[expect(clippy::disallowed_methods, reason = "this is what is to be called instead")]
    let task = exec::with_signals_held(|| tokio::task::spawn_blocking(work));
    task.await.map_err(io::Error::other)
}

/// As [`blocking`], on a thread that ends when it likes, should nobody wait for it any more: the runtime's end does not.
///
/// # Errors
/// There is no thread to be had, or `work` has panicked.
async fn detached<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("disk".into());
    exec::with_signals_held(|| thread.spawn(move || drop(done.send(work()))))?;
    result.await.map_err(io::Error::other)
}

/// Creates a file that only we may read, in the place of one that a killed process may have left. A link is not followed: the
/// folder may be another user's.
///
/// # Errors
/// What open(2) and unlink(2) say.
pub fn create_anew(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::options().write(true).create_new(true).mode(0o600).open(path),
    }
}

/// Opens a regular file in a folder that may be another user's: what else that user has put there, a link or a pipe, leads
/// nowhere and keeps nobody waiting.
///
/// # Errors
/// What open(2) says; that something else is in the way.
pub fn open_file(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open_with(libc::O_NOFOLLOW | libc::O_NONBLOCK, options, path)
}

fn in_the_way(path: &Path) -> io::Error {
    io::Error::other(format!("{}: is in the way and is no file; remove it", path.display()))
}

fn open_with(flags: libc::c_int, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    match options.custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(in_the_way(path)),
        // A link; a socket or a pipe without a reader; a directory.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::EISDIR)) => {
            Err(in_the_way(path))
        }
        Err(error) => Err(error),
    }
}

/// Opens a log, which keeps what it has; where there is none, makes one. Neither links nor other names of a file lead anywhere, and
/// root writes to none where others can have chosen what it is.
///
/// # Errors
/// What open(2) says; what is in the way; which file or directory is others'.
pub fn open_log(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    judge_place(path)?;
    // Not with O_NONBLOCK: through a ring that is an error where a write has to wait. To open a pipe would wait for its reader.
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(in_the_way(path));
    }
    let file = open_with(libc::O_NOFOLLOW, options.create(true), path)?;
    // In a directory like /tmp anybody may give another one's file a second name (fs.protected_hardlinks, proc_sys_fs(5)).
    if file.metadata()?.nlink() > 1 {
        let why = format!(
            "{}: the file has other names too (hard links); remove this one",
            path.display()
        );
        return Err(io::Error::other(why));
    }
    Ok(file)
}

/// That root may make a file at `path`, or write to it: nobody else can have put there what it would find.
///
/// # Errors
/// Which file or directory is others', and what would put that right.
pub fn judge_place(path: &Path) -> io::Result<()> {
    Foreign::of_place(path).map_or(Ok(()), |foreign| {
        let why = format!("root writes nothing at a place that others can have chosen: {foreign}");
        Err(io::Error::other(why))
    })
}

/// Puts a file with these bytes, for its owner only, in the place of `path`: whatever happens, either the old or the new
/// one is there, whole. Makes the directory that it lies in where there is none.
///
/// The caller's thread waits for nothing that a disk does, so a deadline holds; who gives up waiting does not stop it.
pub async fn replace_file(path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let path = path.to_owned();
    detached(move || replace_file_now(&path, &bytes)).await.flatten()
}

fn replace_file_now(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.exists()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = create_anew(&new)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    written
}

/// A file that grows at its end.
pub struct LogFile {
    handle: Handle,
    len: u64,
}

enum Handle {
    Uring(tokio_uring::fs::File),
    Tokio(std::fs::File),
}

impl LogFile {
    /// Creates the file, or empties it.
    pub fn create(runtime: Runtime, path: &Path) -> io::Result<LogFile> {
        let file = open_log(File::options().write(true), path)?;
        file.set_len(0)?;
        let handle = match runtime {
            Runtime::Uring => Handle::Uring(tokio_uring::fs::File::from_std(file)),
            Runtime::Tokio => Handle::Tokio(file),
        };
        Ok(LogFile { handle, len: 0 })
    }

    /// Opens a file to write behind what it has.
    pub fn open(runtime: Runtime, path: &Path) -> io::Result<LogFile> {
        // Somebody may have moved it away in the meantime.
        let file = open_log(File::options().append(true), path)?;
        let len = file.metadata()?.len();
        let handle = match runtime {
            Runtime::Uring => Handle::Uring(tokio_uring::fs::File::from_std(file)),
            Runtime::Tokio => Handle::Tokio(file),
        };
        Ok(LogFile { handle, len })
    }

    /// Writes `bytes` behind everything that was written before.
    pub async fn append(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let len = bytes.len() as u64;
        match &self.handle {
            Handle::Uring(file) => file.write_all_at(bytes, self.len).await.0?,
            Handle::Tokio(file) => {
                let mut file = file.try_clone()?;
                blocking(move || file.write_all(&bytes)).await??;
            }
        }
        self.len += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn each_runtime(name: &str, test: impl AsyncFn(Runtime, &Path)) {
        for runtime in [Runtime::Uring, Runtime::Tokio] {
            let path = std::env::temp_dir().join(format!("ringway-{name}-{runtime:?}-{}", std::process::id()));
            std::fs::create_dir(&path).expect("a directory");
            runtime
                .block_on(async |granted| {
                    if granted != runtime {
                        println!("skipped on {runtime:?}: the kernel grants no io_uring");
                    }
                    test(granted, &path).await;
                })
                .expect("a runtime starts");
            std::fs::remove_dir_all(&path).expect("it can be removed");
        }
    }

    #[test]
    fn no_signal_that_ends_the_daemon_comes_to_a_thread_that_waits_for_a_disk() {
        // SIGHUP, SIGINT and SIGTERM, as proc_pid_status(5) has them.
        const OURS: u64 = 1 | 1 << 1 | 1 << 14;
        for runtime in [Runtime::Uring, Runtime::Tokio] {
            let held = runtime.block_on(async |_| {
                let status = blocking(|| std::fs::read_to_string("/proc/thread-self/status")).await;
                let status = status.expect("no panic").expect("every thread has one");
                let mask = status
                    .lines()
                    .find_map(|line| line.strip_prefix("SigBlk:").map(str::trim));
                u64::from_str_radix(mask.expect("every thread has one"), 16).expect("a mask")
            });
            assert_eq!(held.expect("a runtime starts") & OURS, OURS, "{runtime:?}");
        }
    }

    #[test]
    fn a_disk_that_does_not_answer_keeps_no_runtime_from_its_end() {
        for runtime in [Runtime::Uring, Runtime::Tokio] {
            let (answer, answered) = std::sync::mpsc::channel();
            let ended = runtime.block_on(async |_| {
                let stalled = detached(move || answered.recv());
                tokio::time::timeout(Duration::from_millis(1), stalled).await
            });
            ended.expect("a runtime starts").expect_err("nobody has answered");
            answer.send(()).expect("the thread waits yet");
        }
    }

    #[test]
    fn appended_lines_follow_each_other_on_both_runtimes() {
        each_runtime("log", async |runtime, folder| {
            let path = folder.join("log");
            let mut log = LogFile::create(runtime, &path).expect("a file");
            log.append(b"one\n".to_vec()).await.expect("written");
            log.append(b"two\n".to_vec()).await.expect("written");
            drop(log);
            let mut log = LogFile::open(runtime, &path).expect("the file exists");
            log.append(b"three\n".to_vec()).await.expect("written");
            assert_eq!(std::fs::read(&path).expect("the file exists"), b"one\ntwo\nthree\n");
            let link = folder.join("link");
            std::os::unix::fs::symlink(&path, &link).expect("a link");
            let name = folder.join("name");
            std::fs::hard_link(&path, &name).expect("a second name");
            for (other, why) in [
                (&link, "link: is in the way and is no file; remove it"),
                (
                    &name,
                    "name: the file has other names too (hard links); remove this one",
                ),
            ] {
                for refused in [LogFile::create(runtime, other), LogFile::open(runtime, other)] {
                    let told = refused.map(drop).expect_err("it leads elsewhere").to_string();
                    assert!(told.ends_with(why), "{told}");
                }
            }
            assert_eq!(std::fs::read(&path).expect("the file exists"), b"one\ntwo\nthree\n");
        });
    }

    #[test]
    fn a_replaced_file_is_whole_private_and_alone_on_both_runtimes() {
        each_runtime("replace", async |_, folder| {
            let path = folder.join("new/file");
            for text in ["a long first version", "short"] {
                replace_file(&path, text.into()).await.expect("written");
                assert_eq!(std::fs::read_to_string(&path).expect("there"), text);
            }
            let mode = std::fs::metadata(&path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let beside = path.with_file_name("directory");
            std::fs::create_dir(&beside).expect("a directory");
            replace_file(&beside, b"x".to_vec())
                .await
                .expect_err("a directory is in the way");
            assert_eq!(
                std::fs::read_dir(path.parent().expect("a folder"))
                    .expect("there")
                    .count(),
                2
            );
        });
    }
}
