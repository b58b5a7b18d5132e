//! Which address of ours peers are answered from when routes change.
//!
//! An answer leaves from the address that was asked. When the route to the peer moves to another interface (a cable is
//! plugged in beside the radio, a link dies), that address belongs to a link that the packets do not take any more: it is
//! refused, the kernel chooses the new link's, and the peer follows to it. The kernel's WireGuard compares
//! whenever it looks the route up; here the kernel tells of changes, and then the routes of those peers are looked at that
//! have such an address.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Control, ControlError};
use crate::link::{LinkError, RouteWatch, Routes};
use crate::proto::{Local, PeerId};
use crate::worker::mailbox::Command;

/// How long after a change the next one is looked at: on a router whose routes never rest, what follows from them may not
/// take all of this thread's time.
const HOLD_OFF: Duration = Duration::from_millis(500);

/// Where the route to a peer leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    peer: PeerId,
    remote: SocketAddr,
    source: Local,
    mark: u32,
}

/// What the control loop hears.
pub(super) enum RouteNews {
    /// Something changed.
    Changed,
    /// The interface by which the route leaves.
    Leads(Question, io::Result<u32>),
}

/// Hears of changes and asks for routes, in tasks of their own: thousands of questions hold nothing up.
pub(super) struct RouteReporter {
    news: mpsc::UnboundedReceiver<RouteNews>,
    questions: mpsc::UnboundedSender<Question>,
    /// Questions that have no answer yet.
    unanswered: usize,
    /// Something has changed since they were asked.
    ask_again: bool,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for RouteReporter {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl RouteReporter {
    /// Begins in the calling thread's network namespace, on its runtime.
    pub(super) fn start() -> Result<RouteReporter, LinkError> {
        let (mut watch, routes) = (RouteWatch::start()?, Routes::open()?);
        let (news_in, news) = mpsc::unbounded_channel();
        let (questions, mut questions_out) = mpsc::unbounded_channel::<Question>();
        let changed = news_in.clone();
        let watching = async move {
            while watch.changed().await.is_some() && changed.send(RouteNews::Changed).is_ok() {
                tokio::time::sleep(HOLD_OFF).await;
            }
        };
        let asking = async move {
            while let Some(question) = questions_out.recv().await {
                let (remote, source) = (question.remote.ip(), question.source.address);
                let interface = routes.interface_towards(remote, source, question.mark).await;
                if news_in.send(RouteNews::Leads(question, interface)).is_err() {
                    return;
                }
            }
        };
        Ok(RouteReporter {
            news,
            questions,
            unanswered: 0,
            ask_again: false,
            tasks: [tokio::spawn(watching), tokio::spawn(asking)],
        })
    }

    /// The next news of `reporter`; never any without one, or when its tasks have ended.
    pub(super) async fn next(reporter: &mut Option<RouteReporter>) -> RouteNews {
        if let Some(reporter) = reporter
            && let Some(news) = reporter.news.recv().await
        {
            if matches!(news, RouteNews::Leads(..)) {
                reporter.unanswered -= 1;
            }
            return news;
        }
        std::future::pending().await
    }
}

/// What to do about an address of ours.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing.
    Leave,
    /// Answer from it no more.
    Refuse,
    /// Answer from it again.
    Allow,
}

/// `source` is where packets of a peer came to; `refused`: it is not answered from; `leads`: by which interface packets
/// from it leave.
fn judge(source: &Local, refused: bool, leads: &io::Result<u32>) -> Verdict {
    match leads {
        Ok(interface) if *interface == source.interface => match refused {
            true => Verdict::Allow,
            false => Verdict::Leave,
        },
        _ if refused => Verdict::Leave,
        Ok(_) => Verdict::Refuse,
        // It is not ours any more.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Verdict::Refuse,
        // No route at all, perhaps for a moment: then nothing leaves from any address.
        Err(_) => Verdict::Leave,
    }
}

impl Control {
    /// Carries out what the news call for.
    pub(super) fn hear(&mut self, news: RouteNews) -> Result<(), ControlError> {
        match news {
            RouteNews::Changed => {
                tracing::debug!("the network around the tunnel has changed");
                self.ask_for_routes();
                let now = self.now().mono;
                let narrow = self.peers.iter().filter(|(_, peer)| peer.path_mtu.known().is_some());
                for peer in narrow.map(|(id, _)| id).collect::<Vec<_>>() {
                    self.ask_path_mtu(peer, now);
                }
                Ok(())
            }
            RouteNews::Leads(question, leads) => {
                self.judge_source(question, &leads)?;
                let is_last = |reporter: &&mut RouteReporter| reporter.unanswered == 0;
                if let Some(reporter) = self.routes.as_mut().filter(is_last)
                    && std::mem::take(&mut reporter.ask_again)
                {
                    self.ask_for_routes();
                }
                Ok(())
            }
        }
    }

