//! The command line of `ringway`.
//!
//! Output goes to standard output, everything else to standard error; the exit codes are those of [`Exit`].
#![forbid(unsafe_code)]

mod background;
mod capture;
mod change;
mod doctor;
mod drops;
pub mod exit;
mod explain;
mod journal;
mod keys;
mod latency;
mod leaktest;
mod log;
mod packet_line;
mod peer;
mod resume;
mod show;
mod signals;
mod stats;
mod status;
mod style;
mod target;
mod top;
mod unblock;
mod units;
pub mod wireguard;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::{self, Config, LoadError, Loaded, Located};
use crate::control::Facts;
use exit::{Exit, Failure};

/// An encrypted tunnel for IP packets, as fast as the machine can copy them
#[derive(Debug, Parser)]
#[command(name = "ringway", version, after_help = exit::HELP, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    log: log::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a tunnel in the foreground until SIGINT or SIGTERM
    ///
    /// Creates the interface, sets its addresses, MTU and routes, and removes all of it when it ends. Needs root or
    /// CAP_NET_ADMIN.
    Run {
        /// The configuration: a TOML file, or one of wg-quick's (*.conf)
        config: PathBuf,
    },
    /// Run a tunnel in the background
    ///
    /// Comes back once packets can pass, or with what kept the tunnel from coming up. Not for tunnels of a service manager:
    /// systemctl start ringway@NAME.
    Up(background::Up),
    /// End a tunnel, and come back once all is put back as it was
    ///
    /// Also removes what a daemon that was killed has left.
    Down(background::Down),
    /// Check a configuration and the key files that it names, without running it
    ///
    /// Reports everything that is wrong, one line each: FILE:LINE: KEY = VALUE: what would be right.
    Check {
        /// The configuration: a TOML file, or one of wg-quick's (*.conf)
        config: PathBuf,
    },
    /// Write a configuration of wg-quick's as TOML to standard output, with the keys that are in it
    ///
    /// For example: (umask 077; ringway convert wg0.conf > wg0.toml)
    Convert {
        /// The configuration
        config: PathBuf,
    },
    /// Make a private key and write it to standard output
    ///
    /// For example: (umask 077; ringway genkey > rw0.key)
    Genkey,
    /// Read a private key from standard input and write its public key to standard output
    ///
    /// For example: ringway pubkey < rw0.key
    Pubkey,
    /// Make a preshared key and write it to standard output
    Genpsk,
    /// Lift the kill switch that a daemon left which was killed, or whose configuration says lockdown_keep
    ///
    /// Without a name, every kill switch that holds. That of a running daemon is lifted too, until it is reloaded or started
    /// again.
    Unblock {
        /// The interface
        name: Option<String>,
    },
    /// Show whether anything leaves beside a tunnel
    ///
    /// Sends probes (DNS to the machine's resolvers, UDP, TCP, ICMP, over IPv4 and IPv6) and watches all interfaces but the
    /// tunnel's and the loopback. Needs root or CAP_NET_RAW. Ends with exit code 6 when something left that is neither the
    /// tunnel's own nor allowed.
    Leaktest(leaktest::Options),
    /// Remove what a daemon that was killed has left: routing rules, packet filters, name servers, sockets
    ///
    /// The next start of the tunnel does so too. Waits for the interface of a daemon that has just died, and runs the commands
    /// that it has not come to (post_down). Nothing is done while the tunnel runs. A kill switch holds: see "ringway unblock".
    /// Needs root or CAP_NET_ADMIN; root runs no commands of a file that others can have written, and removes no socket at a place
    /// that they can have chosen.
    Cleanup {
        /// The tunnel, or with a "/" the path of its file
        name: String,
    },
    /// Show running tunnels: peers, workers, offloads, drops
    Status(status::Options),
    /// Have the program that is installed by now go on with a running tunnel, without a gap
    ///
    /// Interface, sessions and sockets stay, and so do the connections through the tunnel; packets wait in the kernel, and what
    /// finds no room there is counted. The process stays too, so service managers need not know. A program that is broken, or
    /// of a version that does not know how to go on, is refused, and nothing happens. One that fails later ends the tunnel, in
    /// good order. Only root and the daemon's own user may.
    Upgrade(change::Upgrade),
    /// Read a running tunnel's configuration file again and carry out what changed in it
    ///
    /// The same as SIGHUP. The whole file is checked first; what is wrong in it changes nothing. Sessions with peers that did
    /// not change go on.
    Reload(change::Reload),
    /// Make another file what a running tunnel does
    ///
    /// With --confirm it is undone after that time unless "ringway confirm" comes before, so that a change which cuts the
    /// way to the machine does not last.
    Apply(change::Apply),
    /// Keep what "ringway apply --confirm" changed
    Confirm(change::Confirm),
    /// Add, change, remove and list the peers of a running tunnel
    #[command(subcommand)]
    Peer(peer::Command),
    /// Change a running tunnel's interface
    #[command(subcommand)]
    Set(change::Set),
    /// Write what a running tunnel does into its configuration file
    ///
    /// Only what differs is written; comments and order stay.
    Save(change::Save),
    /// Show how long packets take inside a running tunnel, by stage
    Latency(latency::Options),
    /// Show what running tunnels have counted since they started or since the last reset
    Stats(stats::Options),
    /// Look for what stands in a tunnel's way: kernel, system, configuration, paths to the peers
    ///
    /// Ends with 1 if there is a problem; warnings are none.
    Doctor(doctor::Options),
    /// Show what running tunnels do at this moment: speeds, drops, round trips, latency
    Top(top::Options),
    /// Show which packets were dropped, where, why, and what to do about it
    Drops(drops::Options),
    /// Capture packets inside a tunnel: a line each, or pcapng for tcpdump and Wireshark
    #[command(after_help = capture::HELP)]
    Capture(capture::Options),
    /// Tell whether a packet would pass, by which rule, to which peer and lane, and if not, why
    ///
    /// Asks the kernel for its route and the tunnel's workers for theirs; no packet is sent. What firewalls do is not
    /// asked. For example: ringway explain 10.99.0.1 10.99.0.2 tcp 443
    Explain(explain::Options),
}

