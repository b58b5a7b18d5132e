//! `latency`: how long packets take, by stage.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;

use super::exit::{Exit, Failure};
use super::style::Style;
use super::{target, units};
use crate::control::api::{LatencyReport, StageReport};
use crate::stats::hlog::{EncodedHistogram, HistogramLog};
use crate::stats::latency::{Stage, StageHistograms};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[arg(value_name = "NAME", help = target::HELP)]
    name: Option<String>,
    /// Write one JSON object, whole histograms included
    #[arg(long)]
    json: bool,
    /// Write the histograms to FILE too, as a log that HdrHistogram's tools read
    #[arg(long, value_name = "FILE")]
    hlog: Option<PathBuf>,
    /// Begin a new interval afterwards
    #[arg(long)]
    reset: bool,
}

pub(super) fn latency(options: &Options) -> Result<(), Failure> {
    let mut client = target::connect_one(options.name.as_deref())?;
    // Before anything is reset: what can't be written must not be lost.
    let log = match &options.hlog {
        Some(path) => Some((path, File::create(path).map_err(|error| in_file(path, &error))?)),
        None => None,
    };
    let report = client.latency(options.reset)?;
    if let Some((path, file)) = log {
        write_log(&report, file).map_err(|error| in_file(path, &error))?;
    }
    let text = if options.json {
        serde_json::to_string(&report).map_err(io::Error::from)? + "\n"
    } else {
        table(&report, Style::of_stdout())
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn in_file(path: &Path, error: &io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::PermissionDenied {
        Exit::Permission
    } else {
        Exit::Failure
    };
    Failure::new(exit, format!("{}: {error}", path.display()))
}

/// One interval, one line per stage. Round trips of all peers are one stage there.
fn write_log(report: &LatencyReport, file: File) -> io::Result<()> {
    let mut histograms = StageHistograms::new();
    for entry in &report.stages {
        // A stage that a newer daemon has is not this program's to log.
        let Some(stage) = Stage::ALL.into_iter().find(|stage| stage.name() == entry.name) else {
            continue;
        };
        let encoded = EncodedHistogram {
            stage,
            below: 0,
            above: 0,
            values: entry.histogram.clone(),
        };
        let mut decoded = encoded.decode().map_err(io::Error::other)?;
        histograms.stage_mut(stage).absorb(&mut decoded);
    }
    let since = Duration::from_millis(report.since_unix_ms);
    let length = Duration::from_millis(report.until_unix_ms).saturating_sub(since);
    let mut log = HistogramLog::begin(BufWriter::new(file), UNIX_EPOCH + since)?;
    log.interval(UNIX_EPOCH + since, length, &histograms)?;
    log.into_inner().flush()
}

/// A row per stage, numbers right-aligned.
fn table(report: &LatencyReport, style: Style) -> String {
    let seconds = report.until_unix_ms.saturating_sub(report.since_unix_ms) as f64 / 1e3;
    let mut rows = vec![["stage", "count", "mean", "p50", "p90", "p99", "p99.9", "max"].map(str::to_owned)];
    rows.extend(report.stages.iter().map(row));
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = format!(
        "{}: {}, the last {seconds:.1} s\n",
        style.interface("interface"),
        report.name
    );
    for (i, row) in rows.iter().enumerate() {
        let [stage, numbers @ ..] = row;
        let mut line = format!("  {stage:<width$}", width = widths[0]);
        for (cell, width) in numbers.iter().zip(&widths[1..]) {
            line += &format!("  {cell:>width$}");
        }
        text += &if i == 0 { style.label(line).to_string() } else { line };
        text.push('\n');
    }
    text
}

fn row(entry: &StageReport) -> [String; 8] {
    let name = match &entry.peer {
        Some(peer) => format!("{} {peer}", entry.name),
        None => entry.name.clone(),
    };
    let count = units::count(entry.count);
    let values = [entry.p50, entry.p90, entry.p99, entry.p99_9, entry.max].map(|value| value as f64);
    if entry.count == 0 {
        let [a, b, c, d, e, f] = [(); 6].map(|()| "-".to_owned());
        return [name, count, a, b, c, d, e, f];
    }
    let shown = |value: f64, decimals: usize| match entry.unit.as_str() {
        "ns" => units::nanoseconds(value),
        _ => format!("{value:.decimals$}"),
    };
    let [p50, p90, p99, p99_9, max] = values.map(|value| shown(value, 0));
    [name, count, shown(entry.mean, 1), p50, p90, p99, p99_9, max]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, unit: &str, count: u64, scale: u64) -> StageReport {
        StageReport {
            name: name.into(),
            peer: (name == "rtt").then(|| "b".into()),
            unit: unit.into(),
            count,
            mean: 1.25 * scale as f64,
            p50: scale,
            p90: 2 * scale,
            p99: 3 * scale,
            p99_9: 4 * scale,
            max: 5 * scale,
            histogram: String::new(),
        }
    }

    #[test]
    fn the_table_is_aligned_and_has_units() {
        let stages = vec![
            stage("tun_to_udp", "ns", 1_234_567, 8_000),
            stage("batch_size", "packets", 12, 7),
            stage("rtt", "ns", 0, 0),
        ];
        let report = LatencyReport {
            name: "rw0".into(),
            since_unix_ms: 1000,
            until_unix_ms: 13_300,
            stages,
        };
        let expected = "\
interface: rw0, the last 12.3 s
  stage           count     mean      p50      p90      p99    p99.9      max
  tun_to_udp  1,234,567  10.0 us  8.00 us  16.0 us  24.0 us  32.0 us  40.0 us
  batch_size         12      8.8        7       14       21       28       35
  rtt b               0        -        -        -        -        -        -
";
        assert_eq!(table(&report, Style::PLAIN), expected);
    }
}
