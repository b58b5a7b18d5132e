//! SIGINT, SIGTERM and SIGHUP for commands that go on until they are ended.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Calls `end` on a thread of its own when the first of these signals comes, which then no longer ends the process.
pub(super) fn on_end(end: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let [mut interrupt, mut terminate, mut hang_up] = {
        let _inside = runtime.enter();
        [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
        });
        end();
    })?;
    Ok(())
}
