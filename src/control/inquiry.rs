//! Asking all workers something. They answer within a pass, but one that is busy may take long; handshakes and timers go on
//! meanwhile: an order that needs answers is carried out once they are there.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Control;
use crate::worker::mailbox::Command;

/// How long a worker may take to answer; it looks into its mailbox once per pass.
const WORKER_ANSWER_MAX: Duration = Duration::from_secs(1);

/// A worker did not answer in time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoAnswer;

/// What workers say to one question.
pub(super) struct Answers<T> {
    from: mpsc::Receiver<(u8, T)>,
    workers: usize,
    deadline: Instant,
}

/// What was said, in the order in which it came, perhaps not by all.
pub(super) struct Said<T> {
    answers: Vec<(u8, T)>,
    workers: usize,
}

/// What remains of an order when the answers are there.
type Rest = Box<dyn FnOnce(&mut Control)>;

/// Orders that wait for workers.
#[derive(Default)]
pub(super) struct Inquiries(JoinSet<Rest>);

impl<T> Answers<T> {
    fn expected(workers: usize, patience: Duration) -> (mpsc::Sender<(u8, T)>, Answers<T>) {
        let (reply, from) = mpsc::channel(workers.max(1));
        let deadline = Instant::now() + patience;
        (
            reply,
            Answers {
                from,
                workers,
                deadline,
            },
        )
    }

    /// Waits until all have answered, time is up, or those who have not have ended.
    pub(super) async fn gather(mut self) -> Said<T> {
        let mut answers = Vec::with_capacity(self.workers);
        while answers.len() < self.workers
            && let Ok(Some(answer)) = timeout_at(self.deadline, self.from.recv()).await
        {
            answers.push(answer);
        }
        Said {
            answers,
            workers: self.workers,
        }
    }
}

impl<T> Said<T> {
    /// What each worker has said, by number.
    pub(super) fn by_all(mut self) -> Result<Vec<T>, NoAnswer> {
        if self.answers.len() < self.workers {
            return Err(NoAnswer);
        }
        self.answers.sort_by_key(|(worker, _)| *worker);
        Ok(self.answers.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Whether nobody is missing, and what those who are not have said, with their numbers.
    pub(super) fn by_some(self) -> (Result<(), NoAnswer>, Vec<(u8, T)>) {
        let missing = self.answers.len() < self.workers;
        (if missing { Err(NoAnswer) } else { Ok(()) }, self.answers)
    }
}

impl Inquiries {
    /// What is to be done for the next order whose answers are there; `None` where none waits.
    pub(super) async fn next(&mut self) -> Option<Rest> {
        // A task that gathers answers has nothing to panic over.
        self.0.join_next().await?.ok()
    }
}

impl Control {
    /// Asks every worker.
    pub(super) fn ask_workers<T>(&self, question: impl Fn(mpsc::Sender<(u8, T)>) -> Command) -> Answers<T> {
        self.ask_workers_within(WORKER_ANSWER_MAX, question)
    }

    /// As [`Control::ask_workers`], with another time limit.
    pub(super) fn ask_workers_within<T>(
        &self,
        patience: Duration,
        question: impl Fn(mpsc::Sender<(u8, T)>) -> Command,
    ) -> Answers<T> {
        let (reply, answers) = Answers::expected(self.workers.len(), patience);
        // Who has died gives no answer.
        let _ = self.broadcast(|| question(reply.clone()));
        answers
    }

    /// Goes on with `rest` when `said` is there.
    pub(super) fn afterwards<S: 'static>(
        &mut self,
        said: impl Future<Output = S> + 'static,
        rest: impl FnOnce(&mut Control, S) + 'static,
    ) {
        self.inquiries.0.spawn_local(async move {
            let said = said.await;
            let rest: Rest = Box::new(move |control| rest(control, said));
            rest
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn block_on(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test);
    }

    #[test]
    fn answers_are_told_by_workers_in_whatever_order_they_come() {
        block_on(async {
            let (reply, answers) = Answers::expected(3, WORKER_ANSWER_MAX);
            let worker = std::thread::spawn(move || {
                for number in [2, 0, 1] {
                    reply.try_send((number, number * 10)).expect("there is room for all");
                }
            });
            assert_eq!(answers.gather().await.by_all(), Ok(vec![0, 10, 20]));
            worker.join().expect("it ends");
        });
    }

    #[test]
    fn who_waits_for_a_worker_that_is_busy_keeps_nobody_else_from_working() {
        block_on(async {
            let (reply, answers) = Answers::expected(2, WORKER_ANSWER_MAX);
            reply.try_send((1, "here")).expect("there is room for all");
            let turns = Cell::new(0);
            let others = async {
                loop {
                    turns.set(turns.get() + 1);
                    tokio::task::yield_now().await;
                }
            };
            let said = tokio::select! {
                said = answers.gather() => said,
                never = others => never,
            };
            assert!(turns.get() > 1);
            let (complete, some) = said.by_some();
            assert_eq!((complete, some), (Err(NoAnswer), vec![(1, "here")]));
            assert!(
                reply.try_send((0, "late")).is_err(),
                "it is told that nobody listens any more"
            );
        });
    }

    #[test]
    fn a_worker_that_has_died_is_not_waited_for() {
        block_on(async {
            let (reply, answers) = Answers::<()>::expected(2, Duration::from_secs(3600));
            drop(reply);
            assert_eq!(answers.gather().await.by_all(), Err(NoAnswer));
        });
    }
}