/// The command line as clap knows it, for man pages and completions.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// The whole program: reads the command line, carries it out, and gives its exit code. `run` runs a tunnel until it is
/// ended from outside, `resume` one that another program has left under a descriptor, `cleanup` removes what is left of one,
/// by its name and the file that describes it, and says what that was; when the operating system denied something, the source
/// chain of an error should have the `io::Error` that says so.
pub fn main<E: Error + 'static>(
    run: impl FnOnce(Config, &Path) -> Result<(), E>,
    resume: impl FnOnce(i32) -> Result<(), E>,
    cleanup: impl FnOnce(&str, Option<(&Path, &Loaded)>, &mut dyn FnMut(String)) -> Result<(), E>,
) -> ExitCode {
    // Prints help and usage errors by itself and ends with 0 or 2.
    let parsed = resume::split(std::env::args_os());
    let parsed = parsed.map(|(words, resumed)| (Arguments::parse_from(words), resumed));
    let done = parsed.and_then(|(arguments, resumed)| {
        arguments.log.begin();
        match (arguments.command, resumed) {
            (Command::Run { .. }, Some(number)) => resume(number).map_err(|error| Failure::of(&error)),
            (command, _) => carry_out(command, run, cleanup),
        }
    });
    match done {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            journal::last_word("ringway", &failure.message);
            failure.exit.into()
        }
    }
}

/// Whether these words are a command line of this program.
///
/// # Errors
/// What is wrong with them, in one line.
pub fn understands(words: Vec<OsString>) -> Result<(), String> {
    let parsed = Arguments::try_parse_from(words);
    parsed.map(drop).map_err(|error| in_one_line(&error))
}

fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// Begins the log of a guard of the tunnel `name`, as that of a daemon without options.
pub fn begin_guards_log(name: &str) {
    log::Options::default().begin();
    journal::name_tunnel(name);
}

