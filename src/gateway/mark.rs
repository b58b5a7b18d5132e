//! The mark of a tunnel that is up: a file beside its control socket, there until `post_down` has run.
//!
//! Whoever runs those commands, the daemon at its end, a guard or `ringway cleanup`, holds the mark's lock meanwhile and removes
//! the mark afterwards. So one of them does, and only for a tunnel that had come up; and where that one is killed amid it, the
//! next one does it again. A daemon holds the lock as long as it has the tunnel, but for the moment in which it becomes another
//! program: then it is the one who answers at the control socket.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::control::runtime::{create_anew, open_file};
use crate::control::socket::is_at;

/// The mark, locked as long as this is there. It stays unless it is [removed](Mark::remove).
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    file: File,
}

impl Mark {
    /// Makes that of a tunnel that is up, or goes on with the one that an earlier process has left.
    ///
    /// # Errors
    /// What open(2) and flock(2) say.
    pub(super) fn make(control_socket: &Path) -> io::Result<Mark> {
        // One that another user has left and that we may not open is in the way like any other.
        if let Ok(Some(mark)) = Mark::find(control_socket) {
            return Ok(mark);
        }
        let path = path_of(control_socket);
        // Whoever has the lock of one that is in the way ends an earlier tunnel, and leaves ours alone, which is never there unlocked.
        let new = control_socket.with_extension("up.new");
        let file = create_anew(&new)?;
        file.lock()?;
        fs::rename(new, &path)?;
        Ok(Mark { path, file })
    }

    /// The mark of a tunnel whose `post_down` nobody has come to. `None`: it had not come up, or those commands have run, or
    /// another process has them.
    ///
    /// # Errors
    /// What open(2) and flock(2) say.
    pub(super) fn find(control_socket: &Path) -> io::Result<Option<Mark>> {
        let path = path_of(control_socket);
        let file = match open_file(File::options().write(true).mode(0o600), &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mark = Mark { path, file };
        // Who had the lock before may have removed it.
        Ok(mark.is_in_place().then_some(mark))
    }

    /// The commands have run, or are not to.
    pub(super) fn remove(self) {
        // It may be gone with its directory, and a later tunnel may have put its own in this place.
        if self.is_in_place()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("{}: cannot be removed: {error}", self.path.display());
        }
    }

    fn is_in_place(&self) -> bool {
        is_at(&self.file, &self.path)
    }
}

/// Where the mark lies.
pub(super) fn path_of(control_socket: &Path) -> PathBuf {
    control_socket.with_extension("up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_the_commands_of_a_tunnel_that_was_up_and_who_is_killed_leaves_them_to_the_next() {
        let folder = std::env::temp_dir().join(format!("ringway-mark-{}", std::process::id()));
        fs::create_dir(&folder).expect("a directory");
        let socket = folder.join("rw0.sock");
        let find = || Mark::find(&socket).expect("it can be asked");
        // Another test's child may hold the descriptor for a moment, which no process does that is killed.
        let kill = |mark: Mark| mark.file.unlock().expect("it is locked");
        assert!(find().is_none(), "it has not come up");
        let daemon = Mark::make(&socket).expect("the directory is ours");
        assert!(find().is_none(), "the daemon has it");
        kill(daemon);
        let guard = find().expect("the daemon was killed");
        assert!(find().is_none(), "the guard has it");
        kill(guard);
        let cleanup = find().expect("the guard was killed too");
        // A daemon that comes up meanwhile has one of its own.
        let next = Mark::make(&socket).expect("the directory is ours");
        cleanup.remove();
        assert!(find().is_none() && path_of(&socket).exists());
        kill(next);
        let resumed = Mark::make(&socket).expect("the directory is ours");
        resumed.remove();
        assert!(find().is_none(), "they have run");
        assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 0);
        fs::remove_dir(&folder).expect("it is empty");
    }
}
