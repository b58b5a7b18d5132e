//! The control thread's runtime, and how it has files opened and written without waiting for a disk.
//!
//! The runtime ends when what it has begun has ended, so nothing that a disk may hold up is begun on it: that runs on threads that it
//! does not know of. So a disk that does not answer holds up neither handshakes nor the daemon's end.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::Foreign;
use crate::config::files::{create_anew, with_suffix};
use crate::sys::{exec, flags};

/// How long a disk may take to write one file while something else waits for that: less than the 10 s in which the service's
/// manager wants a sign of life, whatever else happens in them included.
pub const DISK_TIME_MAX: Duration = Duration::from_secs(5);
/// Between two looks whether all threads that wait for disks have ended.
const IDLE_LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Runs `main` to its end on this thread, and the local tasks that it begins.
///
/// # Errors
/// The system grants no runtime: epoll(7), eventfd(2).
pub fn block_on<T>(main: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, main))
}

/// What is under way of what was [begun](blocking), by all runtimes of this process.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Counts in [`UNDER_WAY`] as long as it is there.
pub(super) struct UnderWay(());

impl UnderWay {
    pub(super) fn begin() -> UnderWay {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        UnderWay(())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until no disk keeps a thread of this process any more, one that nobody waits for included: execve(2) waits for all of them,
/// and a disk's do not hear of it.
pub(super) async fn idle() {
    while UNDER_WAY.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(IDLE_LOOK_INTERVAL).await;
    }
}

/// Begins a thread beside the runtime. It gets none of the signals that the control thread acts on: after an upgrade nobody would
/// ask for one that came to it.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn begin_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(name.into());
    exec::with_signals_held(|| thread.spawn(work)).map(drop)
}

/// Runs what waits for a disk on a thread of its own, which ends when it likes, should nobody wait for it any more.
///
/// # Errors
/// There is no thread to be had, or `work` has panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let under_way = UnderWay::begin();
    begin_thread("disk", move || {
        let done_work = work();
        drop(under_way);
        let _ = done.send(done_work);
    })?;
    result.await.map_err(io::Error::other)
}

/// What `work` gives, which waits for a disk, but not for longer than [`DISK_TIME_MAX`].
///
/// # Errors
/// [`io::ErrorKind::TimedOut`], which does not end what `work` has begun.
pub async fn within_disk_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    by_disk_deadline(disk_deadline(), work).await
}

/// When a disk has to have done all that is asked of it from now on.
pub(super) fn disk_deadline() -> Instant {
    Instant::now() + DISK_TIME_MAX
}

/// As [`within_disk_time`], where that is for several works.
pub(super) async fn by_disk_deadline<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let done = tokio::time::timeout_at(deadline, work).await;
    done.unwrap_or_else(|_| {
        let slow = format!("its disk does not answer within {DISK_TIME_MAX:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, slow))
    })
}

/// Opens a regular file in a folder that may be another user's: what else that user has put there, a link or a pipe, leads
/// nowhere and keeps nobody waiting. Root opens none that others can have put there.
///
/// # Errors
/// What open(2) says; that something else is in the way; which file or directory is others'.
pub fn open_file(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Before it makes one.
    judge_place(path)?;
    let in_the_way = || io::Error::other(format!("{}: is in the way and is no file; remove it", path.display()));
    let opened = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        // A link; a socket or a pipe without a reader; a directory.
        Some(libc::ELOOP | libc::ENXIO | libc::EISDIR) => in_the_way(),
        _ => error,
    })?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(in_the_way());
    }
    refuse(Foreign::of_place(path, Some(found)))?;
    Ok(file)
}

/// Opens a log, which keeps what it has; where there is none, makes one. Neither links nor other names of a file lead anywhere.
///
/// # Errors
/// As [`open_file`].
pub fn open_log(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = open_file(options.create(true), path)?;
    // In a directory like /tmp anybody may give another one's file a second name (fs.protected_hardlinks, proc_sys_fs(5)).
    if file.metadata()?.nlink() > 1 {
        let why = format!(
            "{}: the file has other names too (hard links); remove this one",
            path.display()
        );
        return Err(io::Error::other(why));
    }
    // Through a ring it would be an error that a write has to wait.
    flags::clear_nonblock(file.as_fd())?;
    Ok(file)
}

/// That root may make a file at `path`, or write to it: nobody else can have put there what it would find.
///
/// # Errors
/// Which file or directory is others', and what would put that right.
pub fn judge_place(path: &Path) -> io::Result<()> {
    refuse(Foreign::of_place(path, None))
}

fn refuse(foreign: Option<Foreign>) -> io::Result<()> {
    foreign.map_or(Ok(()), |foreign| {
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
    blocking(move || replace_file_now(&path, &bytes)).await.flatten()
}

/// As [`replace_file`], but waits.
pub fn replace_file_now(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.exists()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let new = with_suffix(path, ".new");
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn no_signal_that_ends_the_daemon_comes_to_a_thread_that_waits_for_a_disk() {
        // SIGHUP, SIGINT and SIGTERM, as proc_pid_status(5) has them.
        const OURS: u64 = 1 | 1 << 1 | 1 << 14;
        let held = block_on(async {
            let status = blocking(|| std::fs::read_to_string("/proc/thread-self/status")).await;
            let status = status.expect("no panic").expect("every thread has one");
            let mask = status
                .lines()
                .find_map(|line| line.strip_prefix("SigBlk:").map(str::trim));
            u64::from_str_radix(mask.expect("every thread has one"), 16).expect("a mask")
        });
        assert_eq!(held.expect("a runtime starts") & OURS, OURS);
    }

    #[test]
    fn a_disk_that_does_not_answer_keeps_no_runtime_from_its_end() {
        let (answer, answered) = std::sync::mpsc::channel();
        let ended = block_on(async {
            let stalled = blocking(move || answered.recv());
            tokio::time::timeout(Duration::from_millis(1), stalled).await
        });
        ended.expect("a runtime starts").expect_err("nobody has answered");
        answer.send(()).expect("the thread waits yet");
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_under_way_until_the_disk_answers() {
        let (answer, answered) = std::sync::mpsc::channel();
        let ran = block_on(async {
            let given_up = blocking(move || answered.recv());
            tokio::select! { biased; _ = given_up => panic!("nobody has answered"), () = std::future::ready(()) => {} }
            tokio::select! { biased; () = idle() => panic!("it is under way"), () = std::future::ready(()) => {} }
            answer.send(()).expect("the thread waits yet");
            // Those of other tests in this process end too.
            idle().await;
        });
        ran.expect("a runtime starts");
    }

    #[test]
    fn a_replaced_file_is_whole_private_and_alone() {
        let folder = std::env::temp_dir().join(format!("ringway-replace-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a directory");
        let path = folder.join("new/file");
        for text in ["a long first version", "short"] {
            replace_file_now(&path, text.as_bytes()).expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("there"), text);
        }
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let beside = path.with_file_name("directory");
        std::fs::create_dir(&beside).expect("a directory");
        replace_file_now(&beside, b"x").expect_err("a directory is in the way");
        assert_eq!(
            std::fs::read_dir(path.parent().expect("a folder"))
                .expect("there")
                .count(),
            2
        );
        std::fs::remove_dir_all(&folder).expect("it can be removed");
    }
}
