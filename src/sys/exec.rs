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

/// Has those signals wait that the calling thread would get, which is about to call [`exec`], or does not act on them.
///
/// # Errors
/// None that a sane kernel has.
pub fn hold_signals() -> io::Result<()> {
    mask(libc::SIG_BLOCK)
}

/// Calls `begin`, which may start a thread: that one has those signals wait from its first instruction on, so that they come to
/// the threads which act on them. The calling thread has them afterwards as it had them before.
pub fn with_signals_held<T>(begin: impl FnOnce() -> T) -> T {
    // No sane kernel refuses it; where it did, the thread would be like any other.
    let _before = Before::hold();
    begin()
}

/// Sends SIGHUP to the calling thread (raise(3)), where it waits once [`hold_signals`] was called.
pub fn hang_up() {
    // SAFETY: takes no pointers; the daemon has a handler, and until then the default is what the sender wanted.
    unsafe { libc::raise(libc::SIGHUP) };
}

/// As [`hang_up`], SIGTERM.
pub fn terminate() {
    // SAFETY: as above.
    unsafe { libc::raise(libc::SIGTERM) };
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

/// The calling thread's signals as they were; so they are again once this is dropped.
struct Before(libc::sigset_t);

impl Before {
    fn hold() -> io::Result<Before> {
        set_mask(libc::SIG_BLOCK, &ours()).map(Before)
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        // As above.
        let _ = set_mask(libc::SIG_SETMASK, &self.0);
    }
}

fn mask(how: libc::c_int) -> io::Result<()> {
    set_mask(how, &ours()).map(drop)
}

/// [`SIGNALS`].
fn ours() -> libc::sigset_t {
    // SAFETY: a signal set of zeros is one, and sigemptyset would make it so.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in SIGNALS {
        // SAFETY: the set is ours, and the number is a signal's.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Changes what the calling thread holds back (pthread_sigmask(3)); what that was before.
fn set_mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    // SAFETY: as in ours().
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: reads one set and writes the other, which both outlive the call, and concerns only the calling thread.
    match unsafe { libc::pthread_sigmask(how, std::ptr::from_ref(set), &raw mut before) } {
        0 => Ok(before),
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

    /// SigBlk of proc_pid_status(5), of the calling thread.
    fn held() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_is_started_deaf_by_one_that_goes_on_as_it_was() {
        let ours = SIGNALS.iter().fold(0, |mask, signal| mask | 1 << (signal - 1));
        for before in [0, ours] {
            if before == ours {
                hold_signals().unwrap();
            }
            let thread = with_signals_held(|| std::thread::spawn(held));
            assert_eq!(thread.join().unwrap() & ours, ours);
            assert_eq!(held() & ours, before);
        }
    }
}
