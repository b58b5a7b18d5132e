//! Descriptors that outlive exec(2), by their numbers: FD_CLOEXEC (fcntl(2)).
//!
//! Everything that this program opens is closed by exec; what the next program is to have is told apart by that one flag.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};

/// Standard input, output and error belong to everybody.
const FIRST: RawFd = 3;

/// Keeps `fd` open over exec(2), and gives it up for [`take`], here or in the program that is executed; its number.
///
/// # Errors
/// What fcntl(2) says; `fd` is closed then.
pub fn pass_on(fd: OwnedFd) -> io::Result<RawFd> {
    set_flags(&fd, 0)?;
    Ok(fd.into_raw_fd())
}

/// Takes the descriptor that was passed on as `number`. It will not outlive another exec(2).
///
/// # Errors
/// `EBADF`: no descriptor of this number was passed on, or it was taken already.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let bad = || io::Error::from_raw_os_error(libc::EBADF);
    if number < FIRST {
        return Err(bad());
    }
    // SAFETY: takes no pointers.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(bad());
    }
    // SAFETY: the descriptor is open, and nobody owns it: whatever this process opens has FD_CLOEXEC, and pass_on(), which
    // takes it away, gives up ownership. The flag that is set below keeps it from being taken twice.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    set_flags(&fd, libc::FD_CLOEXEC)?;
    Ok(fd)
}

fn set_flags(fd: &OwnedFd, flags: libc::c_int) -> io::Result<()> {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let fd: BorrowedFd<'_> = fd.as_fd();
    // SAFETY: takes no pointers.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn what_was_passed_on_is_taken_once_and_nothing_else_is() {
        let file = File::open("/dev/null").unwrap();
        let refused = |number| take(number).is_err_and(|error| error.raw_os_error() == Some(libc::EBADF));
        assert!(refused(file.as_raw_fd()), "it is somebody's");
        assert!([0, 1, 2, -1, 1 << 30].into_iter().all(refused));
        let number = pass_on(file.into()).unwrap();
        let taken = take(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(refused(number), "once");
    }
}
