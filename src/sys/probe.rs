//! Why io_uring can't be used here, and how to allow it.

use std::io;

/// Why there is no io_uring engine. The text is for people: what is in the way and what would remove it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// ENOSYS.
    #[error("this kernel is built without io_uring (CONFIG_IO_URING), or a container or another sandbox hides it")]
    NotBuilt,
    /// EPERM, and kernel.io_uring_disabled is 1.
    #[error(
        "io_uring is restricted to CAP_SYS_ADMIN and the io_uring_group (kernel.io_uring_disabled=1); \
         to allow it: sysctl kernel.io_uring_disabled=0"
    )]
    Restricted,
    /// EPERM, and kernel.io_uring_disabled is 2.
    #[error("io_uring is disabled (kernel.io_uring_disabled=2); to allow it: sysctl kernel.io_uring_disabled=0")]
    Disabled,
    /// EPERM or EACCES, and the sysctl allows it.
    #[error(
        "a seccomp filter or security module forbids io_uring, as Docker's default profile does; to allow it: \
         docker run --security-opt seccomp=unconfined, or a profile with io_uring_setup, io_uring_enter and \
         io_uring_register"
    )]
    Forbidden,
    /// The kernel lacks something that the engine builds on.
    #[error("this kernel's io_uring has no {0}; it takes Linux 6.7 or newer")]
    TooOld(&'static str),
    /// ENOMEM.
    #[error(
        "not enough memory for io_uring; raise the memory limit of the container or unit (or: ulimit -l unlimited)"
    )]
    Memory,
    /// A multishot read of the TUN fails at once.
    #[error("io_uring can't read the TUN here ({0}), as happens in some containers")]
    Tun(io::Error),
    /// Anything else.
    #[error("{step}: {error}")]
    Os {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

impl Refusal {
    /// What `error` of io_uring_setup(2) means.
    pub(super) fn of_setup(error: io::Error) -> Refusal {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Refusal::NotBuilt,
            Some(libc::EPERM | libc::EACCES) => Refusal::of_permission(&sysctl()),
            Some(libc::ENOMEM) => Refusal::Memory,
            // An unknown flag.
            Some(libc::EINVAL) => Refusal::TooOld("IORING_SETUP_DEFER_TASKRUN"),
            _ => Refusal::Os {
                step: "io_uring_setup",
                error,
            },
        }
    }

    /// Who forbids it, given the text of kernel.io_uring_disabled (since 6.6; empty before).
    fn of_permission(sysctl: &str) -> Refusal {
        match sysctl.trim() {
            "1" => Refusal::Restricted,
            "2" => Refusal::Disabled,
            _ => Refusal::Forbidden,
        }
    }
}

fn sysctl() -> String {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default()
}

/// Whether this thread may have an io_uring with all that the engine needs. Only [`Refusal::Tun`] can still come later.
///
/// # Errors
/// Why not.
pub fn io_uring() -> Result<(), Refusal> {
    super::ring::Ring::new(8, 16).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_who_refuses() {
        let of = |errno| Refusal::of_setup(io::Error::from_raw_os_error(errno)).to_string();
        assert!(of(libc::ENOSYS).contains("CONFIG_IO_URING"));
        assert!(of(libc::ENOMEM).contains("memory"));
        assert!(of(libc::EINVAL).contains("6.7"));
        assert!(of(libc::EMFILE).contains("io_uring_setup"));
        assert!(matches!(Refusal::of_permission("1\n"), Refusal::Restricted));
        assert!(matches!(Refusal::of_permission("2\n"), Refusal::Disabled));
        assert!(matches!(Refusal::of_permission("0\n"), Refusal::Forbidden));
        assert!(matches!(Refusal::of_permission(""), Refusal::Forbidden));
    }
}
