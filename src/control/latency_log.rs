//! The latency log: what the workers recorded, interval by interval, as HdrHistogram tools read it.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;

use super::Control;
use super::log_file::{LogFile, Means};
use super::runtime::within_disk_time;
use crate::stats::hlog::HistogramLog;
use crate::stats::latency::StageHistograms;
use crate::worker;

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
    pub(super) async fn create(means: Means, path: &Path) -> io::Result<LatencyLog> {
        let since = SystemTime::now();
        let mut log = HistogramLog::begin(Vec::new(), since)?;
        let head = std::mem::take(log.writer_mut());
        let file = within_disk_time(async {
            let file = LogFile::create(means, path).await?;
            file.append(head).await?;
            Ok(file)
        })
        .await?;
        Ok(LatencyLog {
            file: Some(file),
            writing: None,
            log,
            recorded: StageHistograms::new(),
            since,
        })
    }

    /// Goes on with the file that an earlier process began at `begin`.
    pub(super) async fn resume(means: Means, path: &Path, begin: SystemTime) -> io::Result<LatencyLog> {
        Ok(LatencyLog {
            file: Some(within_disk_time(LogFile::open(means, path)).await?),
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
            && let Some(file) = self.file.take()
        {
            self.writing = Some(tokio::task::spawn_local(async move {
                file.append(text).await?;
                Ok(file)
            }));
        }
        Ok(())
    }

    /// Ends the interval, and waits until the disk has taken all of it.
    ///
    /// # Errors
    /// It could not be written. The log is of no use any more.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.settle().await?;
        self.end_interval().await?;
        self.settle().await
    }

    /// Waits until the disk has taken what it was given.
    async fn settle(&mut self) -> io::Result<()> {
        if let Some(writing) = &mut self.writing {
            let written = writing.await;
            self.writing = None;
            self.file = Some(written??);
        }
        Ok(())
    }
}

impl Control {
    /// Writes what passes inside the tunnel to `path` from here on, an interval per second.
    pub async fn log_latency(&mut self, means: Means, path: &Path) -> io::Result<()> {
        self.latency_log = Some(LatencyLog::create(means, path).await?);
        self.next_log = Some(worker::time_now() + INTERVAL);
        Ok(())
    }

    /// As [`Control::log_latency`], to the log that an earlier process began at `begin`.
    pub async fn resume_latency_log(&mut self, means: Means, path: &Path, begin: SystemTime) -> io::Result<()> {
        self.latency_log = Some(LatencyLog::resume(means, path, begin).await?);
        self.next_log = Some(worker::time_now() + INTERVAL);
        Ok(())
    }

    pub(super) async fn write_latency_log(&mut self) {
        let Some(log) = &mut self.latency_log else { return };
        let written = log.end_interval().await;
        self.end_latency_log_unless(written);
    }

    pub(super) fn end_latency_log_unless(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!(%error, "the latency log cannot be written any more");
            (self.latency_log, self.next_log) = (None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::runtime::block_on;
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
        let means = Means {
            uring: true,
            sandbox: false,
        };
        let ran = block_on(async {
            let mut log = LatencyLog::create(means, &path).await.expect("a file");
            log.record(&recorded);
            log.finish().await.expect("it is written");
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
            log.finish().await.expect("the disk has answered");
            assert_eq!(log.recorded.iter().map(|histogram| histogram.count()).sum::<u64>(), 0);
            assert_eq!(lines(Stage::TunToUdp), 2);
        });
        ran.expect("a runtime starts");
        std::fs::remove_file(&path).expect("the log is there");
    }
}
