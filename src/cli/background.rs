//! `up` and `down`: a tunnel in the background, for who has no service manager.
//!
//! `up` starts `ringway run` with its messages in a file, and waits until the daemon answers, which it does once packets can
//! pass. `down` asks whatever daemon serves the tunnel's control socket to end, also one that a service manager has
//! started (for which that is an end in good order), and waits until its process is gone: then all is put back.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use clap::Args;

use super::exit::{Exit, Failure};
use super::{load, load_to_run};
use crate::config::files::with_suffix;
use crate::config::values::check_interface_name;
use crate::config::{Loaded, default_control_socket};
use crate::control::api::Request;
use crate::control::client::{Client, ClientError};
use crate::control::runtime::{judge_place, open_log};

/// Where configurations are found by their names.
const CONFIG_DIR: &str = "/etc/ringway";
/// Between two looks at a daemon that comes up or goes down.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(super) struct Up {
    /// The tunnel: /etc/ringway/NAME.toml, else /etc/ringway/NAME.conf; or with a "/" the path of such a file
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct Down {
    /// The tunnel, or with a "/" the path of its file
    name: String,
}

pub(super) fn up(options: &Up) -> Result<(), Failure> {
    let file = find(&options.name)?;
    // What is wrong with the file is told here, and not in the daemon's log.
    let interface = load_to_run(&file)?.config.interface;
    let (name, socket) = (interface.name, interface.control_socket);
    match Client::connect(&socket) {
        Err(ClientError::NoDaemon { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(Failure::new(Exit::Failure, format!("{name} is up already"))),
    }
    let log = with_suffix(&socket, ".log");
    let failed = |path: &Path, error: io::Error| {
        let Failure { exit, message } = Failure::of(&error);
        Failure::new(exit, format!("{}: {message}", path.display()))
    };
    judge_place(&log).map_err(|error| failed(&log, error))?;
    if let Some(folder) = log.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
        made.map_err(|error| failed(folder, error))?;
    }
    let messages = open_log(File::options().write(true).mode(0o600), &log).map_err(|error| failed(&log, error))?;
    messages.set_len(0).map_err(|error| failed(&log, error))?;
    let mut daemon = Command::new(std::env::current_exe()?)
        .arg("run")
        .arg(std::path::absolute(&file)?)
        .stdin(Stdio::null())
        .stdout(messages.try_clone()?)
        .stderr(messages)
        // Ctrl-C and the end of a terminal are not for the daemon.
        .process_group(0)
        .spawn()?;
    wait_until_ready(&mut daemon, &socket, &log)?;
    writeln!(io::stdout(), "{name} is up; its messages are in {}", log.display())?;
    Ok(())
}

/// Waits until `daemon` serves `socket`; when it ends instead, the failure is its own.
fn wait_until_ready(daemon: &mut Child, socket: &Path, log: &Path) -> Result<(), Failure> {
    loop {
        if let Some(status) = daemon.try_wait()? {
            let exit = match status.code() {
                Some(code) if code == Exit::Invalid as i32 => Exit::Invalid,
                Some(code) if code == Exit::Permission as i32 => Exit::Permission,
                _ => Exit::Failure,
            };
            let messages = fs::read_to_string(log).unwrap_or_default();
            // Its last word is "ringway: " and why.
            let last = messages.rfind("ringway: ").unwrap_or(0);
            let text = messages[last..].trim_end();
            let message = match text.strip_prefix("ringway: ").unwrap_or(text) {
                "" => format!("the daemon ended: {status}"),
                told => told.to_owned(),
            };
            return Err(Failure::new(exit, message));
        }
        // It takes connections before it is ready, and answers then.
        let ready = Client::connect(socket).and_then(|mut client| client.status());
        if ready.is_ok_and(|status| status.pid == daemon.id()) {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
}

/// `cleanup`: removes what a daemon that was killed has left of a tunnel, and tells what that was.
pub(super) fn down<E: Error + 'static>(
    options: &Down,
    cleanup: impl FnOnce(&str, Option<(&Path, &Loaded)>, &mut dyn FnMut(String)) -> Result<(), E>,
) -> Result<(), Failure> {
    let known = Known::find(&options.name)?;
    let name = &known.name;
    let mut client = match Client::connect(&known.control_socket()) {
        Ok(client) => client,
        Err(error @ ClientError::NoDaemon { .. }) => {
            return match known.clean_up(cleanup, &format!("{name} was killed; removed"))? {
                0 => Err(error.into()),
                _ => Ok(()),
            };
        }
        Err(error) => return Err(error.into()),
    };
    let pid = client.status()?.pid;
    let started = start_time(pid);
    client.change(&Request::Stop {})?;
    drop(client);
    while started.is_some() && start_time(pid) == started {
        thread::sleep(PAUSE);
    }
    writeln!(io::stdout(), "{name} is down")?;
    Ok(())
}

/// When the process `pid` started, in the kernel's ticks (proc_pid_stat(5), field 22); `None` once it has ended, whether
/// its parent has taken note or not.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may hold anything, a parenthesis too.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// The file that `name` means.
fn find(name: &str) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        return Ok(name.into());
    }
    check_interface_name(name).map_err(|error| Failure::new(Exit::Usage, format!("{name:?}: {error}")))?;
    let files = ["toml", "conf"].map(|extension| Path::new(CONFIG_DIR).join(format!("{name}.{extension}")));
    let found = files.iter().find(|file| file.exists()).cloned();
    found.ok_or_else(|| {
        let [toml, conf] = files.map(|file| file.display().to_string());
        Failure::new(Exit::Invalid, format!("there is neither {toml} nor {conf}"))
    })
}

