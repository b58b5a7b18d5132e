//! Waiting for a future on a thread, whether a runtime's or not: unlike the blocking calls of tokio's channels, this panics
//! in neither.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
    }
}

/// What `future` comes to. It must need no runtime.
pub(super) fn wait<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn an_answer_from_another_thread_is_waited_for_inside_and_outside_of_a_runtime() {
        let ask = || {
            let (answer, answered) = oneshot::channel();
            let thread = thread::spawn(move || answer.send(7));
            let result = wait(answered);
            thread.join().expect("no panic").expect("somebody waits");
            result
        };
        assert_eq!(ask(), Ok(7));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        assert_eq!(runtime.block_on(async { ask() }), Ok(7));
    }
}
