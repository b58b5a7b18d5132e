//! `unblock`: lifts kill switches.

use std::io::{self, Write as _};

use super::exit::{Exit, Failure};
use crate::control::runtime::block_on;
use crate::firewall::{FirewallError, lockdown};

pub(super) fn unblock(name: Option<&str>) -> Result<(), Failure> {
    let standing = now(lockdown::standing())?;
    let names = match name {
        Some(name) if !standing.iter().any(|standing| standing == name) => {
            let held = match standing.as_slice() {
                [] => "no kill switch holds here".to_owned(),
                names => format!("it has none; those of {} hold", names.join(", ")),
            };
            return Err(Failure::new(Exit::Failure, format!("{name}: {held}")));
        }
        Some(name) => vec![name.to_owned()],
        None => standing,
    };
    for name in &names {
        now(lockdown::lift(name))?;
        writeln!(io::stdout(), "{name}: unblocked")?;
    }
    if names.is_empty() {
        writeln!(io::stdout(), "no kill switch holds here")?;
    }
    Ok(())
}

/// Runs one thing on the firewall to its end.
pub(super) fn now<T>(work: impl Future<Output = Result<T, FirewallError>>) -> Result<T, Failure> {
    block_on(work)?.map_err(|error| Failure::of(&error))
}
