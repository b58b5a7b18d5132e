//! The latency log: what the workers recorded, interval by interval, as HdrHistogram tools read it.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;

use super::runtime::{LogFile, Runtime};
use crate::stats::hlog::HistogramLog;
use crate::stats::latency::StageHistograms;

/// One line per stage for each of these.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// A log that grows with every interval in which anything was recorded.
pub(super) struct LatencyLog {
    /// `None` while an interval is on its way to it.
    file: Option<LogFile>,
    writing: Option<JoinHandle<io::Result<LogFile>>>,
    log: HistogramLog<Vec<u8>>,
    /// Recorded since `since`.
    recorded: StageHistograms,
    since: SystemTime,
}

impl LatencyLog {
    /// Creates the file, or empties it, and writes the head.
    pub(super) async fn create(runtime: Runtime, path: &Path) -> io::Result<LatencyLog> {
        let since = SystemTime::now();
        let mut file = LogFile::create(runtime, path)?;
        let mut log = HistogramLog::begin(Vec::new(), since)?;
        file.append(std::mem::take(log.writer_mut())).await?;
        Ok(LatencyLog {
            file: Some(file),
            writing: None,
            log,
            recorded: StageHistograms::new(),
            since,
        })
    }

    /// Goes on with the file that an earlier process began at `begin`.
    pub(super) fn resume(runtime: Runtime, path: &Path, begin: SystemTime) -> io::Result<LatencyLog> {
        Ok(LatencyLog {
            file: Some(LogFile::open(runtime, path)?),
            writing: None,
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

    /// Ends the interval and begins to write it, on a local task; while the disk has not taken the one before, goes on with it.
    ///
    /// # Errors
    /// The one before could not be written.
    pub(super) async fn end_interval(&mut self) -> io::Result<()> {
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return Ok(());
        }
        self.settle().await?;
        let now = SystemTime::now();
        let length = now.duration_since(self.since).unwrap_or_default();
        self.log.interval(self.since, length, &self.recorded)?;
        self.recorded.clear();
        self.since = now;
        let text = std::mem::take(self.log.writer_mut());
        if !text.is_empty()
            && let Some(mut file) = self.file.take()
        {
            self.writing = Some(tokio::task::spawn_local(async move {
                file.append(text).await?;
                Ok(file)
            }));
        }
        Ok(())
    }

    /// Waits until the disk has taken what it was given.
    ///
    /// # Errors
    /// It could not be written. The log is of no use any more.
    pub(super) async fn settle(&mut self) -> io::Result<()> {
        if let Some(writing) = &mut self.writing {
            self.file = Some(writing.await??);
            self.writing = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::latency::Stage;

    #[test]
    fn an_interval_goes_on_while_the_disk_has_not_taken_the_one_before_and_nothing_is_lost() {
        let path = std::env::temp_dir().join(format!("ringway-latency-log-{}", std::process::id()));
        let lines = |of: Stage| {
            let text = std::fs::read_to_string(&path).expect("the log is there");
            text.lines()
                .filter(|line| line.starts_with(&format!("Tag={},", of.name())))
                .count()
        };
        let mut recorded = StageHistograms::new();
        recorded.record(Stage::TunToUdp, 1_000, 1);
        let ran = Runtime::Tokio.block_on(async |runtime| {
            let mut log = LatencyLog::create(runtime, &path).await.expect("a file");
            log.record(&recorded);
            log.end_interval().await.expect("it is begun");
            log.settle().await.expect("it is written");
            assert_eq!(lines(Stage::TunToUdp), 1);

            // A disk that answers when it is told to.
            let file = log.file.take().expect("it is idle");
            let (answer, answered) = tokio::sync::oneshot::channel();
            log.writing = Some(tokio::task::spawn_local(async move {
                answered.await.expect("it answers in the end");
                Ok(file)
            }));
            for _ in 0..3 {
                log.record(&recorded);
                log.end_interval().await.expect("nothing waits for the disk");
            }
            assert_eq!(lines(Stage::TunToUdp), 1);
            answer.send(()).expect("the disk listens");
            log.settle().await.expect("the disk has answered");
            log.end_interval().await.expect("it is begun");
            assert_eq!(log.recorded.iter().map(|histogram| histogram.count()).sum::<u64>(), 0);
            log.settle().await.expect("it is written");
            assert_eq!(lines(Stage::TunToUdp), 2);
        });
        ran.expect("a runtime starts");
        std::fs::remove_file(&path).expect("the log is there");
    }
}
