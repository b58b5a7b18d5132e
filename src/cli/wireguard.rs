//! The command line of `ringway-wg`, which is that of wireguard-go and a few options more.

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};
use tracing_subscriber::EnvFilter;

use super::exit::{Exit, Failure};
use super::{journal, log, resume};
use crate::config::{Crypto, Io, Suite, WireGuard, Workers};
use crate::control::Facts;
use crate::sys::daemon::{self, Output};

/// Create a WireGuard interface, to be configured by wg(8) and wg-quick(8)
///
/// Goes to the background once the interface and /var/run/wireguard/INTERFACE.sock are there. Ends when either is
/// removed, or on SIGINT or SIGTERM.
///
/// With wg-quick: WG_QUICK_USERSPACE_IMPLEMENTATION=ringway-wg wg-quick up wg0
#[derive(Debug, Parser)]
#[command(name = "ringway-wg", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// The protocol to speak with peers: auto tries ringway's own first, then WireGuard's
    #[arg(long, env = "RINGWAY_SUITE", default_value_t, value_name = "auto|native|wireguard")]
    suite: Suite,
    /// How many workers to run: auto is one per core
    #[arg(long, env = "RINGWAY_WORKERS", default_value = "auto", value_name = "auto|N", value_parser = parse_workers)]
    workers: Workers,
    /// How to talk to the kernel: auto prefers io_uring
    #[arg(long, env = "RINGWAY_IO", default_value_t, value_name = "auto|uring|syscall")]
    io: Io,
    /// Which encryption code to use: auto takes the fastest that passes its self-test
    #[arg(long, env = "RINGWAY_CRYPTO", default_value_t, value_name = "NAME")]
    crypto: Crypto,
    /// The interface to create
    interface: String,
}

const AFTER_HELP: &str = "\
Environment:
  LOG_LEVEL                verbose, error or silent [default: errors and warnings, until in the background unless to a journal]
  WG_PROCESS_FOREGROUND=1  as --foreground

Exit codes:
  0  it runs in the background; in the foreground: done
  1  something failed
  2  the command line or the environment is wrong
  5  permission denied";

/// Variables by which wireguard-go's own daemon hands descriptors down, and some service managers too.
const UNSUPPORTED: [&str; 2] = ["WG_TUN_FD", "WG_UAPI_FD"];

/// The command line as clap knows it, for man pages and completions.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// The whole program: reads the command line, goes to the background, and has `run` run the tunnel.
pub fn main<E: Error + 'static>(
    run: impl FnOnce(&WireGuard, Option<i32>, &mut dyn FnMut(&Facts) -> io::Result<()>) -> Result<(), E>,
) -> ExitCode {
    let parsed = resume::split(std::env::args_os());
    match parsed.and_then(|(words, resumed)| carry_out(Arguments::parse_from(words), resumed, run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            journal::last_word("ringway-wg", &failure.message);
            failure.exit.into()
        }
    }
}

/// Begins the log of a guard of the tunnel `name`.
pub fn begin_guards_log(name: &str) {
    begin_log(LogLevel::of_environment(), name);
}

/// What these words, a whole command line, ask for.
///
/// # Errors
/// What is wrong with them, in one line.
pub fn options_of(words: Vec<OsString>) -> Result<WireGuard, String> {
    let parsed = Arguments::try_parse_from(words);
    parsed
        .map(Arguments::options)
        .map_err(|error| super::in_one_line(&error))
}

impl Arguments {
    fn options(self) -> WireGuard {
        WireGuard {
            name: self.interface,
            suite: self.suite,
            workers: self.workers,
            io: self.io,
            crypto: self.crypto,
        }
    }
}

