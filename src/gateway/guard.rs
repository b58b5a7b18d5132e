//! Who puts things right where a program that was executed does not go on with the tunnel after all.
//!
//! Once the program in the daemon's process is another one, nothing of ours is left there that could take rules, filters and
//! name servers back, should it end without a word. So a child of the daemon, of the program that has made all of that, stays
//! until the tunnel runs again. It is connected by a pipe: a word in it says that all is well, and its end without one
//! that nobody goes on. It knows no key, and what there is to be undone it finds as `ringway cleanup` does.
//!
//! A kill switch holds, as after every end that nobody wanted.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::{fs, thread};

use super::RunError;
use super::leftovers::Traces;
use crate::control::runtime::block_on;
use crate::control::signals::{Hangups, Signals};
use crate::sys::exec;

/// The one argument of the program as a guard.
const GUARD: &str = "--resume-guard";
/// This very program, also where its file has been replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// What says that all is well.
const WELL: &[u8] = b".";

/// A guard at its post. Dropping it is its alarm.
#[derive(Debug)]
pub(super) struct Guard {
    /// The pipe to it.
    pub(super) line: OwnedFd,
    /// Its process, a child of this one whichever program this was when it began.
    pub(super) pid: u32,
}

impl Guard {
    /// Posts one.
    ///
    /// # Errors
    /// What the system says; then there is none.
    pub(super) fn post(traces: &Traces) -> io::Result<Guard> {
        let mut child = Command::new(THIS_PROGRAM)
            .arg(GUARD)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // It is no process that a service manager listens to.
            .env_remove("NOTIFY_SOCKET")
            // Ctrl-C is for the daemon.
            .process_group(0)
            .spawn()?;
        let mut line = serde_json::to_vec(traces)?;
        line.push(b'\n');
        let mut pipe = child.stdin.take().expect("it was asked for");
        // A pipe takes this at once, or as soon as the guard reads.
        pipe.write_all(&line)?;
        let line = pipe.as_fd().try_clone_to_owned()?;
        Ok(Guard { line, pid: child.id() })
    }

    /// All is well.
    pub(super) fn dismiss(self) {
        // It may have been killed.
        let _ = fs::File::from(self.line).write_all(WELL);
        let pid = self.pid;
        // Nobody has to wait for it.
        let wait = move || exec::wait_for_child(pid);
        let _ = exec::with_signals_held(|| thread::Builder::new().name("guard".into()).spawn(wait));
    }

    /// Nobody goes on with the tunnel, and nothing in this process has its interface any more: waits until all is put right.
    pub(super) fn alarm(self) {
        drop(self.line);
        exec::wait_for_child(self.pid);
    }
}

/// The whole program as a guard, where that is what it was called as. `begin_log` begins the log of the tunnel of this name, in which
/// it tells what it does.
pub fn keep_guard(begin_log: impl FnOnce(&str)) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != GUARD || arguments.next().is_some() {
        return None;
    }
    // Whoever ends the service ends the daemon, and this ends with it.
    let _ = exec::hold_signals();
    Some(match keep(&mut BufReader::new(io::stdin())) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(traces)) => {
            begin_log(&traces.name);
            put_right(&traces);
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "ringway: a guard that nobody has posted: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Waits for the word or for the end without it; then what is to be put right.
fn keep(line: &mut BufReader<impl io::Read>) -> io::Result<Option<Traces>> {
    let mut text = Vec::new();
    line.read_until(b'\n', &mut text)?;
    let traces = serde_json::from_slice(&text)?;
    let mut word = [0; 1];
    match line.read_exact(&mut word) {
        Ok(()) => Ok(None),
        Err(_) => Ok(Some(traces)),
    }
}

fn put_right(traces: &Traces) {
    let name = &traces.name;
    let see = format!("see: ringway cleanup {name}");
    tracing::error!("the program that was to go on with the tunnel has not; what is left of it is put right");
    let result = block_on(async {
        // As long as they are there, a signal does not end this.
        let _heard = let_commands_hear()
            .inspect_err(|error| tracing::warn!(%error, "no signal but SIGKILL ends commands of post_down"));
        if let Err(error) = traces.wait_until_gone().await {
            tracing::error!("{error}, so nothing was removed; {see}");
            return;
        }
        let mut tell = |what: String| tracing::info!("removed {what}");
        let claim = match traces.claim().await {
            Ok(claim) => claim,
            // It has swept before it set its own rules, and run the commands before its own.
            Err(error @ RunError::Runs(_)) => {
                tracing::warn!("{error}, so what was left is its own matter");
                return;
            }
            Err(error) => {
                tracing::error!("{error}, so nothing was removed; {see}");
                return;
            }
        };
        let left = traces.remove(&mut tell).await;
        let mark = traces.mark();
        drop(claim);
        let sockets = traces.remove_sockets(&mut tell).await;
        let commands = traces.run_post_down(mark, &mut tell).await;
        for error in [left, sockets, commands].into_iter().filter_map(Result::err) {
            tracing::error!("something is left: {error}; {see}");
        }
    });
    if let Err(error) = result {
        tracing::error!("something is left: {error}; {see}");
    }
    if traces.lockdown {
        tracing::warn!("the kill switch holds; lift it with: ringway unblock {name}");
    }
}

/// Has signals come to this process again, which does nothing about them: it would start every command with those held back that it
/// holds back itself, and who wants to end one could not. Needs a tokio runtime.
fn let_commands_hear() -> io::Result<(Signals, Hangups)> {
    let heard = (Signals::install()?, Hangups::install()?);
    exec::accept_signals()?;
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_acts_when_its_line_ends_without_a_word() {
        let traces = Traces {
            name: "rw0".into(),
            sockets: vec!["/run/ringway/rw0.sock".into()],
            owns_network: true,
            lockdown: false,
            post_down: Vec::new(),
        };
        let mut line = serde_json::to_vec(&traces).expect("it can be written");
        line.push(b'\n');
        let keep = |line: &[u8]| keep(&mut BufReader::new(line));
        let acts = keep(&line).expect("it was posted");
        assert_eq!(acts.map(|traces| traces.sockets), Some(traces.sockets));
        assert!(keep(&[&line[..], WELL].concat()).expect("it was posted").is_none());
        assert!(keep(b"").is_err() && keep(b"{}\n").is_err());
    }
}