/// `cleanup`: removes what a daemon that was killed has left of a tunnel, and tells what that was.
pub(super) fn clean_up<E: Error + 'static>(
    name: &str,
    cleanup: impl FnOnce(&str, Option<(&Path, &Loaded)>, &mut dyn FnMut(String)) -> Result<(), E>,
) -> Result<(), Failure> {
    let known = Known::find(name)?;
    if known.clean_up(cleanup, "removed")? == 0 {
        writeln!(io::stdout(), "nothing is left of {}", known.name)?;
    }
    Ok(())
}

/// What is known of a tunnel. The file may have gone or become wrong since it was read.
struct Known {
    name: String,
    file: Option<(PathBuf, Loaded)>,
}

impl Known {
    /// Of the tunnel that `name` means.
    fn find(name: &str) -> Result<Known, Failure> {
        match find(name).and_then(|file| Ok((load(&file)?, file))) {
            Ok((loaded, file)) => Ok(Known {
                name: loaded.config.interface.name.clone(),
                file: Some((file, loaded)),
            }),
            Err(error) if name.contains('/') || error.exit == Exit::Usage => Err(error),
            Err(_) => Ok(Known {
                name: name.to_owned(),
                file: None,
            }),
        }
    }

    fn control_socket(&self) -> PathBuf {
        match &self.file {
            Some((_, loaded)) => loaded.config.interface.control_socket.clone(),
            None => default_control_socket(&self.name),
        }
    }

    /// Removes what is left of it; writes each behind `words`, and gives their number.
    fn clean_up<E: Error + 'static>(
        &self,
        cleanup: impl FnOnce(&str, Option<(&Path, &Loaded)>, &mut dyn FnMut(String)) -> Result<(), E>,
        words: &str,
    ) -> Result<usize, Failure> {
        let (mut count, mut written) = (0, Ok(()));
        let from = self.file.as_ref().map(|(file, loaded)| (file.as_path(), loaded));
        let cleaned = cleanup(&self.name, from, &mut |what| {
            count += 1;
            let line = writeln!(io::stdout(), "{words} {what}");
            // The first failure is told, and keeps nothing from being removed.
            written = std::mem::replace(&mut written, Ok(())).and(line);
        });
        cleaned.map_err(|error| Failure::of(&error))?;
        written?;
        Ok(count)
    }
}
