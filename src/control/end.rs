//! The end of a run, here or on the way to another process: what is written last, and no longer waited for than a disk may take.

use std::time::Duration;

use super::runtime::{self, DISK_TIME_MAX};
use super::{Control, ControlError};
use crate::worker::mailbox::Command;

/// How long a disk may keep a thread that nobody waits for, before a tunnel that is to leave stays.
const IDLE_TIME_MAX: Duration = Duration::from_secs(1);

impl Control {
    /// Tells native peers goodbye, ends the workers, and writes what must outlive this run. Nothing happens where another
    /// process goes on with the tunnel.
    pub async fn stop(&mut self) {
        if self.handed_over {
            return;
        }
        self.take_last_histograms().await;
        for id in self.peers.ids() {
            // Workers that have died need not hear it.
            let _ = self.tell_owner(id, Command::Goodbye(id));
        }
        for worker in &self.workers {
            let _ = worker.port.send(Command::Stop);
        }
        let _ = self.door.port.stop();
        if self.finish_state().await.is_err() {
            tracing::warn!(
                "the state file or the latency log is not written within {DISK_TIME_MAX:?} (see state_dir and latency_log): the \
                 next run may begin as after a kill"
            );
        }
    }

    /// Has the latency log have what workers have recorded since they were asked last.
    async fn take_last_histograms(&mut self) {
        if self.latency_log.is_some() {
            let histograms = self.ask_for_histograms().gather().await;
            // What a worker that does not answer has recorded is not in the log.
            let _ = self.take_in(histograms);
        }
    }

    /// Writes what must outlive this run as if it ended here, and the latency log's last interval.
    ///
    /// # Errors
    /// The disk takes too long. It has been given all of it, unless it had not yet taken what it was given before.
    async fn finish_state(&mut self) -> Result<(), ControlError> {
        let (now, timestamps) = (self.now(), self.timestamps().collect());
        let state = async {
            if let Some(state) = &mut self.state {
                state.finish(now, timestamps).await;
            }
        };
        let log = async {
            match &mut self.latency_log {
                Some(log) => log.finish().await,
                None => Ok(()),
            }
        };
        // They may be on two disks.
        let (state, log) = tokio::join!(
            tokio::time::timeout(DISK_TIME_MAX, state),
            tokio::time::timeout(DISK_TIME_MAX, log)
        );
        let slow = |_| ControlError::SlowDisk(DISK_TIME_MAX);
        let log = log.map(|written| self.end_latency_log_unless(written));
        state.and(log).map_err(slow)
    }

    /// Ends what may take its time before a tunnel leaves, a disk's for example: the file of what must outlive this process, and
    /// captures. Packets pass meanwhile.
    ///
    /// # Errors
    /// The disk takes too long, or another one still keeps a thread that was given up. It goes on writing, and the reserve that belongs
    /// to a tunnel that stays comes after that.
    pub async fn settle(&mut self) -> Result<(), ControlError> {
        self.take_last_histograms().await;
        self.finish_state().await?;
        let idle = tokio::time::timeout(IDLE_TIME_MAX, runtime::idle()).await;
        idle.map_err(|_| ControlError::BusyDisk)?;
        self.end_captures().await;
        Ok(())
    }
}
