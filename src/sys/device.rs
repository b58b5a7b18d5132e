//! SO_BINDTODEVICE and SO_MARK: a socket whose packets leave and arrive by one interface only, whatever routes say; or that
//! routing rules can tell from others.

use std::io;
use std::os::fd::BorrowedFd;

use super::option::{self, OptionValue};

/// An interface's name as the kernel takes it: IFNAMSIZ (linux/if.h) bytes, the last of them zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceName([u8; libc::IFNAMSIZ]);

// SAFETY: bytes, without pointers; the kernel reads them up to the first zero.
unsafe impl OptionValue for [u8; libc::IFNAMSIZ] {}

impl DeviceName {
    /// `None`: the name is longer than any interface's.
    pub fn new(name: &str) -> Option<DeviceName> {
        let mut bytes = [0; libc::IFNAMSIZ];
        let place = bytes[..libc::IFNAMSIZ - 1].get_mut(..name.len())?;
        place.copy_from_slice(name.as_bytes());
        Some(DeviceName(bytes))
    }
}

/// Binds `socket` to the interface `device`.
///
/// # Errors
/// `ENODEV`: there is no such interface. `EPERM`: without CAP_NET_RAW a socket that is bound already stays so.
pub fn bind(socket: BorrowedFd<'_>, device: DeviceName) -> io::Result<()> {
    option::set(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &device.0)
}

/// Marks what `socket` sends from here on with `mark`; 0 for none.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN.
pub fn mark(socket: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    option::set(socket, libc::SOL_SOCKET, libc::SO_MARK, &mark.cast_signed())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn names_have_room_or_are_refused() {
        assert!(DeviceName::new("123456789012345").is_some());
        assert_eq!(DeviceName::new("1234567890123456"), None);
    }

    #[test]
    fn a_socket_is_bound_to_an_interface_that_exists() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = bind(socket.as_fd(), DeviceName::new("no-such-0").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        bind(socket.as_fd(), DeviceName::new("lo").unwrap()).unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    }
}
