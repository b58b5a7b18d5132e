//! The name servers that the system uses while the tunnel is up.
//!
//! Three ways, the first that this machine has: systemd-resolved, which can also ask different servers for different
//! domains; resolvconf; the file /etc/resolv.conf. What [`set`] sets, [`Setting::revert`] takes back; what a daemon that
//! was killed has left, [`remove_leftovers`] does.
#![forbid(unsafe_code)]

mod dbus;
mod file;
mod resolvconf;
mod resolved;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use dbus::CallError;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::config::Dns;
use crate::control::runtime::blocking;
use file::Directory;
use resolved::Resolved;

/// Nobody should wait for a name service that hangs.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Who is told about name servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// systemd-resolved, over D-Bus.
    Resolved,
    /// resolvconf(8).
    Resolvconf,
    /// /etc/resolv.conf.
    File,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Resolved => "systemd-resolved",
            Backend::Resolvconf => "resolvconf",
            Backend::File => "/etc/resolv.conf",
        })
    }
}

/// Why the name servers are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Only systemd-resolved asks different servers for different domains.
    #[error(
        "dns_domains needs systemd-resolved, and names are looked up by {0} here; run systemd-resolved, or remove \
             dns_domains to ask the tunnel's servers for all names"
    )]
    Split(Backend),
    /// systemd-resolved refused.
    #[error("systemd-resolved: {0}{hint}", hint = unauthorized(.0))]
    Resolved(#[from] CallError),
    /// resolvconf failed, or the file can't be changed.
    #[error("cannot set the name servers by {backend}: {error}{}", hint(error))]
    Io {
        /// Which of both.
        backend: Backend,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It took too long.
    #[error("{0} does not answer within {TIME_MAX:?}")]
    Slow(Backend),
}

/// systemd-resolved asks polkit about everybody but root.
fn unauthorized(error: &CallError) -> &'static str {
    match error {
        CallError::Refused { name, .. }
            if name.ends_with(".AccessDenied") || name.ends_with("AuthorizationRequired") =>
        {
            "; polkit has to allow it to the daemon's user: install polkitd, and the rules of dist/systemd"
        }
        _ => "",
    }
}

/// A service may not write to /etc, but it may talk to systemd-resolved.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; run systemd-resolved, which needs no right to write, or remove dns"
        }
        _ => "",
    }
}

/// Name servers that were set.
#[derive(Debug)]
pub struct Setting {
    backend: Backend,
    name: String,
    index: u32,
}

/// The way that names go on this machine.
enum Way {
    Resolved(Resolved),
    Resolvconf(PathBuf),
    File,
}

impl Way {
    async fn choose() -> Way {
        if let Ok(Some(resolved)) = tokio::time::timeout(TIME_MAX, Resolved::connect()).await {
            return Way::Resolved(resolved);
        }
        resolvconf::find().map_or(Way::File, Way::Resolvconf)
    }

    fn backend(&self) -> Backend {
        match self {
            Way::Resolved(_) => Backend::Resolved,
            Way::Resolvconf(_) => Backend::Resolvconf,
            Way::File => Backend::File,
        }
    }
}

/// Who would be told at this moment.
pub async fn backend() -> Backend {
    Way::choose().await.backend()
}

/// Sets the name servers of the tunnel `name`, whose interface `index` is up. What is in `setting` afterwards, also where nobody waits
/// for this to end, is to be reverted.
pub async fn set(setting: &mut Option<Setting>, name: &str, index: u32, dns: &Dns) -> Result<(), DnsError> {
    let mut way = Way::choose().await;
    let backend = way.backend();
    if !dns.domains.is_empty() && backend != Backend::Resolved {
        return Err(DnsError::Split(backend));
    }
    *setting = Some(Setting::made(backend, name, index));
    let failed = |error| DnsError::Io { backend, error };
    let work = async {
        match &mut way {
            Way::Resolved(resolved) => match resolved.set(index, dns).await {
                Ok(()) => Ok(()),
                Err(error) => {
                    // Half of it may have been set; the first error is the one to tell.
                    let _ = resolved.revert(index).await;
                    Err(error.into())
                }
            },
            Way::Resolvconf(program) => resolvconf::set(program, name, &text(dns)).await.map_err(failed),
            Way::File => {
                let (name, text) = (name.to_owned(), text(dns));
                in_etc(move |etc| etc.set(&name, &text)).await.map_err(failed)
            }
        }
    };
    let done = match backend {
        // Who gave up waiting for a disk would not know whether it is set.
        Backend::File => work.await,
        _ => {
            let done = tokio::time::timeout(TIME_MAX, work).await;
            done.map_err(|_| DnsError::Slow(backend)).flatten()
        }
    };
    if done.is_err() {
        let is_undone = match &way {
            // It may have written the record before it failed; the first error is the one to tell.
            Way::Resolvconf(program) => {
                let undone = tokio::time::timeout(TIME_MAX, resolvconf::unset(program, name)).await;
                undone.is_ok_and(|undone| undone.is_ok())
            }
            _ => !matches!(done, Err(DnsError::Slow(_))),
        };
        setting.take_if(|_| is_undone);
    }
    done
}

