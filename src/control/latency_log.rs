//! The latency log: what the workers recorded, interval by interval, as HdrHistogram tools read it.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::runtime::{LogFile, Runtime};
use crate::stats::hlog::HistogramLog;
use crate::stats::latency::StageHistograms;

/// One line per stage for each of these.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// A log that grows with every interval in which anything was recorded.
pub(super) struct LatencyLog {
    file: LogFile,
    log: HistogramLog<Vec<u8>>,
    /// Recorded since `since`.
    recorded: StageHistograms,
    since: SystemTime,
}

impl LatencyLog {
    /// Creates the file, or empties it, and writes the head.
    pub(super) async fn create(runtime: Runtime, path: &Path) -> io::Result<LatencyLog> {
        let since = SystemTime::now();
        let mut log = LatencyLog {
            file: LogFile::create(runtime, path)?,
            log: HistogramLog::begin(Vec::new(), since)?,
            recorded: StageHistograms::new(),
            since,
        };
        log.write().await?;
        Ok(log)
    }

    /// Goes on with the file that an earlier process began at `begin`.
    pub(super) fn resume(runtime: Runtime, path: &Path, begin: SystemTime) -> io::Result<LatencyLog> {
        Ok(LatencyLog {
            file: LogFile::open(runtime, path)?,
            log: HistogramLog::resume(Vec::new(), begin),
            recorded: StageHistograms::new(),
            since: SystemTime::now(),
        })
    }

    /// When the log began.
    pub(super) fn begin(&self) -> SystemTime {
        self.log.base()
    }

    /// Adds what a worker recorded.
    pub(super) fn record(&mut self, recorded: &StageHistograms) {
        self.recorded.absorb(&mut recorded.clone());
    }

    /// Ends the interval and writes it.
    pub(super) async fn end_interval(&mut self) -> io::Result<()> {
        let now = SystemTime::now();
        let length = now.duration_since(self.since).unwrap_or_default();
        self.log.interval(self.since, length, &self.recorded)?;
        self.recorded.clear();
        self.since = now;
        self.write().await
    }

    async fn write(&mut self) -> io::Result<()> {
        let text = std::mem::take(self.log.writer_mut());
        if text.is_empty() {
            Ok(())
        } else {
            self.file.append(text).await
        }
    }
}
