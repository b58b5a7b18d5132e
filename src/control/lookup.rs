//! Host names -> addresses, on threads of their own: getaddrinfo(3) blocks for as long as the servers are silent, and a
//! thread of the runtime's would keep the daemon from ending for as long.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::thread;

use tokio::sync::mpsc;

use super::names::Question;
use crate::config::HostPort;
use crate::sys::exec;

/// What turns a name into addresses.
pub(super) type Resolve = Arc<dyn Fn(&HostPort) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// Look-ups that are under way.
pub(super) struct Lookups {
    resolve: Resolve,
    answers_in: mpsc::UnboundedSender<(Question, io::Result<Vec<SocketAddr>>)>,
    answers: mpsc::UnboundedReceiver<(Question, io::Result<Vec<SocketAddr>>)>,
}

impl Lookups {
    /// By the system's resolver.
    pub(super) fn new() -> Lookups {
        Lookups::by(Arc::new(|host: &HostPort| {
            let (name, port) = host.to_lookup();
            (name.as_str(), port).to_socket_addrs().map(Iterator::collect)
        }))
    }

    pub(super) fn by(resolve: Resolve) -> Lookups {
        // As many as there are look-ups under way, which `Names` bounds.
        let (answers_in, answers) = mpsc::unbounded_channel();
        Lookups {
            resolve,
            answers_in,
            answers,
        }
    }

    /// Begins one; its answer comes out of [`Lookups::answer`].
    pub(super) fn begin(&self, question: Question) {
        let (resolve, answers) = (self.resolve.clone(), self.answers_in.clone());
        let unasked = question.clone();
        let look_up = move || {
            let result = resolve(&question.host);
            // The tunnel may have ended in the meantime.
            let _ = answers.send((question, result));
        };
        // Signals are the control thread's: an upgrade has them wait there.
        let thread = exec::with_signals_held(|| thread::Builder::new().name("look-up".into()).spawn(look_up));
        if let Err(error) = thread {
            let _ = self.answers_in.send((unasked, Err(error)));
        }
    }

    /// The next answer.
    pub(super) async fn answer(&mut self) -> (Question, io::Result<Vec<SocketAddr>>) {
        match self.answers.recv().await {
            Some(answer) => answer,
            // We have a sender ourselves.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::PeerId;

    #[test]
    fn a_look_up_that_hangs_holds_up_no_other() {
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = std::sync::Mutex::new(hangs);
        let mut lookups = Lookups::by(Arc::new(move |host| {
            if host.port == 1 {
                let _ = hangs.lock().expect("nobody panics").recv();
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(vec![([192, 0, 2, 1], host.port).into()])
        }));
        let question = |port: u16| Question {
            peer: PeerId(port.into()),
            ticket: 0,
            host: format!("vpn.example:{port}").parse().expect("a name"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            lookups.begin(question(1));
            lookups.begin(question(2));
            let (answered, addresses) = lookups.answer().await;
            assert_eq!(answered, question(2));
            assert_eq!(addresses.expect("found"), [([192, 0, 2, 1], 2).into()]);
            drop(release);
            let (answered, addresses) = lookups.answer().await;
            assert_eq!(answered, question(1));
            assert_eq!(addresses.expect_err("refused").kind(), io::ErrorKind::TimedOut);
        });
    }
}
