//! Flags of an open file: F_GETFL, F_SETFL (fcntl(2)).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Has reads and writes wait again, of a file that was opened with O_NONBLOCK so as not to wait for that.
///
/// # Errors
/// What fcntl(2) says.
pub fn clear_nonblock(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointers.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes no pointers.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
