//! Which address of ours peers are answered from when routes change.
//!
//! An answer leaves from the address that was asked. When the route to the peer moves to another interface (a cable is
//! plugged in beside the radio, a link dies), that address belongs to a link that the packets do not take any more: it is
//! refused, the kernel chooses the new link's, and the peer follows to it. An address whose packets never came in where the
//! answers go out is left alone: it does not stand and fall with a link (that of a router's loopback interface, or of the
//! other uplink, which a NAT before the peer insists on).
//!
//! The kernel's WireGuard compares the interfaces whenever it looks the route up. Here the route is looked up when a peer
//! comes to another address of ours, and when the kernel tells of a change.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Control, ControlError};
use crate::link::{LinkError, RouteQueries, RouteWatch};
use crate::proto::{Local, PeerId};
use crate::worker::mailbox::Command;

/// How long after a change the next one is looked at: on a router whose routes never rest, what follows from them may not
/// take all of this thread's time.
const HOLD_OFF: Duration = Duration::from_millis(500);

/// Addresses of ours that are remembered of each peer: as many links as a host is likely to have.
const SETTLED_MAX: usize = 4;

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
        let (mut watch, routes) = (RouteWatch::start()?, RouteQueries::open()?);
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
            tasks: [tokio::spawn(watching), tokio::spawn(asking)],
        })
    }

    /// The next news of `reporter`; never any without one, or when its tasks have ended.
    pub(super) async fn next(reporter: &mut Option<RouteReporter>) -> RouteNews {
        if let Some(reporter) = reporter
            && let Some(news) = reporter.news.recv().await
        {
            return news;
        }
        std::future::pending().await
    }
}

/// What is known of the address of ours that one peer uses.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// Packets from there came in to this address by the interface that the answers left by; the latest last, at most
    /// [`SETTLED_MAX`]. More than one: a peer that comes back to a link which dies at once has to be told from one whose answers
    /// never left by that link.
    settled: Vec<(SocketAddr, Local)>,
    refused: Option<Local>,
    asking: Asking,
}

/// One question at a time for each peer, however often it moves.
#[derive(Debug, Default, PartialEq, Eq)]
enum Asking {
    #[default]
    No,
    Yes,
    /// Something has changed since the question was asked.
    Again,
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

impl Source {
    /// Packets from `remote` come to `source`, and those from `source` to `remote` leave by the interface `leads`. `used`:
    /// answers leave from it.
    fn judge(&mut self, remote: SocketAddr, source: Local, used: bool, leads: &io::Result<u32>) -> Verdict {
        let holds = matches!(leads, Ok(interface) if *interface == source.interface);
        // No route at all, perhaps for a moment: then nothing leaves from any address. EINVAL: it is not ours any more.
        let is_lost = match leads {
            Ok(_) => !holds,
            Err(error) => error.raw_os_error() == Some(libc::EINVAL),
        };
        let place = (remote, source);
        if holds && self.settled.last() != Some(&place) {
            self.settled.retain(|settled| *settled != place);
            self.settled.push(place);
            let surplus = self.settled.len().saturating_sub(SETTLED_MAX);
            self.settled.drain(..surplus);
        }
        if used && is_lost && self.settled.contains(&place) {
            self.refused = Some(source);
            return Verdict::Refuse;
        }
        if !used && holds && self.refused.take_if(|refused| *refused == source).is_some() {
            return Verdict::Allow;
        }
        Verdict::Leave
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
            RouteNews::Leads(question, leads) => self.judge_source(question, &leads),
        }
    }

    /// Asks for the routes of all peers that have an address of ours.
    pub(super) fn ask_for_routes(&mut self) {
        for id in self.peers.ids() {
            self.ask_for_route(id);
        }
    }

