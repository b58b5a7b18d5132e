//! Waking a worker that waits in the kernel: an eventfd (eventfd(2)) that is written at most once per turn.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct Shared {
    eventfd: File,
    /// The eventfd was rung and the worker has not answered yet.
    rung: AtomicBool,
}

/// Wakes one worker. Cheap to clone, from any thread.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

/// The worker's end.
pub struct Wake {
    shared: Arc<Shared>,
}

/// An eventfd's two ends.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM` of eventfd(2).
pub fn pair() -> io::Result<(Waker, Wake)> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: eventfd(2) just returned this descriptor, so nobody else owns it.
    let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
    let shared = Arc::new(Shared {
        eventfd: eventfd.into(),
        rung: AtomicBool::new(false),
    });
    Ok((
        Waker {
            shared: Arc::clone(&shared),
        },
        Wake { shared },
    ))
}

impl Waker {
    /// Makes the worker's current or next turn report `Event::Woken`. What was put into its mailboxes before is visible
    /// to it then. A system call only if it has not been woken already.
    pub fn wake(&self) {
        // AcqRel: pairs with drain(). Whoever finds `rung` set is ordered before the worker's clearing of it.
        if !self.shared.rung.swap(true, Ordering::AcqRel) {
            // EAGAIN means that the counter is full, so the eventfd is readable; no other error is possible.
            let _ = (&self.shared.eventfd).write(&1u64.to_ne_bytes());
        }
    }
}

impl Wake {
    /// Whether somebody rang; costs no system call.
    pub(super) fn is_rung(&self) -> bool {
        self.shared.rung.load(Ordering::Acquire)
    }

    /// Makes the eventfd unreadable and allows the next ring. Look into the mailboxes after this, not before.
    pub(super) fn drain(&self) {
        // EAGAIN: is_rung() was faster than the eventfd's writer. Its write then wakes the worker once for nothing.
        let _ = (&self.shared.eventfd).read(&mut [0; 8]);
        self.shared.rung.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.eventfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rings_are_one_until_they_are_answered() {
        let (waker, wake) = pair().unwrap();
        assert!(!wake.is_rung());
        waker.wake();
        waker.clone().wake();
        assert!(wake.is_rung());
        let mut count = [0; 8];
        (&wake.shared.eventfd).read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        wake.drain();
        assert!(!wake.is_rung());
        waker.wake();
        (&wake.shared.eventfd).read_exact(&mut count).unwrap();
    }
}
