//! The signals that end a tunnel and those that make it read its file again.

use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that this process takes. From its making on none of them kills the process; one that comes before anybody
/// listens is kept.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// SIGHUP, for who has a file to read again.
pub struct Hangups(Signal);

impl Signals {
    /// Takes SIGINT and SIGTERM over. Needs a tokio runtime.
    pub fn install() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits until somebody wants the tunnel to end.
    pub async fn end(&mut self) {
        tokio::select! {
            Some(()) = self.interrupt.recv() => {}
            Some(()) = self.terminate.recv() => {}
            else => pending().await,
        }
    }
}

impl Hangups {
    /// Takes SIGHUP over. Needs a tokio runtime.
    pub fn install() -> io::Result<Hangups> {
        signal(SignalKind::hangup()).map(Hangups)
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            pending().await
        }
    }
}
