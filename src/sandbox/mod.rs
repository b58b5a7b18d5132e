//! What the daemon gives up once it runs, so that a mistake in it is worth less to whoever finds it.
//!
//! - A worker, which alone reads strangers' datagrams, keeps the system calls of its loop ([`calls::WORKER`]) and no file
//!   at all.
//! - The control thread, and whatever it starts, loses the system calls that change the machine rather than its network
//!   ([`calls::NEVER`]), and may write below a few directories only.
//!
//! Both hold per thread: seccomp(2) filters and Landlock domains go to the threads and programs that a thread starts
//! later, not to those that exist. What the kernel has not got is told and left out.
#![forbid(unsafe_code)]

mod calls;
mod files;
mod filter;

use std::path::Path;

use landlock::RulesetCreated;

/// Why a part of the sandbox does not hold.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// seccomp(2).
    #[error("no filter of system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter could not be built for this machine.
    #[error("no filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// landlock(7).
    #[error("no limits on files: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The kernel knows no Landlock, or has it switched off.
    #[error("no limits on files: the kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, lsm=landlock)")]
    NoLandlock,
}

/// Takes from the calling thread what a worker does not need: all files, and all system calls but its loop's, which fail
/// with EPERM from here on. Its engine has to be set up.
pub fn confine_worker() -> Vec<SandboxError> {
    // In this order: a filter would keep the other from being set up.
    let results = [files::deny_all(), filter::allow(calls::WORKER)];
    results.into_iter().filter_map(Result::err).collect()
}

/// What the control thread keeps.
#[derive(Debug)]
pub struct ControlLimits {
    /// `None`: all files.
    files: Option<Result<RulesetCreated, SandboxError>>,
}

impl ControlLimits {
    /// Writing to files in `writable` only, which are directories or files; those that do not exist are passed over. May have to wait
    /// for their disks.
    pub fn new<'a>(writable: impl IntoIterator<Item = &'a Path>) -> ControlLimits {
        ControlLimits {
            files: Some(files::allow_writing(writable)),
        }
    }

    /// Writing to all files.
    pub fn of_calls() -> ControlLimits {
        ControlLimits { files: None }
    }

    /// Takes from the calling thread, and from the threads and programs that it starts, what a daemon does not need: calls
    /// that change the machine, and writing to other files.
    pub fn confine(self) -> Vec<SandboxError> {
        let files = self.files.map_or(Ok(()), |rules| rules.and_then(files::restrict));
        let results = [files, filter::deny(calls::NEVER)];
        results.into_iter().filter_map(Result::err).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::thread;

    use super::*;
    use crate::sys;

    /// Runs `inside` on a thread of its own, which takes its limits with it.
    fn confined(confine: impl FnOnce() -> Vec<SandboxError> + Send, inside: impl FnOnce() + Send) {
        thread::scope(|scope| {
            scope.spawn(|| {
                let missing = confine();
                match &missing[..] {
                    [] => inside(),
                    missing => println!("skipped: {missing:?}"),
                }
            });
        });
    }

    #[test]
    fn a_worker_opens_no_file_and_starts_no_program_but_its_memory_and_clocks_work() {
        confined(confine_worker, || {
            let denied = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            assert!(fs::read("/proc/self/status").is_err_and(denied));
            assert!(std::process::Command::new("true").status().is_err_and(denied));
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err_and(denied));
            let large = vec![1u8; 8 << 20];
            assert!(large.iter().all(|byte| *byte == 1));
            assert!(std::time::Instant::now().elapsed().as_secs() < 3600);
            thread::yield_now();
        });
        assert!(fs::read("/proc/self/status").is_ok(), "other threads are as they were");
    }

    /// Those of `calls` that are not carried out for whoever makes them.
    fn refused(calls: &[libc::c_long]) -> Vec<libc::c_long> {
        let is_refused = |call: &libc::c_long| sys::call_in_vain(*call).raw_os_error() == Some(libc::EPERM);
        calls.iter().copied().filter(is_refused).collect()
    }

    #[test]
    fn calls_that_change_the_machine_are_refused_on_all_confined_threads_and_others_on_workers_alone() {
        // Refused by a filter, and by nothing else: with these arguments they fail for another reason.
        let ordinary = [libc::SYS_socket, libc::SYS_openat, libc::SYS_accept4, libc::SYS_execve];
        let before = refused(calls::NEVER);
        assert!(refused(&ordinary).is_empty());
        assert!(before.len() < calls::NEVER.len(), "{before:?}");
        for (worker, confine) in [
            (
                false,
                (|| ControlLimits::new([]).confine()) as fn() -> Vec<SandboxError>,
            ),
            (false, || ControlLimits::of_calls().confine()),
            (true, confine_worker),
        ] {
            confined(confine, || {
                assert_eq!(refused(calls::NEVER), calls::NEVER, "worker: {worker}");
                assert_eq!(refused(&ordinary), if worker { &ordinary[..] } else { &[] });
                assert!(refused(&[libc::SYS_read, libc::SYS_close]).is_empty());
            });
        }
        assert_eq!(refused(calls::NEVER), before, "other threads are as they were");
    }

    #[test]
    fn the_control_thread_writes_where_it_may_and_reads_everywhere() {
        let scratch = std::env::temp_dir().join(format!("ringway-sandbox-{}", std::process::id()));
        let [mine, other] = ["mine", "other"].map(|name| scratch.join(name));
        for directory in [&mine, &other] {
            fs::create_dir_all(directory).expect("a scratch directory");
        }
        fs::write(other.join("kept"), "1").expect("not confined yet");
        let absent = scratch.join("absent");
        confined(
            || ControlLimits::new([mine.as_path(), absent.as_path(), Path::new("/dev/null")]).confine(),
            || {
                fs::write(mine.join("a"), "1").expect("it may");
                fs::rename(mine.join("a"), mine.join("b")).expect("it may");
                assert!(fs::write(other.join("a"), "1").is_err());
                assert!(fs::write(other.join("kept"), "2").is_err());
                assert!(fs::remove_file(other.join("kept")).is_err());
                assert_eq!(fs::read_to_string(other.join("kept")).expect("reading is free"), "1");
                let child = std::process::Command::new("sh")
                    .args(["-c", "echo 2 > \"$0\"", other.join("kept").to_str().expect("ASCII")])
                    .stderr(std::process::Stdio::null())
                    .status();
                assert!(
                    !child.expect("programs may be started").success(),
                    "they are confined too"
                );
            },
        );
        fs::remove_dir_all(&scratch).expect("other threads are as they were");
    }
}
