//! Going to the background: fork(2), setsid(2), and a pipe on which the parent waits until the child is ready.

use std::fs::File;
use std::io::{self, PipeWriter, Read as _, Write as _};
use std::os::fd::AsRawFd as _;

/// Makes new files and sockets accessible to their owner only.
pub fn make_new_files_private() {
    // SAFETY: umask(2) takes no pointers and can't fail.
    unsafe { libc::umask(0o077) };
}

/// Standard streams that stay what they are in the background. Standard input is none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// None.
    Nothing,
    /// Standard error.
    Errors,
    /// Standard output and error.
    All,
}

/// The child's end of the pipe to the parent. Dropped without [`Detached::ready`] it makes the parent wait for the child's
/// end.
pub struct Detached {
    parent: PipeWriter,
}

/// Goes on in a child process without a terminal. The parent does not return: it ends with exit code 0 when the child is
/// ready, else with the child's, or with 1 where a signal has killed the child; the child tells why on standard error, which
/// it has in common with the parent.
///
/// # Errors
/// When this process has more than one thread (only the calling one would go on in the child, and locks of the others
/// would stay locked), or the kernel refuses the pipe, the process or its session.
pub fn detach() -> io::Result<Detached> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "only a process with one thread can go to the background",
        ));
    }
    let (mut child, parent) = io::pipe()?;
    // SAFETY: this is the only thread, so the child is a copy of the whole process, in which everything may be called.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(child);
            // SAFETY: takes no pointers. It fails for leaders of a process group only, which a new child is not.
            unsafe { libc::setsid() };
            Ok(Detached { parent })
        }
        pid => {
            drop(parent);
            let is_ready = child.read(&mut [0]).is_ok_and(|len| len == 1);
            std::process::exit(if is_ready { 0 } else { exit_code_of(pid) });
        }
    }
}

/// Waits for the end of the child `pid`; its exit code, and 1 where it has none.
fn exit_code_of(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: waitpid(2) writes one int to `status`, which outlives the call.
        match unsafe { libc::waitpid(pid, &mut status, 0) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            ended if ended == pid && libc::WIFEXITED(status) => return libc::WEXITSTATUS(status),
            _ => return 1,
        }
    }
}

impl Detached {
    /// Ends the parent with success. Standard streams that are not `kept` lead nowhere afterwards; nor does the process hold on to
    /// the directory that it was started in.
    ///
    /// # Errors
    /// When /dev/null can't be opened.
    pub fn ready(mut self, kept: Output) -> io::Result<()> {
        std::env::set_current_dir("/")?;
        let nowhere = File::options().read(true).write(true).open("/dev/null")?;
        let last = match kept {
            Output::All => 0,
            Output::Errors => 1,
            Output::Nothing => 2,
        };
        for stream in 0..=last {
            // SAFETY: takes no pointers. The three standard streams are nobody's property: the standard library refers
            // to them by number and expects that they may be replaced.
            if unsafe { libc::dup2(nowhere.as_raw_fd(), stream) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // A parent that was killed can't be told, and needs not be.
        let _ = self.parent.write(&[1]);
        Ok(())
    }
}
