//! Another program in the place of this one: execv(3), and the signals that must not get lost in between (sigprocmask(2)).

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Those that a daemon acts on, and that would kill a program which has not begun to.
const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Becomes the program at `path`, in this process and with its environment; all threads but the calling one end. Signals
/// that end or reload a daemon wait until the new program calls [`accept_signals`], or this one after an error.
///
/// # Errors
/// What execve(2) says: then nothing else has happened.
pub fn exec(path: &Path, arguments: &[OsString]) -> io::Result<Infallible> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let arguments: Vec<CString> = arguments
        .iter()
        .map(|argument| CString::new(OsStr::as_bytes(argument)))
        .collect::<Result<_, _>>()?;
    let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    hold_signals()?;
    // SAFETY: path and all arguments are zero-terminated strings, the array ends with a null pointer, and all of it outlives
    // the call. Nobody changes the environment: the program has no code that does.
    unsafe { libc::execv(path.as_ptr(), pointers.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Has those signals delivered to the calling thread again that [`exec`] made wait.
///
/// # Errors
/// None that a sane kernel has.
pub fn accept_signals() -> io::Result<()> {
    mask(libc::SIG_UNBLOCK)
}

/// Has those signals wait that the calling thread would get: for a thread that others would miss them by, and for one that is
/// about to call [`exec`].
///
/// # Errors
/// None that a sane kernel has.
pub fn hold_signals() -> io::Result<()> {
    mask(libc::SIG_BLOCK)
}

/// Sends SIGHUP to the calling thread (raise(3)), where it waits once [`hold_signals`] was called.
pub fn hang_up() {
    // SAFETY: takes no pointers; the daemon has a handler, and until then the default is what the sender wanted.
    unsafe { libc::raise(libc::SIGHUP) };
}

/// Waits for the end of a child that another program has started in this process (waitpid(2)).
pub fn wait_for_child(pid: u32) {
    let Ok(pid @ 1..) = libc::pid_t::try_from(pid) else {
        return;
    };
    let mut status = 0;
    // SAFETY: writes to the number, which outlives the call.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// The user that this process acts as (geteuid(2)).
pub fn effective_user() -> u32 {
    // SAFETY: takes no pointers, and cannot fail.
    unsafe { libc::geteuid() }
}

fn mask(how: libc::c_int) -> io::Result<()> {
    // SAFETY: a signal set of zeros is one, and sigemptyset would make it so.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in SIGNALS {
        // SAFETY: the set is ours, and the number is a signal's.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: reads the set, and concerns only the calling thread.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_changes_nothing() {
        let error = exec(Path::new("/no/such/program"), &["x".into()]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let error = exec(Path::new("/dev/null"), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(exec(Path::new("a\0b"), &[]).is_err());
        accept_signals().unwrap();
    }
}
