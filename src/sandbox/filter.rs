//! seccomp(2) filters over system call numbers.

use std::env::consts::ARCH;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use super::SandboxError;

/// What a call that is not allowed returns. An error can be told and survived; killing would turn a call that a newer
/// library makes into an outage.
const REFUSE: SeccompAction = SeccompAction::Errno(libc::EPERM as u32);

/// Only `calls` are carried out.
pub(super) fn allow(calls: &[libc::c_long]) -> Result<(), SandboxError> {
    apply(calls, REFUSE, SeccompAction::Allow)
}

/// `calls` are not carried out.
pub(super) fn deny(calls: &[libc::c_long]) -> Result<(), SandboxError> {
    apply(calls, SeccompAction::Allow, REFUSE)
}

fn apply(calls: &[libc::c_long], otherwise: SeccompAction, matched: SeccompAction) -> Result<(), SandboxError> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let program: BpfProgram = SeccompFilter::new(rules, otherwise, matched, ARCH.try_into()?)?.try_into()?;
    Ok(apply_filter(&program)?)
}
