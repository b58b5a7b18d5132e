//! Landlock (landlock(7), since Linux 5.13): which files a thread may touch.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus,
    path_beneath_rules,
};

use super::SandboxError;

/// The newest version of Landlock whose rights are known here (Linux 6.10); older kernels get what they have.
const NEWEST: ABI = ABI::V5;

/// No file may be opened, read, written, executed, made or removed. Descriptors that are open stay as they are.
pub(super) fn deny_all() -> Result<(), SandboxError> {
    restrict(Ruleset::default().handle_access(AccessFs::from_all(NEWEST))?.create()?)
}

/// Files may be written, made and removed below `writable` only; reading and executing are free. Holds once somebody is
/// [restricted](restrict) by it. Looks each of them up, which may have to wait for its disk.
pub(super) fn allow_writing<'a>(writable: impl IntoIterator<Item = &'a Path>) -> Result<RulesetCreated, SandboxError> {
    // Controlling a device is no way to change a file, and terminals, TUN and vhost devices need it.
    let write = AccessFs::from_write(NEWEST) & !AccessFs::IoctlDev;
    let ruleset = Ruleset::default().handle_access(write)?.create()?;
    Ok(ruleset.add_rules(path_beneath_rules(writable, write))?)
}

/// Has these rules hold for the calling thread.
pub(super) fn restrict(ruleset: RulesetCreated) -> Result<(), SandboxError> {
    match ruleset.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => Err(SandboxError::NoLandlock),
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
    }
}
