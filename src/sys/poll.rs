//! Waiting for descriptors, and what there is to know of them without waiting (poll(2)).

use super::send::last_errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Waits until one of `files` can be read, for up to `timeout`; which ones can, by their places. Nothing is waited for where
/// there is none. A signal ends the wait with none.
///
/// # Errors
/// `ENOMEM`.
pub(super) fn readable<const N: usize>(
    files: [Option<BorrowedFd<'_>>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut files = files.map(|file| libc::pollfd {
        // A negative descriptor is left out.
        fd: file.map_or(-1, |file| file.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = libc::nfds_t::try_from(N).expect("a handful");
    // SAFETY: `count` pollfds are writable, and timeout is null or points to a timespec that outlives the call.
    let result = unsafe { libc::ppoll(files.as_mut_ptr(), count, timeout, std::ptr::null()) };
    match result {
        // Not only POLLIN: an error is found out by reading.
        0.. => Ok(files.map(|file| file.revents != 0)),
        _ if last_errno() == libc::EINTR => Ok([false; N]),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether nobody is at the other end of a stream socket any more (POLLHUP). One that only says nothing more is.
pub fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: poll is one pollfd, writable during the call, which does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLHUP != 0
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn who_says_nothing_more_is_still_there_and_who_has_closed_is_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let is_gone = || has_hung_up(ours.as_fd());
        assert!(!is_gone());
        theirs.shutdown(Shutdown::Write).unwrap();
        assert!(!is_gone());
        drop(theirs);
        assert!(is_gone());
    }
}
