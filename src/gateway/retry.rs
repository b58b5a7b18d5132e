//! Names and ports that a killed daemon still holds.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// How long the interface's name and the port may still be taken by a daemon that was killed.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Tries again for a moment while what is wanted is taken: the kernel closes the files of a killed daemon's io_uring
/// shortly after its process has gone.
pub(super) fn while_taken<T, E: Display>(
    is_taken: impl Fn(&E) -> bool,
    attempt: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    let mut patience = Patience::new();
    loop {
        match attempt() {
            Err(error) if is_taken(&error) && patience.lasts(&error) => thread::sleep(RETRY_INTERVAL),
            result => return result,
        }
    }
}

/// As [`while_taken`], where other things go on meanwhile.
pub(super) async fn until_free<T, E: Display>(
    is_taken: impl Fn(&E) -> bool,
    attempt: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    let mut patience = Patience::new();
    loop {
        match attempt() {
            Err(error) if is_taken(&error) && patience.lasts(&error) => tokio::time::sleep(RETRY_INTERVAL).await,
            result => return result,
        }
    }
}

struct Patience {
    deadline: Instant,
    waiting: bool,
}

impl Patience {
    fn new() -> Patience {
        Patience {
            deadline: Instant::now() + PREDECESSOR_PATIENCE,
            waiting: false,
        }
    }

    /// Whether to try once more after this; the first time it is told.
    fn lasts(&mut self, error: &impl Display) -> bool {
        let lasts = Instant::now() < self.deadline;
        if lasts && !std::mem::replace(&mut self.waiting, true) {
            tracing::warn!("{error}; waiting a moment in case it belongs to a daemon that was just killed");
        }
        lasts
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_taken_for_a_moment_is_waited_for_and_other_errors_are_not() {
        let attempts = Cell::new(0);
        let result = while_taken(
            |error| *error == "taken",
            || {
                attempts.set(attempts.get() + 1);
                if attempts.get() < 3 {
                    Err("taken")
                } else {
                    Err("broken")
                }
            },
        );
        assert_eq!((result, attempts.get()), (Err::<(), _>("broken"), 3));
    }
}
