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
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use std::{fs, thread};

use serde::{Deserialize, Serialize};

use super::hooks;
use super::network;
use crate::control::runtime::Runtime;
use crate::control::signals::{Hangups, Signals};
use crate::sys::exec;
use crate::sys::tun;

/// The one argument of the program as a guard.
const GUARD: &str = "--resume-guard";
/// This very program, also where its file has been replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// What says that all is well.
const WELL: &[u8] = b".";
/// How long the interface may outlive the process that had it: the kernel lets go of a ring's files some time after its end.
const INTERFACE_TIME_MAX: Duration = Duration::from_secs(10);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(5);

/// What a tunnel has in the system, by names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Traces {
    /// The interface.
    pub(super) name: String,
    /// Its first name is that of the control socket.
    pub(super) sockets: Vec<PathBuf>,
    /// Rules, filters and name servers are the daemon's, and not somebody else's as with `wg-quick`.
    pub(super) owns_network: bool,
    /// There is a kill switch.
    pub(super) lockdown: bool,
    pub(super) post_down: Vec<String>,
}

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
    let Traces { name, sockets, .. } = traces;
    tracing::warn!("the program that was to go on with the tunnel has not; what is left of it is put right");
    let deadline = std::time::Instant::now() + INTERFACE_TIME_MAX;
    while tun::index_of(name).is_some() {
        if std::time::Instant::now() > deadline {
            tracing::error!("the interface is still there, so nothing was removed; see: ringway cleanup {name}");
            return;
        }
        thread::sleep(PAUSE);
    }
    let result = Runtime::Tokio.block_on(async |_| {
        // As long as they are there, a signal does not end this.
        let _heard = let_commands_hear()
            .inspect_err(|error| tracing::warn!(%error, "no signal but SIGKILL ends commands of post_down"));
        if let Some(control_socket) = sockets.first().filter(|_| traces.owns_network) {
            match network::remove_leftovers(name, control_socket).await {
                Ok(removed) => removed.iter().for_each(|what| tracing::info!("removed {what}")),
                Err(error) => tracing::error!("something is left: {error}; see: ringway cleanup {name}"),
            }
        }
        for what in network::remove_sockets(sockets.iter().cloned()).await {
            tracing::info!("removed {what}");
        }
        hooks::run_down("post_down", &traces.post_down, name).await;
    });
    if let Err(error) = result {
        tracing::error!("something is left: {error}; see: ringway cleanup {name}");
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
