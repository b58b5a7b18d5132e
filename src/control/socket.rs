//! A Unix stream socket with a name in the file system, for its owner, and for a group where one is named.
//!
//! The file's mode decides who may connect (unix(7): it takes write permission), so nobody is asked who he is afterwards.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};

use super::runtime::{judge_place, open_file};
use crate::config::files::with_suffix;

/// How long another process may have the right to decide whose a name is: it asks the kernel a few questions.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// As [`LOCK_PATIENCE`], for the name of a control socket: who removes what a killed daemon has left may have to wait for name
/// servers and nft, 90 s.
pub const CLAIM_PATIENCE: Duration = Duration::from_secs(100);
/// Between two attempts to have the lock.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The socket; its name is removed on drop, unless it has become another's.
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// The name stays when this goes.
    outlives_us: bool,
}

/// Who may connect, root aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access<'a> {
    /// The owner.
    Owner,
    /// The owner and this group, where the machine has it.
    Group(&'a str),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error("{}: another daemon answers on this socket; stop that one, or choose another name or path", .0.display())]
    InUse(PathBuf),
    /// Something else than a socket is in the way.
    #[error("{}: is in the way and is no socket; remove it, or choose another name or path", .0.display())]
    NotASocket(PathBuf),
    /// The file system refused.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, #[source] io::Error),
}