fn carry_out<E: Error + 'static>(
    arguments: Arguments,
    resumed: Option<i32>,
    run: impl FnOnce(&WireGuard, Option<i32>, &mut dyn FnMut(&Facts) -> io::Result<()>) -> Result<(), E>,
) -> Result<(), Failure> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if let Some(name) = UNSUPPORTED.into_iter().find(|name| !variable(name).is_empty()) {
        let message = format!("{name} is set, but this program makes its own interface and socket; unset it");
        return Err(Failure::new(Exit::Usage, message));
    }
    let foreground = arguments.foreground || variable("WG_PROCESS_FOREGROUND") == "1";
    let level = LogLevel::of_environment();
    daemon::make_new_files_private();
    // Before anything that may start a thread.
    let mut detached = match foreground || resumed.is_some() {
        true => None,
        false => Some(daemon::detach()?),
    };
    begin_log(level, &arguments.interface);
    let options = arguments.options();
    let mut ready = |facts: &Facts| {
        tracing::info!(name = facts.name, port = facts.listen_port, "ready");
        detached
            .take()
            .map_or(Ok(()), |detached| detached.ready(level.kept(journal::is_stderr())))
    };
    run(&options, resumed, &mut ready).map_err(|error| Failure::of(&error))
}

fn begin_log(level: LogLevel, name: &str) {
    log::begin("ringway-wg", EnvFilter::new(level.filter()), level == LogLevel::Verbose);
    journal::name_tunnel(name);
}

/// What wireguard-go's LOG_LEVEL asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LogLevel {
    Unset,
    Verbose,
    Error,
    Silent,
}

impl LogLevel {
    fn of_environment() -> LogLevel {
        LogLevel::named(&std::env::var("LOG_LEVEL").unwrap_or_default())
    }

    /// Unknown levels are errors, as there.
    fn named(name: &str) -> LogLevel {
        match name {
            "" => LogLevel::Unset,
            "verbose" | "debug" => LogLevel::Verbose,
            "silent" => LogLevel::Silent,
            _ => LogLevel::Error,
        }
    }

    fn filter(self) -> &'static str {
        match self {
            LogLevel::Unset => "warn",
            LogLevel::Verbose => "warn,ringway=debug",
            LogLevel::Error => "error",
            LogLevel::Silent => "off",
        }
    }

    /// Where the log goes on in the background. `in_journal`: standard error leads to the journal, which it has to for as long as
    /// the process lives: that is how the program of an upgrade and a last word know where to go.
    fn kept(self, in_journal: bool) -> Output {
        match self {
            LogLevel::Verbose | LogLevel::Error => Output::All,
            LogLevel::Unset if in_journal => Output::Errors,
            LogLevel::Unset | LogLevel::Silent => Output::Nothing,
        }
    }
}

fn parse_workers(text: &str) -> Result<Workers, String> {
    match text {
        "auto" => Ok(Workers::Auto),
        _ => text
            .parse()
            .ok()
            .filter(|count| *count > 0)
            .map(Workers::Count)
            .ok_or_else(|| "the workers are \"auto\" (one per core), or 1 to 255".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_command_line_is_that_of_wireguard_go() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["ringway-wg"], words].concat());
        let arguments = parse(&["wg0"]).expect("a name is enough");
        assert_eq!((arguments.interface.as_str(), arguments.foreground), ("wg0", false));
        for flag in ["-f", "--foreground"] {
            assert!(parse(&[flag, "wg0"]).expect("a flag and a name").foreground);
        }
        assert!(parse(&[]).is_err());
        assert!(parse(&["wg0", "wg1"]).is_err());
    }

    #[test]
    fn the_number_of_workers_fits_a_lane() {
        assert_eq!(parse_workers("auto"), Ok(Workers::Auto));
        assert_eq!(parse_workers("255"), Ok(Workers::Count(255)));
        for wrong in ["0", "256", "-1", "", "two"] {
            assert!(parse_workers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn log_levels_are_those_of_wireguard_go() {
        let cases = [
            ("", LogLevel::Unset, [Output::Nothing, Output::Errors]),
            ("verbose", LogLevel::Verbose, [Output::All; 2]),
            ("debug", LogLevel::Verbose, [Output::All; 2]),
            ("error", LogLevel::Error, [Output::All; 2]),
            ("what", LogLevel::Error, [Output::All; 2]),
            ("silent", LogLevel::Silent, [Output::Nothing; 2]),
        ];
        for (name, level, kept) in cases {
            assert_eq!(LogLevel::named(name), level);
            assert_eq!([false, true].map(|in_journal| level.kept(in_journal)), kept, "{name}");
        }
    }
}
