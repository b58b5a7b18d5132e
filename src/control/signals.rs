//! What ends a tunnel, and the signals that make it read its file again.

use std::convert::Infallible;
use std::future::pending;
use std::io;

use futures_util::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::sys::exec;

/// Waits for whoever ends the tunnel.
pub struct Signals(Source);

enum Source {
    Process { interrupt: Signal, terminate: Signal },
    Program(mpsc::Receiver<Infallible>),
}

/// SIGHUP, for who has a file to read again.
pub struct Hangups(Signal);

impl Signals {
    /// Takes SIGINT and SIGTERM over. Needs a tokio runtime. From here on none of them kills the process; one that comes before
    /// anybody listens is kept.
    pub fn install() -> io::Result<Signals> {
        Ok(Signals(Source::Process {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        }))
    }

    /// For a tunnel inside of a program that has its own idea of signals: it ends when the other end is dropped.
    pub fn until_dropped(other_end: mpsc::Receiver<Infallible>) -> Signals {
        Signals(Source::Program(other_end))
    }

    /// Waits until somebody wants the tunnel to end.
    pub async fn end(&mut self) {
        match &mut self.0 {
            Source::Process { interrupt, terminate } => tokio::select! {
                Some(()) = interrupt.recv() => {}
                Some(()) = terminate.recv() => {}
                else => pending().await,
            },
            Source::Program(other_end) => match other_end.recv().await {
                None => {}
                Some(never) => match never {},
            },
        }
    }
}

impl Signals {
    /// Has SIGINT, SIGTERM and SIGHUP wait from here on, for the program that is about to take this one's place; true where one
    /// of those that end the tunnel has come before.
    ///
    /// # Errors
    /// None that a sane kernel has.
    pub async fn hold(&mut self, hangups: Option<&mut Hangups>) -> io::Result<bool> {
        exec::hold_signals()?;
        // What came before is on its way through the runtime.
        tokio::task::yield_now().await;
        if let Some(hangups) = hangups
            && hangups.next().now_or_never().is_some()
        {
            // It waits with the others.
            exec::hang_up();
        }
        Ok(self.end().now_or_never().is_some())
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
