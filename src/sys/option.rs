//! getsockopt and setsockopt.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An option value whose every byte the kernel may read.
///
/// # Safety
/// The type is plain data in the kernel's layout, and pointers in it are valid for as long as the value is borrowed.
pub(super) unsafe trait OptionValue {}

// SAFETY: int is what most options are.
unsafe impl OptionValue for libc::c_int {}

/// setsockopt(2).
pub(super) fn set<T: OptionValue>(socket: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).expect("option values are small");
    // SAFETY: value is readable for len bytes during the call, and what it points to as well (OptionValue).
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// getsockopt(2) of an int.
pub(super) fn get(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len: libc::socklen_t = 4;
    let place = std::ptr::from_mut(&mut value).cast();
    // SAFETY: place is writable for len = 4 bytes during the call, and any bits are an int.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, place, &raw mut len) };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// getsockopt(2) of `N` 32-bit words; those that the kernel has fewer of are 0.
pub(super) fn get_words<const N: usize>(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<[u32; N]> {
    let mut words = [0u32; N];
    let mut len = libc::socklen_t::try_from(size_of_val(&words)).expect("option values are small");
    let place = words.as_mut_ptr().cast();
    // SAFETY: place is writable for len bytes, the array's size, during the call, and any bits are words.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, place, &raw mut len) };
    if result == 0 {
        Ok(words)
    } else {
        Err(io::Error::last_os_error())
    }
}