    /// Asks for the peer's route from the address that its packets come to, if there is one.
    pub(super) fn ask_for_route(&mut self, id: PeerId) {
        let endpoint = self.device.peer(id).and_then(|info| info.endpoint);
        let (Some(reporter), Some(endpoint), Some(peer)) = (&self.routes, endpoint, self.peers.get_mut(id)) else {
            return;
        };
        let Some(source) = endpoint.local.or(peer.source.refused) else {
            return;
        };
        if peer.source.asking != Asking::No {
            peer.source.asking = Asking::Again;
            return;
        }
        let question = Question {
            peer: id,
            remote: endpoint.remote,
            source,
            mark: self.udp_options.mark,
        };
        // Where the task has ended, answers leave from where they left.
        if reporter.questions.send(question).is_ok() {
            peer.source.asking = Asking::Yes;
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
        let again = std::mem::take(&mut peer.source.asking) == Asking::Again;
        let used = endpoint.local == Some(source);
        let verdict = match endpoint.remote == remote && (used || endpoint.local.is_none()) {
            true => peer.source.judge(remote, source, used, leads),
            // It has moved since.
            false => Verdict::Leave,
        };
        let refused = match verdict {
            Verdict::Leave => None,
            Verdict::Refuse => Some(Some(source)),
            Verdict::Allow => Some(None),
        };
        if let Some(refused) = refused {
            tracing::debug!(
                peer = %peer.label(), address = %source.address, interface = source.interface, ?leads, ?verdict,
                "the route to the peer has another interface"
            );
            self.device.refuse_source(id, refused);
            self.broadcast(|| Command::RefuseSource(id, refused))?;
            // The peer follows to where it hears from; an idle tunnel would leave it with the old address.
            self.tell_owner(id, Command::Keepalive(id))?;
        }
        if again {
            self.ask_for_route(id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Local = Local {
        address: std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        interface: 3,
    };

    fn errno(errno: i32) -> io::Result<u32> {
        Err(io::Error::from_raw_os_error(errno))
    }

    fn remote(port: u16) -> SocketAddr {
        ([198, 51, 100, 1], port).into()
    }

    /// A source whose route was by its interface.
    fn settled() -> Source {
        let mut source = Source::default();
        assert_eq!(source.judge(remote(1), ADDRESS, true, &Ok(3)), Verdict::Leave);
        source
    }

    #[test]
    fn an_address_is_refused_when_the_route_leaves_its_interface_and_allowed_when_it_comes_back() {
        for (lost, verdict) in [
            (Ok(4), Verdict::Refuse),
            (errno(libc::EINVAL), Verdict::Refuse),
            (errno(libc::ENETUNREACH), Verdict::Leave),
        ] {
            let mut source = settled();
            assert_eq!(source.judge(remote(1), ADDRESS, true, &lost), verdict, "{lost:?}");
        }
        let mut source = settled();
        assert_eq!(source.judge(remote(1), ADDRESS, true, &Ok(4)), Verdict::Refuse);
        for still in [Ok(4), Ok(5), errno(libc::EINVAL), errno(libc::ENETUNREACH)] {
            assert_eq!(source.judge(remote(1), ADDRESS, false, &still), Verdict::Leave);
        }
        assert_eq!(source.judge(remote(1), ADDRESS, false, &Ok(3)), Verdict::Allow);
        assert_eq!(source.judge(remote(1), ADDRESS, false, &Ok(3)), Verdict::Leave, "once");
    }

    #[test]
    fn an_address_that_is_used_again_is_refused_though_its_link_dies_before_anybody_has_asked() {
        let other = Local {
            interface: 7,
            ..ADDRESS
        };
        let mut source = settled();
        source.judge(remote(1), other, true, &Ok(7));
        assert_eq!(source.judge(remote(1), ADDRESS, true, &Ok(7)), Verdict::Refuse);
        let mut source = settled();
        for port in 2..2 + SETTLED_MAX as u16 {
            source.judge(remote(port), ADDRESS, true, &Ok(3));
        }
        assert_eq!(source.settled.len(), SETTLED_MAX);
        assert_eq!(
            source.judge(remote(1), ADDRESS, true, &Ok(7)),
            Verdict::Leave,
            "it is long ago"
        );
    }

    #[test]
    fn an_address_whose_answers_never_left_where_its_packets_came_in_is_left_alone() {
        let mut source = Source::default();
        for leads in [Ok(4), Ok(5), errno(libc::EINVAL), Ok(4)] {
            assert_eq!(source.judge(remote(1), ADDRESS, true, &leads), Verdict::Leave);
        }
        let mut source = settled();
        let other = Local {
            interface: 7,
            ..ADDRESS
        };
        assert_eq!(
            source.judge(remote(1), other, true, &Ok(3)),
            Verdict::Leave,
            "by another link"
        );
        assert_eq!(
            source.judge(remote(2), ADDRESS, true, &Ok(4)),
            Verdict::Leave,
            "from elsewhere"
        );
    }
}