/// Says in the log that packets can pass.
pub fn report_up(facts: &Facts) {
    // One that goes on here after an upgrade has not been named yet.
    journal::name_tunnel(&facts.name);
    tracing::info!(name = facts.name, port = facts.listen_port, mtu = facts.mtu, "up");
}

fn carry_out<E: Error + 'static>(
    command: Command,
    run: impl FnOnce(Config, &Path) -> Result<(), E>,
    cleanup: impl FnOnce(&str, Option<(&Path, &Loaded)>, &mut dyn FnMut(String)) -> Result<(), E>,
) -> Result<(), Failure> {
    match command {
        Command::Run { config: file } => {
            let Loaded { config, warnings, .. } = load_to_run(&file)?;
            journal::name_tunnel(&config.interface.name);
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            run(config, &file).map_err(|error| Failure::of(&error))
        }
        Command::Up(options) => background::up(&options),
        Command::Down(options) => background::down(&options, cleanup),
        Command::Check { config } => check(&config),
        Command::Convert { config } => convert(&config),
        Command::Genkey => keys::genkey(),
        Command::Pubkey => keys::pubkey(),
        Command::Genpsk => keys::genpsk(),
        Command::Unblock { name } => unblock::unblock(name.as_deref()),
        Command::Leaktest(options) => leaktest::leaktest(&options),
        Command::Cleanup { name } => background::clean_up(&name, cleanup),
        Command::Status(options) => status::status(&options),
        Command::Latency(options) => latency::latency(&options),
        Command::Upgrade(options) => change::upgrade(&options),
        Command::Reload(options) => change::reload(&options),
        Command::Apply(options) => change::apply(&options),
        Command::Confirm(options) => change::confirm(&options),
        Command::Peer(command) => peer::peer(&command),
        Command::Set(command) => change::set(&command),
        Command::Save(options) => change::save(&options),
        Command::Stats(options) => stats::stats(&options),
        Command::Doctor(options) => doctor::doctor(&options),
        Command::Top(options) => top::top(&options),
        Command::Drops(options) => drops::drops(&options),
        Command::Capture(options) => capture::capture(&options),
        Command::Explain(options) => explain::explain(&options),
    }
}

fn check(path: &Path) -> Result<(), Failure> {
    let Loaded { config, warnings, .. } = load(path)?;
    if !warnings.is_empty() {
        let shown = Located {
            path,
            problems: &warnings,
        }
        .to_string();
        for line in shown.lines() {
            writeln!(io::stderr(), "ringway: warning: {line}")?;
        }
    }
    let peers = match config.peers.len() {
        1 => "1 peer".to_owned(),
        count => format!("{count} peers"),
    };
    writeln!(
        io::stdout(),
        "{}: ok: interface {}, {peers}",
        path.display(),
        config.interface.name
    )?;
    Ok(())
}

fn convert(path: &Path) -> Result<(), Failure> {
    let Loaded { config, .. } = load(path)?;
    let warn = |text: &str| writeln!(io::stderr(), "ringway: warning: {}: {text}", path.display());
    if config.interface.save.is_some() {
        warn("SaveConfig has no counterpart in TOML; changes at run time are not written back")?;
    }
    if config.interface.private_key.is_none() && config::render::key_file(&config.interface).is_none() {
        warn("there is no PrivateKey, and TOML needs a key: name its file where the output says so")?;
    }
    io::stdout().write_all(config::render::to_toml(&config).as_bytes())?;
    Ok(())
}

fn load(path: &Path) -> Result<Loaded, Failure> {
    config::load(path).map_err(Failure::from)
}

/// As [`load`], for who does what the file says, its commands too.
fn load_to_run(path: &Path) -> Result<Loaded, Failure> {
    config::load_to_run(path).map_err(Failure::from)
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Failure {
        let exit = match &error {
            LoadError::Read { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => Exit::Permission,
            LoadError::Read { .. } | LoadError::Invalid { .. } | LoadError::Commands { .. } => Exit::Invalid,
        };
        Failure::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
