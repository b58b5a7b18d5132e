//! `upgrade`, `reload`, `apply`, `confirm`, `set`, `save`: changing a tunnel that runs.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::exit::Failure;
use super::{load, target};
use crate::config::Loaded;
use crate::control::api::{ChangeReport, Request};
use crate::control::client::Client;

/// The help of a `NAME` argument that means one tunnel.
pub(super) const HELP: &str =
    "The interface, or with a \"/\" the path of its control socket [default: the one that runs]";

#[derive(Debug, Args)]
pub(super) struct Reload {
    #[arg(value_name = "NAME", help = HELP)]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Upgrade {
    #[arg(value_name = "NAME", help = HELP)]
    name: Option<String>,
    /// The program to go on with [default: the one that is where the running one was started from]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// The configuration: a TOML file, or one of wg-quick's (*.conf)
    file: PathBuf,
    #[arg(
        value_name = "NAME",
        help = "The interface, or with a \"/\" the path of its control socket [default: FILE's]"
    )]
    name: Option<String>,
    /// Undo it after this time (60s, 5m) unless "ringway confirm" comes before
    #[arg(long, value_name = "TIME", value_parser = time)]
    confirm: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Confirm {
    #[arg(value_name = "NAME", help = HELP)]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Save {
    #[arg(value_name = "NAME", help = HELP)]
    name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Set {
    /// Set the MTU: "auto" (what the routes to the endpoints allow), or bytes
    Mtu {
        /// "auto", or bytes
        mtu: String,
        #[arg(value_name = "NAME", help = HELP)]
        name: Option<String>,
    },
}

pub(super) fn upgrade(options: &Upgrade) -> Result<(), Failure> {
    let binary = options.binary.as_ref().map(std::path::absolute).transpose()?;
    told(&target::connect_one(options.name.as_deref())?.upgrade(binary)?)
}

pub(super) fn reload(options: &Reload) -> Result<(), Failure> {
    change(options.name.as_deref(), &Request::Reload {})
}

pub(super) fn apply(options: &Apply) -> Result<(), Failure> {
    let request = Request::Apply {
        path: std::path::absolute(&options.file)?,
        confirm_s: options.confirm.map(|time| time.as_secs()),
    };
    match &options.name {
        Some(name) => change(Some(name), &request),
        None => {
            // The file says which tunnel it is for.
            let Loaded { config, .. } = load(&options.file)?;
            told(&Client::connect(&config.interface.control_socket)?.change(&request)?)
        }
    }
}

pub(super) fn confirm(options: &Confirm) -> Result<(), Failure> {
    change(options.name.as_deref(), &Request::Confirm {})
}

pub(super) fn set(command: &Set) -> Result<(), Failure> {
    let Set::Mtu { mtu, name } = command;
    change(name.as_deref(), &Request::SetMtu { mtu: mtu.clone() })
}

pub(super) fn save(options: &Save) -> Result<(), Failure> {
    change(options.name.as_deref(), &Request::Save {})
}

/// Has one daemon change something, and tells what changed.
pub(super) fn change(name: Option<&str>, request: &Request) -> Result<(), Failure> {
    told(&target::connect_one(name)?.change(request)?)
}

fn told(report: &ChangeReport) -> Result<(), Failure> {
    for warning in &report.warnings {
        writeln!(io::stderr(), "ringway: warning: {warning}")?;
    }
    let mut out = io::stdout().lock();
    for change in &report.changes {
        writeln!(out, "{change}")?;
    }
    if report.changes.is_empty() {
        writeln!(out, "nothing had to change")?;
    }
    if let Some(seconds) = report.confirm_within_s {
        writeln!(out, "undone in {seconds} s, unless you run: ringway confirm")?;
    }
    Ok(())
}

/// Reads `60s`, `5m` or `60`.
fn time(text: &str) -> Result<Duration, String> {
    let (number, unit_s) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let seconds = number.parse::<u32>().ok().filter(|number| *number > 0);
    seconds
        .map(|number| Duration::from_secs(u64::from(number) * unit_s))
        .ok_or_else(|| "write seconds or minutes, for example 60s or 5m".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("60s", 60), ("5m", 300), ("7", 7)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "-1", "1h", "s", "1.5m", "99999999999"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
