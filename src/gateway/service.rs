//! What a service manager is told (sd_notify(3)), where there is one, and what the process gives up once it runs.
//!
//! With `Type=notify` the unit counts as started when packets can pass. With `WatchdogSec=` the manager restarts it when
//! the control thread or any worker stands still: all of them have to answer before it is told that all is well.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::bounded;
use sd_notify::NotifyState;
use tokio::sync::mpsc;

use crate::config::{Config, Hooks, MetricsListen, RUN_DIR};
use crate::control::Order;
use crate::control::runtime::{DISK_TIME_MAX, blocking, within_disk_time};
use crate::dns;
use crate::sandbox::ControlLimits;
use crate::uapi;

/// What every daemon may write to: streams that lead nowhere, terminals, the device that TUN queues come from, and the
/// network's own settings.
const WRITABLE: [&str; 4] = ["/dev/null", "/dev/tty", "/dev/net/tun", "/proc/sys/net"];

/// How long an end in good order may take beside what [asks for more](takes): SaveConfig, and then the state and the latency log, wait for
/// their disks ([`DISK_TIME_MAX`]).
const END_TIME_MAX: Duration = Duration::from_secs(4 * DISK_TIME_MAX.as_secs());

/// Tells the service manager that packets can pass.
pub(super) fn ready(name: &str) {
    tell(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("{name} is up")),
        NotifyState::Watchdog,
    ]);
}

/// Tells the service manager that what comes next, a start or an end, may take this long, where it would wait for less.
pub(super) fn takes(time: Duration) {
    let time = time.as_micros().try_into().unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(time)]);
}

/// Tells the service manager that everything moves, before what may take its time.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Tells the service manager that the configuration is read again, until it is told that packets can pass.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot tell the service manager"),
    }
}

/// Tells the service manager that the tunnel goes down, which disks may hold up.
pub(super) fn stopping() {
    let time = END_TIME_MAX.as_micros().try_into().unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(time)]);
}

/// Tells the service manager at its pace that everything moves, for as long as it does; never ends where it does not
/// want to know.
pub(super) async fn watch(orders: mpsc::Sender<Order>, workers: usize) {
    match sd_notify::watchdog_enabled() {
        Some(timeout) => watch_within(timeout, orders, workers, alive).await,
        None => std::future::pending().await,
    }
}

/// As [`watch`], for who wants to hear by `tell` that everything moves before each `timeout` ends.
async fn watch_within(timeout: Duration, orders: mpsc::Sender<Order>, workers: usize, tell: impl Fn()) {
    let pause = (timeout / 3).max(Duration::from_millis(10));
    loop {
        let (answer, answers) = bounded(workers);
        // Where the control thread has ended, there is nothing to tell.
        if orders.send(Order::Alive(answer)).await.is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(pause).await;
        if answers.try_iter().count() == workers {
            tell();
        }
    }
}

/// What the control thread has given up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Confined {
    /// Anything.
    pub(super) at_all: bool,
    /// Writing to files, too.
    pub(super) files: bool,
}

/// Gives up what the control thread does not need, unless commands of the configuration are to run, which nobody knows
/// the needs of; files only where their disks answer. `file`: where the configuration came from and is saved to; `dns`: who was told
/// of name servers, and has to be told of their end.
pub(super) async fn confine(config: &Config, file: &Path, dns: Option<dns::Backend>) -> Confined {
    let interface = &config.interface;
    if !interface.sandbox {
        return Confined::default();
    }
    if interface.hooks != Hooks::default() {
        tracing::info!("commands of the configuration run unconfined, so the control thread is not confined either");
        return Confined::default();
    }
    if dns == Some(dns::Backend::Resolvconf) {
        tracing::info!("resolvconf runs unconfined, so the control thread is not confined either");
        return Confined::default();
    }
    let (config, file) = (config.clone(), file.to_owned());
    let limits = blocking(move || ControlLimits::new(writable(&config, &file, dns).iter().map(PathBuf::as_path)));
    let limits = within_disk_time(limits).await.inspect_err(|error| {
        tracing::warn!("cannot look up where the control thread may write, so it may write anywhere: {error}");
    });
    let files = limits.is_ok();
    for missing in limits.unwrap_or(ControlLimits::of_calls()).confine() {
        tracing::debug!("{missing}");
    }
    Confined { at_all: true, files }
}

/// Where the control thread may write. Looks at the file system, and makes the directory of what is kept.
fn writable(config: &Config, file: &Path, dns: Option<dns::Backend>) -> Vec<PathBuf> {
    let interface = &config.interface;
    let folder_of = |path: &Path| path.parent().map(Path::to_owned);
    let mut writable: Vec<PathBuf> = WRITABLE.iter().map(PathBuf::from).collect();
    writable.push(RUN_DIR.into());
    if file.extension().is_some_and(|extension| extension == "conf") {
        writable.extend(folder_of(&uapi::server::path_of(&interface.name)));
    }
    writable.extend(folder_of(&interface.control_socket));
    writable.extend(interface.latency_log.as_deref().and_then(folder_of));
    if let Some(MetricsListen::Unix(path)) = &config.metrics {
        // The socket is removed at the end.
        writable.extend(folder_of(path));
    }
    if let Some(folder) = &interface.state_dir {
        // What is not there when the limits are set can't be made later. Who writes to it says what is wrong with it. Where it is there,
        // a disk on which writes wait would hold up even this.
        if !folder.exists() {
            let _ = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        }
        writable.push(folder.clone());
    }
    writable.extend((dns == Some(dns::Backend::File)).then(|| PathBuf::from("/etc")));
    let saved = [Some(file), interface.save.as_deref()].into_iter().flatten();
    writable.extend(saved.filter_map(|path| folder_of(&path.canonicalize().ok()?)));
    writable
}

fn tell(state: &[NotifyState<'_>]) {
    let Some(socket) = manager() else { return };
    let text: String = state.iter().map(|state| format!("{state}\n")).collect();
    if let Err(error) = send(&socket, &text) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

/// Where the service manager listens, if there is one.
fn manager() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())
}

/// Sends to a socket in the file system, or to one in the abstract name space, which the crate does not know: "@NAME".
fn send(socket: &OsStr, text: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn that_all_moves_is_told_only_in_turns_in_which_all_workers_have_answered() {
        let (orders_in, mut orders) = mpsc::channel(1);
        let told = Cell::new(0);
        // How many of two workers answer in each turn; the last turn is there to see the end of the one before it.
        let control = async {
            let mut heard = Vec::new();
            for answering in [2, 2, 1, 0, 1, 2, 0] {
                let Some(Order::Alive(answer)) = orders.recv().await else {
                    panic!("it asks for nothing else");
                };
                heard.push(told.replace(0));
                for worker in 0..answering {
                    answer.send(worker).expect("it listens");
                }
            }
            heard
        };
        let watch = watch_within(Duration::ZERO, orders_in, 2, || told.set(told.get() + 1));
        tokio::select! {
            () = watch => panic!("it never ends"),
            heard = control => assert_eq!(heard, [0, 1, 1, 0, 0, 0, 1]),
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nothing_is_told_while_the_control_thread_takes_no_orders() {
        let (orders_in, orders) = mpsc::channel(1);
        let watch = watch_within(Duration::ZERO, orders_in, 1, || panic!("nobody has answered"));
        // Many turns.
        tokio::time::timeout(Duration::from_millis(300), watch)
            .await
            .expect_err("it never ends");
        drop(orders);
    }
}
