//! What comes before the interface: the end of an earlier tunnel, and `pre_up`.

use std::cell::Cell;
use std::path::Path;

use super::leftovers::Traces;
use super::{RunError, hooks, retry};
use crate::config::Config;
use crate::control::runtime::block_on;
use crate::control::signals::{Hangups, Signals};
use crate::control::socket::SocketError;
use crate::firewall::lockdown;
use crate::sys::exec;
use crate::sys::tun::{self, TunError};

/// Puts right what an earlier tunnel of this name has left, and runs the commands that come before the interface; false when a
/// signal ends those.
///
/// # Errors
/// [`RunError::EndedEarly`]: a signal came before the commands, so nobody knows that nothing is left. As [`Traces::end_killed`]; the
/// interface's name is taken; a command has failed.
pub(super) fn begin(config: &Config, file: &Path) -> Result<bool, RunError> {
    let interface = &config.interface;
    let is_clear = Cell::new(false);
    block_on(async {
        let mut signals = Signals::install()?;
        // There is nothing yet that a SIGHUP could change, but it must not kill.
        let _hangups = Hangups::install()?;
        exec::accept_signals()?;
        tokio::select! {
            // In this order no signal is lost: what comes while nobody listens waits for who listens next.
            biased;
            () = signals.end() => match is_clear.get() {
                true => Ok(false),
                false => Err(RunError::EndedEarly(interface.name.clone())),
            },
            result = async {
                wait_for_name(&interface.name).await?;
                match Traces::of(config, file).end_killed().await {
                    Err(RunError::Runs(socket)) => return Err(SocketError::InUse(socket).into()),
                    ended => ended?,
                }
                // Others may have taken it in that time.
                wait_for_name(&interface.name).await?;
                // As this file says: a killed daemon may have left another one, and one that was just ending has done with its own what its file said.
                lockdown::apply(interface).await?;
                is_clear.set(true);
                Ok(hooks::run("pre_up", &interface.hooks.pre_up, &interface.name).await?)
            } => {
                result.map(|()| true)
            }
        }
    })?
}

async fn wait_for_name(name: &str) -> Result<(), TunError> {
    let is_taken = |error: &TunError| matches!(error, TunError::Exists(_));
    let look = || match tun::index_of(name) {
        Some(_) => Err(TunError::Exists(name.to_owned())),
        None => Ok(()),
    };
    retry::until_free(is_taken, look).await
}
