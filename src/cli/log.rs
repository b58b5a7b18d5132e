//! Log lines, to standard error, or with fields to the journal behind it.

use std::io::{self, IsTerminal as _};

use clap::{Args, ValueEnum};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, registry};

use super::journal::{self, Journal};
use super::style;

/// Log filter directives for development, e.g. "ringway::proto=trace,info".
const FILTER_VARIABLE: &str = "RINGWAY_LOG";

#[derive(Debug, Default, Args)]
pub(super) struct Options {
    /// Log more: debug messages; twice: everything short of single packets
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "log_level")]
    verbose: u8,
    /// Log messages of this level and above [default: info]
    #[arg(long, global = true, value_name = "LEVEL", value_enum)]
    log_level: Option<Level>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Options {
    /// Starts logging for the rest of the process's life.
    pub(super) fn begin(&self) {
        let directives = std::env::var(FILTER_VARIABLE).ok();
        begin("ringway", self.filter(directives.as_deref()), self.is_detailed());
    }

    fn filter(&self, directives: Option<&str>) -> EnvFilter {
        let level = match (self.log_level, self.verbose) {
            (Some(Level::Error), _) => "error",
            (Some(Level::Warn), _) => "warn",
            (None, 0) if directives.is_some_and(|directives| !directives.is_empty()) => {
                return EnvFilter::new(directives.unwrap_or_default());
            }
            (Some(Level::Info), _) | (None, 0) => "info",
            (Some(Level::Debug), _) | (None, 1) => "debug",
            (Some(Level::Trace), _) | (None, _) => "trace",
        };
        // Libraries log for their own developers; their warnings are of interest, no more.
        match level {
            "error" => EnvFilter::new("error"),
            level => EnvFilter::new(format!("warn,ringway={level}")),
        }
    }

    fn is_detailed(&self) -> bool {
        self.verbose > 0 || matches!(self.log_level, Some(Level::Debug | Level::Trace))
    }
}

/// Starts logging what passes `filter` for the rest of the process's life, under the name `program`; `with_targets` names
/// the module with each line of text.
pub(super) fn begin(program: &'static str, filter: EnvFilter, with_targets: bool) {
    let log = registry().with(filter);
    let text = fmt::layer()
        .with_writer(io::stderr)
        .with_target(with_targets)
        .with_ansi(style::wants_colour(io::stderr().is_terminal()));
    let in_journal = journal::is_stderr();
    let journal = in_journal.then(|| Journal::open(program).ok()).flatten();
    // An error means that somebody, in tests, began before us.
    let _ = match journal {
        Some(journal) => log.with(journal).try_init(),
        // The journal has its own clock.
        None if in_journal => log.with(text.without_time()).try_init(),
        None => log.with(text).try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_before_the_environment_and_that_before_the_default() {
        let filter = |verbose, log_level, directives| Options { verbose, log_level }.filter(directives).to_string();
        let sorted = |text: &str| {
            let mut parts: Vec<String> = text.split(',').map(str::to_owned).collect();
            parts.sort();
            parts
        };
        let cases = [
            (0, None, None, "warn,ringway=info"),
            (0, None, Some(""), "warn,ringway=info"),
            (0, None, Some("ringway::proto=trace"), "ringway::proto=trace"),
            (1, None, Some("error"), "warn,ringway=debug"),
            (3, None, None, "warn,ringway=trace"),
            (0, Some(Level::Error), Some("debug"), "error"),
            (0, Some(Level::Info), Some("debug"), "warn,ringway=info"),
        ];
        for (verbose, level, directives, expected) in cases {
            assert_eq!(sorted(&filter(verbose, level, directives)), sorted(expected));
        }
    }
}