/// As [`set`], where `setting` has others or none, and `dns` may have none.
pub async fn change(setting: &mut Option<Setting>, name: &str, index: u32, dns: &Dns) -> Result<(), DnsError> {
    if let Some(before) = setting {
        // The other ones overwrite what is set, but a file would be kept in place of what was there first.
        let overwrites = before.backend != Backend::File && !dns.servers.is_empty();
        if !overwrites || backend().await != before.backend {
            before.revert().await?;
            *setting = None;
        }
    }
    match dns.servers.is_empty() {
        true => Ok(()),
        false => set(setting, name, index, dns).await,
    }
}

impl Setting {
    /// What an earlier process has set for the tunnel `name` on the interface `index`.
    pub fn made(backend: Backend, name: &str, index: u32) -> Setting {
        Setting {
            backend,
            name: name.to_owned(),
            index,
        }
    }

    /// Who was told.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Makes it as it was.
    pub async fn revert(&self) -> Result<(), DnsError> {
        let backend = self.backend;
        let failed = |error| DnsError::Io { backend, error };
        let work = async {
            match backend {
                // One that was stopped meanwhile has forgotten.
                Backend::Resolved => match Resolved::connect().await {
                    Some(mut resolved) => Ok(resolved.revert(self.index).await?),
                    None => Ok(()),
                },
                Backend::Resolvconf => match resolvconf::find() {
                    Some(program) => resolvconf::unset(&program, &self.name).await.map_err(failed),
                    None => Ok(()),
                },
                Backend::File => restore(self.name.clone()).await.map(drop).map_err(failed),
            }
        };
        tokio::time::timeout(TIME_MAX, work)
            .await
            .map_err(|_| DnsError::Slow(backend))?
    }
}

/// Takes back what the tunnel `name`, which does not run, has set; tells what, a phrase each.
pub async fn remove_leftovers(name: &str) -> Result<Vec<String>, DnsError> {
    let mut removed = Vec::new();
    if resolvconf::has_set(name)
        && let Some(program) = resolvconf::find()
    {
        let backend = Backend::Resolvconf;
        let work = tokio::time::timeout(TIME_MAX, resolvconf::unset(&program, name));
        let result = work.await.map_err(|_| DnsError::Slow(backend))?;
        result.map_err(|error| DnsError::Io { backend, error })?;
        removed.push("the name servers that resolvconf has of it".into());
    }
    let backend = Backend::File;
    let restored = tokio::time::timeout(TIME_MAX, restore(name.to_owned())).await;
    let restored = restored.map_err(|_| DnsError::Slow(backend))?;
    if restored.map_err(|error| DnsError::Io { backend, error })? {
        removed.push("its /etc/resolv.conf".into());
    }
    Ok(removed)
}

/// Puts back what was kept for `name`; whether anything was.
async fn restore(name: String) -> io::Result<bool> {
    in_etc(move |etc| etc.restore(&name)).await
}

/// Works on the file where the caller's thread does not wait for its disk. One work follows the other, those that nobody waits for any
/// more included; what had not begun by then never does.
async fn in_etc<T: Send + 'static>(
    work: impl FnOnce(Directory<'static>) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let worked = blocking(move || {
        let _turn = turn;
        work(Directory(Path::new("/etc")))
    });
    worked.await.flatten()
}

/// In resolv.conf's form.
fn text(dns: &Dns) -> String {
    let mut text: String = dns
        .servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    if !dns.search.is_empty() {
        text += &format!("search {}\n", dns.search.join(" "));
    }
    text
}
