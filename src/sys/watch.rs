//! inotify(7): being told when something happens to a file.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Readable once the watched file was removed, renamed, or had its permissions or its number of links changed.
pub struct Watch {
    file: File,
}

impl Watch {
    /// Watches what `path` is at this moment.
    ///
    /// # Errors
    /// What inotify_init1(2) and inotify_add_watch(2) say; `ENOENT` when there is nothing.
    pub fn new(path: &Path) -> io::Result<Watch> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: inotify_init1(2) just returned this descriptor, so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // IN_ATTRIB: a name went, while the socket itself lives on in the process that listens.
        let events = libc::IN_ATTRIB | libc::IN_DELETE_SELF | libc::IN_MOVE_SELF;
        // SAFETY: path is a zero-terminated string that outlives the call.
        let watch = unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), events) };
        if watch < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Watch { file: fd.into() })
    }
}

/// What is read are struct inotify_event (linux/inotify.h); no name follows for a file that is watched itself.
impl From<Watch> for File {
    fn from(watch: Watch) -> File {
        watch.file
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn unlinking_a_socket_that_is_listened_on_is_told() {
        let path = std::env::temp_dir().join(format!("ringway-watch-{}.sock", std::process::id()));
        let _listener = UnixListener::bind(&path).expect("a socket");
        let watch = Watch::new(&path).expect("inotify");
        let is_readable = || (&watch.file).read(&mut [0; 64]).is_ok();
        assert!(!is_readable());
        std::fs::remove_file(&path).expect("it is there");
        assert!(is_readable());
        while is_readable() {}
        assert_eq!(
            Watch::new(&path).err().and_then(|error| error.raw_os_error()),
            Some(libc::ENOENT)
        );
    }
}
