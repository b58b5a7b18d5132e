//! The mark of a tunnel that is up: a file beside its control socket, there until `post_down` has run.
//!
//! Whoever runs those commands, the daemon at its end, a guard, `ringway cleanup` or the next daemon before it begins, holds the
//! mark's lock meanwhile and removes the mark afterwards. So one of them does, and only for a tunnel that had come up; and where
//! that one is killed amid it, the next one does it again. A daemon holds the lock as long as it has the tunnel, but for the moment
//! in which it becomes another program: then it is the one who answers at the control socket.
//!
//! A mark is looked for, made and removed under the [lock](Lock) of the control socket's name, so that nobody removes another's; but
//! whoever goes on with a tunnel takes its mark also without that.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::service;
use crate::config::files::{create_anew, with_suffix};
use crate::control::runtime::open_file;
use crate::control::socket::{CLAIM_PATIENCE, Lock, is_at};

/// The mark, locked as long as this is there. It stays unless it is [removed](Mark::remove).
#[derive(Debug)]
pub(super) struct Mark {
    control_socket: PathBuf,
    /// `None`: it could not be made, and no other process knows that the tunnel is up.
    file: Option<File>,
}

impl Mark {
    /// Makes that of a tunnel that is up, or goes on with the one that an earlier process has left. Where it can't be made, the log
    /// tells.
    pub(super) async fn make(control_socket: &Path) -> Mark {
        let make = async {
            // Nobody keeps it for long whose socket is served.
            let lock = Lock::take(control_socket).await;
            // One that another user has left and that we may not open is in the way like any other.
            if let Ok(Some(Mark { file: Some(file), .. })) = Mark::find(control_socket) {
                return Ok(file);
            }
            let _lock = lock?;
            // Whoever has the lock of one that is in the way ends an earlier tunnel, and leaves ours alone, which is never there unlocked.
            let path = path_of(control_socket);
            let new = with_suffix(&path, ".new");
            let file = create_anew(&new)?;
            file.lock()?;
            fs::rename(new, path)?;
            io::Result::Ok(file)
        };
        let made = make
            .await
            .inspect_err(|error| tracing::warn!(%error, "should this daemon be killed, nobody runs post_down for it"));
        Mark {
            control_socket: control_socket.to_owned(),
            file: made.ok(),
        }
    }

    /// The mark of a tunnel whose `post_down` nobody has come to, if there is one; for who has the lock of the control socket's name, or
    /// the tunnel.
    ///
    /// # Errors
    /// [`TryLockError::WouldBlock`]: another process has those commands. What open(2) and flock(2) say; that root would act upon
    /// what others can have put there.
    pub(super) fn find(control_socket: &Path) -> Result<Option<Mark>, TryLockError> {
        let path = path_of(control_socket);
        let file = match open_file(File::options().write(true).mode(0o600), &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(TryLockError::Error)?,
        };
        file.try_lock()?;
        // Where there is no place for the lock of the name, who had this one may have removed the mark.
        Ok(is_at(&file, &path).then(|| Mark {
            control_socket: control_socket.to_owned(),
            file: Some(file),
        }))
    }

    /// The commands have run, or are not to. Whether a mark was removed by this.
    ///
    /// # Errors
    /// Why it stays.
    pub(super) async fn remove(self) -> io::Result<bool> {
        let path = path_of(&self.control_socket);
        let Some(file) = self.file.filter(|file| is_at(file, &path)) else {
            return Ok(false);
        };
        let _lock = lock_name(&self.control_socket).await?;
        // It may be gone with its directory, and a later tunnel may have put its own in this place.
        match is_at(&file, &path) {
            true => fs::remove_file(path).map(|()| true),
            false => Ok(false),
        }
    }
}

/// The lock of the control socket's name, which somebody may keep who removes what a killed daemon has left.
pub(super) async fn lock_name(control_socket: &Path) -> io::Result<Lock> {
    match Lock::take_within(Duration::ZERO, control_socket).await {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            service::takes(CLAIM_PATIENCE);
            Lock::take_within(CLAIM_PATIENCE, control_socket).await
        }
        lock => lock,
    }
}

