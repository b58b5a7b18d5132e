//! What is left of a tunnel that nobody has any more: found by its names, and removed. A kill switch holds.
//!
//! A daemon that ends in good order leaves nothing. After one that was killed, or was followed by a program that does not go
//! on, there are rules, filters, name servers, sockets and commands that have not run: those are for the guard, or for
//! `ringway cleanup`.

use std::fs::{self, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::mark::{self, Mark};
use super::{RunError, hooks, service};
use crate::config::{Config, LoadError, Loaded, MetricsListen, RUN_DIR, default_control_socket};
use crate::control::runtime::block_on;
use crate::control::socket::{self, Lock, SocketError};
use crate::firewall::gateway;
use crate::link::{self, LinkError};
use crate::{dns, uapi};

/// How long the interface may outlive the process that had it: the kernel lets go of a ring's files some time after its end.
/// The service's unit gives `ringway cleanup` longer.
const INTERFACE_TIME_MAX: Duration = Duration::from_secs(8);
/// How long the machine's name servers, links and rules may take to be as they were: resolved and resolvconf have 20 s, nft 60 s.
/// Who waits for that waits a little longer ([`socket::CLAIM_PATIENCE`]).
pub(super) const REMOVAL_TIME_MAX: Duration = Duration::from_secs(90);
/// How long another process may take to run `post_down`: ten commands that do not end by themselves.
const OTHERS_TIME_MAX: Duration = Duration::from_secs(300);
/// Between two looks at either.
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

impl Traces {
    /// Those of the tunnel that `config` describes, which is `file`'s.
    pub(super) fn of(config: &Config, file: &Path) -> Traces {
        let interface = &config.interface;
        let mut sockets = vec![interface.control_socket.clone()];
        if file.extension().is_some_and(|extension| extension == "conf") {
            sockets.push(uapi::server::path_of(&interface.name));
        }
        if let Some(MetricsListen::Unix(path)) = &config.metrics {
            sockets.push(path.clone());
        }
        Traces {
            name: interface.name.clone(),
            sockets,
            owns_network: true,
            lockdown: interface.lockdown.is_some(),
            post_down: interface.hooks.post_down.clone(),
        }
    }

    /// Those of a tunnel of which only the name is known.
    fn of_name(name: &str) -> Traces {
        Traces {
            name: name.to_owned(),
            sockets: vec![default_control_socket(name)],
            owns_network: true,
            lockdown: false,
            post_down: Vec::new(),
        }
    }

    /// Waits until the kernel has let go of the interface.
    ///
    /// # Errors
    /// [`LinkError::Exists`] when it does not.
    pub(super) async fn wait_until_gone(&self) -> Result<(), LinkError> {
        let deadline = Instant::now() + INTERFACE_TIME_MAX;
        while link::exists(&self.name).await? {
            if Instant::now() > deadline {
                return Err(LinkError::Exists(self.name.clone()));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn control_socket(&self) -> &Path {
        self.sockets.first().expect("the control socket's is always there")
    }

    /// The right to all of this once the interface is gone. A daemon that comes up takes the socket's name before it makes any of
    /// it, and waits for us until then.
    ///
    /// # Errors
    /// [`RunError::Runs`]: another daemon has come up meanwhile, whose all of this is now. [`RunError::Serve`]: another process
    /// does not let go of it, or there can be no lock.
    pub(super) async fn claim(&self) -> Result<Option<Lock>, RunError> {
        let socket = self.control_socket();
        let lock = match mark::lock_name(socket).await {
            Ok(lock) => Some(lock),
            // Where there is no directory for a lock there is none for a socket either.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(SocketError::Io(socket.to_owned(), error).into()),
        };
        match socket::is_served(socket).await {
            true => Err(RunError::Runs(socket.to_owned())),
            false => Ok(lock),
        }
    }

    /// Removes, by a [claim](Traces::claim), it all but the sockets and the mark; tells what that was, a phrase each.
    ///
    /// # Errors
    /// The first of what could not be removed, the log has the others; the rest was.
    pub(super) async fn remove(&self, tell: &mut dyn FnMut(String)) -> Result<(), RunError> {
        if !self.owns_network {
            return Ok(());
        }
        service::takes(REMOVAL_TIME_MAX);
        let mut results = Vec::new();
        let removed = tokio::time::timeout(REMOVAL_TIME_MAX, self.remove_all(tell, &mut results)).await;
        if removed.is_err() {
            let slow = format!("name servers, links or rules are not removed within {REMOVAL_TIME_MAX:?}");
            results.push(Err(io::Error::new(io::ErrorKind::TimedOut, slow).into()));
        }
        first_error(results)
    }

    async fn remove_all(&self, tell: &mut dyn FnMut(String), results: &mut Vec<Result<(), RunError>>) {
        let mut tell_all = |removed: Vec<String>| removed.into_iter().for_each(&mut *tell);
        let dns = dns::remove_leftovers(&self.name).await.map(&mut tell_all);
        results.push(dns.map_err(RunError::from));
        let link = link::remove_leftovers(&self.name).await.map(&mut tell_all);
        results.push(link.map_err(RunError::from));
        let rules = gateway::remove_leftovers(&self.name, self.control_socket(), tell).await;
        results.push(rules.map_err(RunError::from));
    }

    /// Removes those of its sockets on which nobody answers; tells which those were.
    ///
    /// # Errors
    /// [`RunError::Left`]: the first that could not be removed, the log has the others; the rest was.
    pub(super) async fn remove_sockets(&self, tell: &mut dyn FnMut(String)) -> Result<(), RunError> {
        let mut results = Vec::new();
        for path in &self.sockets {
            match socket::remove_dead(path).await {
                Ok(true) => tell(format!("the socket {}", path.display())),
                Ok(false) => {}
                Err(error) => {
                    let path = path.clone();
                    results.push(Err(RunError::Left { path, error }));
                }
            }
        }
        first_error(results)
    }

    /// Runs the commands of the end that `mark` stands for, and removes that.
    ///
    /// # Errors
    /// [`RunError::Left`]: the mark could not be removed.
    pub(super) async fn run_post_down(&self, mark: Option<Mark>, tell: &mut dyn FnMut(String)) -> Result<(), RunError> {
        let Some(mark) = mark else { return Ok(()) };
        hooks::run_down("post_down", &self.post_down, &self.name).await;
        match mark.remove().await {
            Ok(true) => tell("the mark of a tunnel that was up".to_owned()),
            Ok(false) => {}
            Err(error) => {
                let path = mark::path_of(self.control_socket());
                return Err(RunError::Left { path, error });
            }
        }
        Ok(())
    }

    /// What says, by a [claim](Traces::claim), that the commands of the end are to run and that they are ours to run. Who does not run
    /// them lets go of it before the claim: so who finds it locked has found one who does, and none who only looked.
    pub(super) fn mark(&self) -> Option<Mark> {
        self.find_mark().unwrap_or_default()
    }

    /// As [`Traces::mark`].
    ///
    /// # Errors
    /// Another process runs them.
    fn find_mark(&self) -> Result<Option<Mark>, BeingEnded> {
        match Mark::find(self.control_socket()) {
            Ok(mark) => Ok(mark),
            Err(TryLockError::WouldBlock) => Err(BeingEnded),
            Err(TryLockError::Error(error)) => {
                let path = mark::path_of(self.control_socket());
                tracing::warn!("{}: {error}; post_down does not run", path.display());
                Ok(None)
            }
        }
    }

    /// Before such a tunnel begins: where a daemon was killed that had it, removes what that has left and runs the commands of the end
    /// that it has not come to, or waits until somebody else has. What can't be removed is told.
    ///
    /// # Errors
    /// As [`Traces::claim`]; [`RunError::BeingEnded`].
    pub(super) async fn end_killed(&self) -> Result<(), RunError> {
        let mut deadline = None;
        loop {
            let claim = self.claim().await?;
            if let Ok(mark) = self.find_mark() {
                if mark.is_none() {
                    return Ok(());
                }
                let mut tell = |what| tracing::info!("removed what a tunnel that was killed has left: {what}");
                let left = self.remove(&mut tell).await;
                drop(claim);
                let commands = self.run_post_down(mark, &mut tell).await;
                for error in [left, commands].into_iter().filter_map(Result::err) {
                    tracing::warn!("something of a tunnel that was killed is left: {error}");
                }
                return Ok(());
            }
            drop(claim);
            let until = *deadline.get_or_insert_with(|| {
                tracing::info!("another process runs post_down of the tunnel that was here before; waiting for that");
                service::takes(OTHERS_TIME_MAX + REMOVAL_TIME_MAX);
                Instant::now() + OTHERS_TIME_MAX
            });
            if Instant::now() > until {
                return Err(RunError::BeingEnded(mark::path_of(self.control_socket())));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Leaves out sockets whose place others may have chosen, all but those of the service's own directory and those that root
    /// has made; the first of them. In the place of such a control socket comes the usual one.
    fn leave_strange_sockets(&mut self) -> Option<PathBuf> {
        let wg = uapi::server::path_of(&self.name);
        let is_roots = |path: &Path| {
            // What lies beside a control socket is acted upon as well.
            let beside = [gateway::state_path(path), mark::path_of(path)].map(fs::symlink_metadata);
            let found = fs::symlink_metadata(path);
            found.is_ok_and(|found| found.uid() == 0 && found.file_type().is_socket())
                && beside.iter().flatten().all(|found| found.uid() == 0)
        };
        let is_strange = |path: &PathBuf| path.parent() != Some(Path::new(RUN_DIR)) && *path != wg && !is_roots(path);
        let first = self.sockets.iter().find(|path| is_strange(path)).cloned()?;
        if is_strange(&self.sockets[0]) {
            self.sockets[0] = default_control_socket(&self.name);
        }
        self.sockets.retain(|path| !is_strange(path));
        Some(first)
    }
}

/// Removes what a daemon that was killed has left of the tunnel `name`, and runs the commands that it has not come to. `from`:
/// the file that describes the tunnel, where there is one. Tells what was removed, a phrase each, as it goes. A kill
/// switch holds.
///
/// # Errors
/// The tunnel runs, or another process is at it, and nothing was done; or the first of what could not be removed, or was left because
/// root would act on the word of others: the log has the others, and the rest was done.
pub fn cleanup(name: &str, from: Option<(&Path, &Loaded)>, tell: &mut dyn FnMut(String)) -> Result<(), RunError> {
    let mut traces = match from {
        Some((file, loaded)) => Traces::of(&loaded.config, file),
        None => Traces::of_name(name),
    };
    let wg = uapi::server::path_of(name);
    if !traces.sockets.contains(&wg) {
        traces.sockets.push(wg);
    }
    let distrusted = from.and_then(|(file, loaded)| Some((file, loaded.distrusted()?)));
    block_on(async {
        let control_socket = traces.sockets[0].clone();
        let strange = distrusted.and_then(|_| traces.leave_strange_sockets());
        // The file may name another interface by now than it did when this daemon read it.
        for path in [&control_socket, &traces.sockets[0]] {
            if socket::is_served(path).await {
                return Err(RunError::Runs(path.clone()));
            }
        }
        // Without one no daemon was killed, and whoever has the interface keeps it.
        if socket::is_dead(&control_socket).await {
            traces.wait_until_gone().await?;
        } else if link::exists(name).await? {
            return Err(LinkError::Exists(name.to_owned()).into());
        }
        let claim = traces.claim().await?;
        let left = traces.remove(tell).await;
        let mark = traces.mark();
        let refused = match (distrusted, strange) {
            (Some((file, foreign)), Some(socket)) => Some(RunError::StrangeSocket {
                file: file.to_owned(),
                socket,
                foreign: foreign.clone(),
            }),
            // The mark stays, for when they are root's.
            (Some((file, foreign)), None) if !traces.post_down.is_empty() && mark.is_some() => {
                Some(RunError::Config(LoadError::Commands {
                    path: file.to_owned(),
                    hook: "post_down",
                    foreign: foreign.clone(),
                }))
            }
            _ => None,
        };
        // Without a file nobody knows the commands.
        let mark = mark.filter(|_| from.is_some() && refused.is_none());
        drop(claim);
        let sockets = traces.remove_sockets(tell).await;
        let commands = traces.run_post_down(mark, tell).await;
        first_error([left, sockets, commands, refused.map_or(Ok(()), Err)])
    })?
}

/// Another process runs the commands of the end.
struct BeingEnded;

/// The first error; the log gets the others.
fn first_error(results: impl IntoIterator<Item = Result<(), RunError>>) -> Result<(), RunError> {
    let mut errors = results.into_iter().filter_map(Result::err);
    let first = errors.next();
    errors.for_each(|error| tracing::error!("{error}"));
    first.map_or(Ok(()), Err)
}

/// Removes what a tunnel that was killed has left, before one of the same name comes up. What can't be removed is no reason
/// not to.
pub(crate) async fn sweep(name: &str) {
    let dns = dns::remove_leftovers(name).await.map_err(RunError::from);
    let link = link::remove_leftovers(name).await.map_err(RunError::from);
    for swept in [dns, link] {
        match swept {
            Ok(removed) => {
                for what in removed {
                    tracing::info!("removed what a tunnel that was killed has left: {what}");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot remove what a tunnel that was killed may have left"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn who_only_looks_for_commands_keeps_nobody_from_running_them() {
        let folder = std::env::temp_dir().join(format!("ringway-leftovers-{}", std::process::id()));
        fs::create_dir(&folder).expect("a directory");
        let [socket, ran] = ["rw0.sock", "ran"].map(|name| folder.join(name));
        let mark = mark::path_of(&socket);
        let traces = Traces {
            sockets: vec![socket],
            post_down: vec![format!("touch {}", ran.display())],
            ..Traces::of_name("rw0")
        };
        fs::write(&mark, "").expect("the directory is ours");
        let claim = traces.claim().await.expect("nobody has it");
        let seen = traces.mark();
        assert!(seen.is_some() && claim.is_some());
        let mut told = Vec::new();
        let guard = async {
            let claim = traces.claim().await.expect("nobody has it for long");
            let mark = traces.mark();
            drop(claim);
            traces.run_post_down(mark, &mut |what| told.push(what)).await
        };
        let look = async {
            // Polled first, the guard has asked for the claim.
            drop((seen, claim));
        };
        tokio::join!(guard, look).0.expect("all of it can be removed");
        assert_eq!(told, ["the mark of a tunnel that was up"]);
        assert!(ran.exists() && !mark.exists());

        // What could not be removed is told, and not that it was.
        told.clear();
        fs::write(&mark, "").expect("the directory is ours");
        let seen = traces.mark();
        fs::create_dir(folder.join("rw0.sock.lock")).expect("the directory is ours");
        let left = traces.run_post_down(seen, &mut |what| told.push(what)).await;
        let left = left.expect_err("there is no lock").to_string();
        assert!(
            left.starts_with(&format!("{}: cannot be removed", mark.display())),
            "{left}"
        );
        assert_eq!(told, [""; 0]);
        fs::remove_dir_all(&folder).expect("it is there");
    }
}