    /// Asks for the routes of all peers that have an address of ours; one round at a time.
    pub(super) fn ask_for_routes(&mut self) {
        let Some(reporter) = &mut self.routes else { return };
        if reporter.unanswered > 0 {
            reporter.ask_again = true;
            return;
        }
        for (id, peer) in self.peers.iter() {
            let Some(endpoint) = self.device.peer(id).and_then(|info| info.endpoint) else {
                continue;
            };
            let Some(source) = endpoint.local.or(peer.refused_source) else {
                continue;
            };
            let question = Question {
                peer: id,
                remote: endpoint.remote,
                source,
                mark: self.udp_options.mark,
            };
            // Where the task has ended, answers leave from where they left.
            if reporter.questions.send(question).is_ok() {
                reporter.unanswered += 1;
            }
        }
    }

    fn judge_source(&mut self, question: Question, leads: &io::Result<u32>) -> Result<(), ControlError> {
        let Question {
            peer: id,
            remote,
            source,
            ..
        } = question;
        let endpoint = self.device.peer(id).and_then(|info| info.endpoint);
        let (Some(endpoint), Some(peer)) = (endpoint, self.peers.get_mut(id)) else {
            return Ok(());
        };
        let refused = endpoint.local.is_none() && peer.refused_source == Some(source);
        if endpoint.remote != remote || !refused && endpoint.local != Some(source) {
            // It has moved since.
            return Ok(());
        }
        let (refused_source, what) = match judge(&source, refused, leads) {
            Verdict::Leave => return Ok(()),
            Verdict::Refuse => (
                Some(source),
                "answering from another address: the route has left this one's interface",
            ),
            Verdict::Allow => (None, "the route is back at this address's interface"),
        };
        tracing::debug!(peer = %peer.label(), address = %source.address, "{what}");
        peer.refused_source = refused_source;
        self.device.refuse_source(id, refused_source);
        self.broadcast(|| Command::RefuseSource(id, refused_source))?;
        // The peer follows to where it hears from; an idle tunnel would leave it with the old address.
        self.tell_owner(id, Command::Keepalive(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_refused_when_the_route_leaves_its_interface_and_allowed_when_it_comes_back() {
        let source = Local {
            address: [192, 0, 2, 1].into(),
            interface: 3,
        };
        let errno = |errno| Err(io::Error::from_raw_os_error(errno));
        let table = [
            (Ok(3), Verdict::Leave, Verdict::Allow),
            (Ok(4), Verdict::Refuse, Verdict::Leave),
            (errno(libc::EINVAL), Verdict::Refuse, Verdict::Leave),
            (errno(libc::ENETUNREACH), Verdict::Leave, Verdict::Leave),
        ];
        for (leads, while_used, while_refused) in table {
            assert_eq!(judge(&source, false, &leads), while_used, "{leads:?}");
            assert_eq!(judge(&source, true, &leads), while_refused, "{leads:?}");
        }
    }
}
