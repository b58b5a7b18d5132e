//! How the program ends.

use std::error::Error;
use std::io;
use std::process::ExitCode;

/// Exit codes. They are part of the interface: scripts may rely on them, `--help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; `run` was ended by SIGINT or SIGTERM.
    Ok = 0,
    /// Something failed while running.
    Failure = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// The configuration, or a key on standard input, is missing or wrong.
    Invalid = 3,
    /// No daemon serves the control socket.
    NoDaemon = 4,
    /// More privileges are needed.
    Permission = 5,
    /// `leaktest` saw packets leave beside the tunnel.
    Leak = 6,
}

/// The part of `--help` that tells of [`Exit`].
pub const HELP: &str = "\
Exit codes:
  0  done; \"run\" was ended by SIGINT or SIGTERM
  1  something failed while running
  2  the command line is wrong
  3  the configuration or a key is missing or wrong
  4  no such daemon is running
  5  permission denied
  6  \"leaktest\" saw packets leave beside the tunnel";

/// Why a subcommand failed: what to tell, and how to end.
#[derive(Debug)]
pub struct Failure {
    /// How to end.
    pub exit: Exit,
    /// What to tell, one or more lines; each without a newline at its end.
    pub message: String,
}

impl Failure {
    /// A failure with this message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure {
            exit,
            message: message.into(),
        }
    }

    /// A failure that `error` tells of: [`Exit::Permission`] when the operating system denied something somewhere down
    /// its chain of sources, else [`Exit::Failure`].
    pub fn of(error: &(dyn Error + 'static)) -> Failure {
        let exit = if is_permission_denied(error) {
            Exit::Permission
        } else {
            Exit::Failure
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Writing the output failed. Whoever closed the pipe (`| head`) has seen enough, which is no failure; that is for
/// [`super::main`] to tell apart.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Exit::Ok, ""),
            _ => Failure::of(&error),
        }
    }
}

fn is_permission_denied(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::LinkError;

    #[test]
    fn a_denial_anywhere_in_the_chain_is_a_matter_of_permission() {
        let link = |errno| LinkError::Kernel {
            action: "x".into(),
            error: io::Error::from_raw_os_error(errno),
        };
        assert_eq!(Failure::of(&link(libc::EPERM)).exit, Exit::Permission);
        assert_eq!(Failure::of(&link(libc::EBUSY)).exit, Exit::Failure);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit, Exit::Ok);
        assert_eq!(
            Failure::from(io::Error::from_raw_os_error(libc::ENOSPC)).exit,
            Exit::Failure
        );
    }

    #[test]
    fn the_help_lists_every_code() {
        let codes = [
            Exit::Ok,
            Exit::Failure,
            Exit::Usage,
            Exit::Invalid,
            Exit::NoDaemon,
            Exit::Permission,
            Exit::Leak,
        ]
        .map(|exit| exit as u8);
        let listed: Vec<u8> = HELP
            .lines()
            .skip(1)
            .map(|line| line.trim()[..1].parse().unwrap())
            .collect();
        assert_eq!(listed, codes);
    }
}
