//! `doctor`: what of this machine stands in a tunnel's way, and what to do about it.
//!
//! Looks at the kernel and the system; with a name or a file also at the configuration, its endpoints and the paths to
//! them, and at the daemon if it runs. Changes nothing, and sends nothing but pings to the endpoints and look-ups of their
//! names.

mod kernel;
mod paths;
mod subject;
mod system;

use std::io::{self, Write as _};

use clap::Args;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::style::Style;
use subject::Subject;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// A tunnel that runs, or its configuration file [default: only this machine]
    #[arg(value_name = "NAME|FILE")]
    subject: Option<String>,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// As it should be.
    Ok,
    /// Works, but slower or less surely than it could.
    Warning,
    /// Does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at, e.g. "io_uring".
    about: String,
    /// What was found.
    text: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(about: &str, text: impl Into<String>) -> Finding {
        Finding {
            level: Level::Ok,
            about: about.into(),
            text: text.into(),
            advice: None,
        }
    }

    fn warning(about: &str, text: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding {
            level: Level::Warning,
            about: about.into(),
            text: text.into(),
            advice: Some(advice.into()),
        }
    }

    fn problem(about: &str, text: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding {
            level: Level::Problem,
            ..Finding::warning(about, text, advice)
        }
    }
}

/// All findings.
#[derive(Serialize)]
struct Report<'a> {
    findings: &'a [Finding],
    warnings: usize,
    problems: usize,
}

pub(super) fn doctor(options: &Options) -> Result<(), Failure> {
    let (subject, mut findings) = Subject::find(options.subject.as_deref());
    findings.extend(kernel::findings(&subject));
    findings.extend(system::findings(&subject));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    findings.extend(runtime.block_on(paths::findings(&subject)));
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let report = Report {
        warnings: count(Level::Warning),
        problems: count(Level::Problem),
        findings: &findings,
    };
    let text = match options.json {
        true => serde_json::to_string(&report).map_err(io::Error::from)? + "\n",
        false => text(&report, Style::of_stdout()),
    };
    io::stdout().write_all(text.as_bytes())?;
    match report.problems {
        0 => Ok(()),
        // All is said.
        _ => Err(Failure::new(Exit::Failure, "")),
    }
}

fn text(report: &Report<'_>, style: Style) -> String {
    let mut out = String::new();
    for finding in report.findings {
        let level = match finding.level {
            Level::Ok => style.interface("ok     "),
            Level::Warning => style.peer("warning"),
            Level::Problem => style.alarm("PROBLEM"),
        };
        out += &format!("{level}  {}: {}\n", style.label(&finding.about), finding.text);
        if let Some(advice) = &finding.advice {
            out += &format!("         -> {advice}\n");
        }
    }
    let plural = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    };
    out += &format!(
        "{}, {}\n",
        plural(report.problems, "problem"),
        plural(report.warnings, "warning")
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines_with_what_to_do_behind_them() {
        let findings = [
            Finding::ok("kernel", "Linux 6.18"),
            Finding::warning("clock", "not synchronised", "start an NTP client"),
            Finding::problem("port", "51820 is taken", "choose another"),
        ];
        let report = Report {
            findings: &findings,
            warnings: 1,
            problems: 1,
        };
        let expected = "\
ok       kernel: Linux 6.18
warning  clock: not synchronised
         -> start an NTP client
PROBLEM  port: 51820 is taken
         -> choose another
1 problem, 1 warning
";
        assert_eq!(text(&report, Style::PLAIN), expected);
        let json = serde_json::to_value(&report).expect("plain values");
        assert_eq!(json["findings"][2]["level"], "problem");
    }
}
