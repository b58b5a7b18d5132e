//! Which errors of receiving end an engine.

use std::io;

/// Reading the TUN failed with `errno`: the error of the turn, or none if the read is worth another try.
///
/// `EAGAIN`, `EINTR`: nothing there. `ENOBUFS`: no buffer at hand. `ENOMEM`: the kernel is short of memory. Everything
/// else says that the device is gone or going: `EBADFD` (the queue is detached), `EFAULT` and `EIO` (the interface was
/// deleted under the reader), all of them `ENODEV` to the caller.
pub(super) fn of_tun_read(errno: i32) -> Option<io::Error> {
    match errno {
        libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM => None,
        libc::EBADFD | libc::EFAULT | libc::EIO => Some(io::Error::from_raw_os_error(libc::ENODEV)),
        errno => Some(io::Error::from_raw_os_error(errno)),
    }
}

/// Receiving from the UDP socket failed with `errno`: as [`of_tun_read`].
///
/// `EBADF`, `ENOTSOCK`, `EINVAL`, `EFAULT`, `EOPNOTSUPP`: the socket or the request is no good, and never will be. What
/// else recvmsg(2) reports are late answers of the network to something sent before (`ECONNREFUSED`, `EHOSTUNREACH`),
/// or passing shortages.
pub(super) fn of_udp_receive(errno: i32) -> Option<io::Error> {
    match errno {
        libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::EFAULT | libc::EOPNOTSUPP => {
            Some(io::Error::from_raw_os_error(errno))
        }
        _ => None,
    }
}