impl SocketFile {
    /// Creates the socket in place of one that a dead daemon left, and the directory that it lies in.
    ///
    /// # Errors
    /// [`SocketError::Io`] of the kind `TimedOut`: another process keeps the name for longer than [`LOCK_PATIENCE`]. What is in the way.
    pub async fn bind(path: &Path, access: Access<'_>) -> Result<SocketFile, SocketError> {
        let failed = |error| SocketError::Io(path.to_owned(), error);
        // What lies beside it is acted upon: locks, the mark of a tunnel that is up, what the machine's switches were.
        judge_place(path).map_err(failed)?;
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        {
            std::fs::create_dir_all(folder).map_err(failed)?;
            // Whatever the umask: clients look for sockets here.
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        // Two daemons that find a dead one's socket at the same time must not both put theirs in its place.
        let _lock = Lock::take(path).await.map_err(failed)?;
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
            Ok(_) if is_dead(path).await => std::fs::remove_file(path).map_err(failed)?,
            Ok(_) => return Err(SocketError::InUse(path.to_owned())),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = SocketFile {
            listener,
            path: path.to_owned(),
            identity: identity(path).map_err(failed)?,
            outlives_us: false,
        };
        let mode = if is_given_to_group(path, access) { 0o660 } else { 0o600 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(socket)
    }

    /// The socket at `path` that an earlier process has made. Needs a tokio runtime.
    pub fn inherited(path: &Path, listener: OwnedFd) -> Result<SocketFile, SocketError> {
        let failed = |error| SocketError::Io(path.to_owned(), error);
        Ok(SocketFile {
            listener: UnixListener::from_std(listener.into()).map_err(failed)?,
            path: path.to_owned(),
            // Somebody may have removed the name: then it leads nowhere.
            identity: identity(path).unwrap_or_default(),
            outlives_us: false,
        })
    }

    /// Another descriptor of the listener, for a program that is to go on with it.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Has the name stay when this goes.
    pub fn leave_behind(&mut self) {
        self.outlives_us = true;
    }

    /// The next client.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name still leads here.
    pub fn is_in_place(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already, with the whole run directory; or a new daemon may have taken the name.
        if !self.outlives_us && self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes the name of a socket on which nobody answers any more; whether there was one.
pub async fn remove_dead(path: &Path) -> io::Result<bool> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    // Whoever comes up at the same time takes the name under the same lock.
    if !is_socket || !is_dead(path).await {
        return Ok(false);
    }
    let _lock = Lock::take_within(CLAIM_PATIENCE, path).await?;
    match is_dead(path).await {
        true => std::fs::remove_file(path).map(|()| true),
        false => Ok(false),
    }
}

/// Whether there is the name of a socket on which nobody listens any more.
pub async fn is_dead(path: &Path) -> bool {
    let connected = UnixStream::connect(path).await;
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether somebody listens there.
pub async fn is_served(path: &Path) -> bool {
    match UnixStream::connect(path).await {
        Ok(_) => true,
        // More clients wait than may, for a daemon that stands still.
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// The right to decide whose a name is: a locked file beside it, which is there only meanwhile.
pub struct Lock {
    path: PathBuf,
    /// Locked while it is open.
    _file: File,
}

impl Lock {
    /// Waits until no other process has it, for [`LOCK_PATIENCE`].
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`]: another one keeps it. What open(2) and flock(2) say; that root would lock what others can have
    /// made, and keep.
    pub async fn take(socket: &Path) -> io::Result<Lock> {
        Lock::take_within(LOCK_PATIENCE, socket).await
    }

    /// As [`Lock::take`], for another time.
    pub async fn take_within(patience: Duration, socket: &Path) -> io::Result<Lock> {
        let path = with_suffix(socket, ".lock");
        let deadline = Instant::now() + patience;
        loop {
            let file = open_file(File::options().write(true).create(true).mode(0o600), &path)?;
            match file.try_lock() {
                // Who had the lock before may have removed the file.
                Ok(()) if is_at(&file, &path) => return Ok(Lock { path, _file: file }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_RETRY_INTERVAL).await;
                }
                Err(TryLockError::WouldBlock) => {
                    let kept = format!("another process keeps {} locked; wait for its end", path.display());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, kept));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // It is ours, for it is locked yet; where the directory has gone, so has it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether this very file, and no other, is what lies at `path`.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let here = file.metadata().map(|found| (found.dev(), found.ino()));
    here.is_ok_and(|here| identity(path).is_ok_and(|found| found == here))
}

/// Gives the file to the group. A daemon that may not, because it is neither root nor a member, keeps it to its owner.
fn is_given_to_group(path: &Path, access: Access<'_>) -> bool {
    let Access::Group(name) = access else { return false };
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let Some(id) = group_id(&groups, name) else {
        return false;
    };
    match std::os::unix::fs::chown(path, None, Some(id)) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(path = %path.display(), group = name, %error, "the socket stays its owner's alone");
            false
        }
    }
}

/// The number of the group `name` by the text of group(5). Only local groups: what opens a VPN's controls should not
/// depend on a directory service that may be reached through that VPN.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    let mut lines = groups.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ringway-socket-{}-{name}/s.sock", std::process::id()))
    }

    fn clean_up(path: &Path) {
        std::fs::remove_dir_all(path.parent().expect("a folder")).expect("the folder is there");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_socket_is_its_owners_and_goes_with_the_daemon() {
        let path = path("owner");
        let socket = SocketFile::bind(&path, Access::Owner).await.expect("a socket");
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a folder")), 0o755);
        assert!(matches!(
            SocketFile::bind(&path, Access::Owner).await,
            Err(SocketError::InUse(_))
        ));
        drop(socket);
        assert!(!path.exists());
        std::fs::write(&path, "x").expect("a file");
        assert!(matches!(
            SocketFile::bind(&path, Access::Owner).await,
            Err(SocketError::NotASocket(_))
        ));
        clean_up(&path);
    }

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let groups = "root:x:0:\nringway-x:x:7:\n+nis\nringway:x:998:alice,bob\nbroken:x:many:\n";
        assert_eq!(group_id(groups, "ringway"), Some(998));
        assert_eq!(group_id(groups, "root"), Some(0));
        for none in ["ring", "broken", "+nis", "alice", ""] {
            assert_eq!(group_id(groups, none), None, "{none}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn without_the_group_the_socket_is_its_owners() {
        let path = path("no-group");
        let socket = SocketFile::bind(&path, Access::Group("no such group"))
            .await
            .expect("a socket");
        assert_eq!(
            std::fs::metadata(socket.path()).expect("it is there").mode() & 0o7777,
            0o600
        );
        drop(socket);
        clean_up(&path);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_name_that_a_new_daemon_has_taken_is_left_to_it() {
        let path = path("taken");
        let old = SocketFile::bind(&path, Access::Owner).await.expect("a socket");
        std::fs::remove_file(&path).expect("it is there");
        assert!(!old.is_in_place());
        let new = SocketFile::bind(&path, Access::Owner).await.expect("the name is free");
        drop(old);
        assert!(new.is_in_place());
        drop(new);
        clean_up(&path);
    }

    /// Leaves what a daemon leaves that is killed. Nobody has ever listened there: a listener would answer for as long as a child
    /// of another test's, on its way to its own program, has a descriptor of it.
    fn die_at(path: &Path) {
        let socket = tokio::net::UnixSocket::new_stream().expect("a socket");
        socket.bind(path).expect("the name is free");
        assert!(path.exists());
    }

    /// Raised when whoever has it panics.
    struct Alarm<'a>(&'a AtomicBool);

    impl Drop for Alarm<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.store(true, Ordering::Release);
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_dead_daemon_left_is_replaced() {
        let path = path("dead");
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        die_at(&path);
        let socket = SocketFile::bind(&path, Access::Owner).await.expect("a socket");
        let beside = std::fs::read_dir(path.parent().expect("a folder")).expect("it is there");
        assert_eq!(beside.count(), 1, "the lock is gone");
        assert!(!remove_dead(&path).await.expect("it can be asked"), "it lives");
        drop(socket);
        die_at(&path);
        assert!(remove_dead(&path).await.expect("it can be removed"));
        assert!(!remove_dead(&path).await.expect("it can be asked"), "there is none");
        let beside = std::fs::read_dir(path.parent().expect("a folder")).expect("it is there");
        assert_eq!(beside.count(), 0);
        clean_up(&path);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_lies_in_the_place_of_the_lock_is_named_and_keeps_nobody_waiting() {
        let path = path("lock");
        let folder = path.parent().expect("a folder");
        std::fs::create_dir_all(folder).expect("a folder");
        let lock = folder.join("s.sock.lock");
        let other = folder.join("other");
        std::fs::write(&other, "theirs").expect("a file");
        let pipe = || {
            let made = std::process::Command::new("mkfifo").arg(&lock).status();
            assert!(made.expect("coreutils are there").success());
        };
        let link = || std::os::unix::fs::symlink(&other, &lock).expect("a link");
        for plant in [&pipe as &dyn Fn(), &link] {
            plant();
            let refused = SocketFile::bind(&path, Access::Owner).await.map(drop);
            let told = refused.expect_err("it is in the way").to_string();
            assert!(
                told.contains("s.sock.lock: is in the way and is no file; remove it"),
                "{told}"
            );
            std::fs::remove_file(&lock).expect("it is there yet");
        }
        assert_eq!(std::fs::read(&other).expect("it is there"), b"theirs");
        clean_up(&path);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_keeps_the_lock_is_waited_for_and_not_taken_for_a_daemon() {
        let path = path("kept");
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let kept = Lock::take(&path).await.expect("nobody has it");
        let refused = Lock::take_within(Duration::from_millis(1), &path).await.map(drop);
        let refused = refused.expect_err("it is kept");
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        let expected = format!("another process keeps {}.lock locked", path.display());
        assert!(refused.to_string().starts_with(&expected), "{refused}");
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(kept);
        };
        let (socket, ()) = tokio::join!(SocketFile::bind(&path, Access::Owner), let_go);
        assert!(socket.expect("it has become free").is_in_place());
        clean_up(&path);
    }

    #[test]
    fn of_two_daemons_that_find_a_dead_ones_socket_at_the_same_time_one_gets_it() {
        let path = path("race");
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        // Both sides of each step are taken by spinning: waking a thread takes longer than what they race through.
        let (reached, is_alarmed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let wait_for = |count| {
            reached.fetch_add(1, Ordering::AcqRel);
            while reached.load(Ordering::Acquire) < count {
                // Who waits for one that has panicked waits for ever.
                assert!(!is_alarmed.load(Ordering::Acquire), "the other one goes on");
                std::thread::yield_now();
            }
        };
        let daemon = |is_first: bool| {
            let _alarm = Alarm(&is_alarmed);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            let (mut won, mut errors) = (0, Vec::new());
            for round in 0..500 {
                if is_first {
                    die_at(&path);
                }
                wait_for(6 * round + 2);
                let socket = runtime.block_on(SocketFile::bind(&path, Access::Owner));
                wait_for(6 * round + 4);
                match &socket {
                    Ok(socket) => won += usize::from(socket.is_in_place()),
                    Err(SocketError::InUse(_)) => {}
                    Err(error) => errors.push(error.to_string()),
                }
                drop(socket);
                wait_for(6 * round + 6);
            }
            (won, errors)
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| daemon(false));
            let (won, errors) = daemon(true);
            let (others, their_errors) = other.join().expect("it does not panic");
            assert_eq!([errors, their_errors].concat(), [""; 0]);
            assert_eq!(won + others, 500);
        });
        clean_up(&path);
    }
}
