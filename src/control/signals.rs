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
        Ok(self.came(hangups).await)
    }

    /// Has those wait too that have come to another thread since [`Signals::hold`], of which there should be none that takes
    /// any: to be called when nothing keeps the next program from taking this one's place.
    pub async fn pass_on(&mut self, hangups: Option<&mut Hangups>) {
        if self.came(hangups).await {
            exec::terminate();
        }
    }

    /// Whether one of those that end the tunnel has come before; a SIGHUP that has is sent once more.
    async fn came(&mut self, hangups: Option<&mut Hangups>) -> bool {
        // It is on its way through the runtime.
        tokio::task::yield_now().await;
        if let Some(hangups) = hangups
            && hangups.next().now_or_never().is_some()
        {
            // It waits with the others.
            exec::hang_up();
        }
        self.end().now_or_never().is_some()
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

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// Set for the process in which signals may come.
    const INNER: &str = "RINGWAY_TEST_SIGNALS";

    /// SigPnd of proc_pid_status(5): what waits for the calling thread.
    fn waits(signal: SignalKind) -> bool {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal.as_raw_value() - 1) & 1 == 1
    }

    /// What came to the process's other threads before they could be kept from it.
    fn come_to_another_thread(signals: &[fn()]) {
        let signals = signals.to_vec();
        let thread = std::thread::spawn(move || {
            exec::accept_signals().unwrap();
            signals.into_iter().for_each(|send| send());
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_signal_that_came_to_another_thread_waits_for_the_next_program() {
        if std::env::var_os(INNER).is_none() {
            // Whoever takes signals takes them for the rest of the process's life.
            let mut command = Command::new(std::env::current_exe().unwrap());
            let name = "control::signals::tests::a_signal_that_came_to_another_thread_waits_for_the_next_program";
            let output = command.args(["--exact", name]).env(INNER, "1").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut signals, mut hangups) = (Signals::install().unwrap(), Hangups::install().unwrap());
            come_to_another_thread(&[exec::terminate]);
            assert!(signals.hold(Some(&mut hangups)).await.unwrap(), "it came before");
            assert!(!waits(SignalKind::terminate()) && !waits(SignalKind::hangup()));
            signals.pass_on(Some(&mut hangups)).await;
            assert!(!waits(SignalKind::terminate()) && !waits(SignalKind::hangup()));
            come_to_another_thread(&[exec::terminate, exec::hang_up]);
            signals.pass_on(Some(&mut hangups)).await;
            assert!(waits(SignalKind::terminate()) && waits(SignalKind::hangup()));
            // As the next program hears them.
            exec::accept_signals().unwrap();
            let both = async { tokio::join!(signals.end(), hangups.next()) };
            tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
        });
    }
}