/// Where the mark lies.
pub(super) fn path_of(control_socket: &Path) -> PathBuf {
    with_suffix(control_socket, ".up")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory, removed on drop.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("ringway-mark-{name}-{}", std::process::id()));
            fs::create_dir(&folder).expect("a directory");
            Folder(folder)
        }

        fn count(&self) -> usize {
            fs::read_dir(&self.0).expect("it is there").count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Another test's child may hold the descriptor for a moment, which no process does that is killed.
    fn kill(mark: Mark) {
        mark.file.expect("it was made").unlock().expect("it is locked");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_has_the_commands_of_a_tunnel_that_was_up_and_who_is_killed_leaves_them_to_the_next() {
        let folder = Folder::new("heirs");
        let socket = folder.0.join("rw0.sock");
        let find = || Mark::find(&socket);
        let is_anothers = || matches!(find(), Err(TryLockError::WouldBlock));
        let is_none = || matches!(find(), Ok(None));
        let found = || find().expect("nobody has it").expect("it is there");
        assert!(is_none(), "it has not come up");
        let daemon = Mark::make(&socket).await;
        assert!(is_anothers(), "the daemon has it");
        kill(daemon);
        let guard = found();
        assert!(is_anothers(), "the guard has it");
        kill(guard);
        let cleanup = found();
        // A daemon that comes up meanwhile has one of its own.
        let next = Mark::make(&socket).await;
        assert!(!cleanup.remove().await.expect("there is nothing to do"));
        assert!(is_anothers());
        kill(next);
        let resumed = Mark::make(&socket).await;
        // A file whose name only begins in the same way has its own.
        let other = Mark::make(&folder.0.join("rw0.ctl")).await;
        assert!(resumed.remove().await.expect("the directory is ours"));
        assert!(is_none(), "they have run");
        assert!(other.remove().await.expect("the directory is ours"));
        assert_eq!(folder.count(), 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_mark_that_comes_while_an_earlier_one_is_about_to_be_removed_stays() {
        let folder = Folder::new("name");
        let socket = folder.0.join("rw0.sock");
        let old = Mark::make(&socket).await;
        let path = path_of(&socket);
        let lock = Lock::take(&socket).await.expect("nobody has it");
        let removal = old.remove();
        let waiting = async {
            // Polled first, the removal has found its own file in place, and waits.
            assert!(path.exists(), "it is not removed without the lock");
            fs::remove_file(&path).expect("it is there");
            let new = create_anew(&path).expect("the directory is ours");
            drop(lock);
            new
        };
        let (removed, new) = tokio::join!(removal, waiting);
        assert!(!removed.expect("there is nothing to do"));
        assert!(is_at(&new, &path), "it is another's");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_mark_that_cannot_be_made_or_removed_is_no_matter_for_the_tunnel_itself() {
        let folder = Folder::new("refused");
        let socket = folder.0.join("rw0.sock");
        let mark = Mark::make(&socket).await;
        // No file, and so no lock.
        let in_the_way = folder.0.join("rw0.sock.lock");
        fs::create_dir(&in_the_way).expect("the directory is ours");
        mark.remove().await.expect_err("it is still there");
        // Who goes on with the tunnel needs no lock for that.
        let found = Mark::make(&socket).await;
        assert!(found.file.is_some());
        kill(found);
        let aside = folder.0.join("aside");
        fs::rename(path_of(&socket), &aside).expect("it is there");
        let unmarked = Mark::make(&socket).await;
        assert!(unmarked.file.is_none());
        assert!(!unmarked.remove().await.expect("there is nothing to do"));
        fs::remove_dir(&in_the_way).expect("it is there");
        fs::rename(&aside, path_of(&socket)).expect("it is there");
        let found = Mark::find(&socket).expect("nobody has it");
        assert!(found.expect("it was left").remove().await.expect("it may"));
        assert_eq!(folder.count(), 0);
    }
}
