//! What a turn of the control loop does: what the protocol has decided, what workers have reported, what is due.

use std::time::SystemTime;

use super::{Control, ControlError, HANDSHAKES_PER_TURN, REPORTS_PER_TURN, SAMPLE_INTERVAL};
use crate::path::drops::Drop;
use crate::path::report::Report;
use crate::proto::{Action, Endpoint, PeerId, Suite};
use crate::wire::message;
use crate::worker::mailbox::Command;
use crate::worker::{self, HANDSHAKE_TOS};

impl Control {
    /// Carries out what the protocol decided.
    pub(super) fn act(&mut self) -> Result<(), ControlError> {
        while let Some(action) = self.device.poll_action() {
            match action {
                Action::Transmit { to, peer, datagram } => self.transmit(peer, &to, &datagram),
                Action::Install {
                    peer,
                    session,
                    suite,
                    seals,
                    opens,
                    sending,
                } => {
                    tracing::debug!(peer = %self.peers.name(peer), ?session, ?suite, sending, "session installed");
                    let workers = self.workers.len();
                    let mut seals: Vec<_> = match suite {
                        Suite::Native => seals.into_iter().map(|seal| Some(Box::new(seal))).collect(),
                        Suite::WireGuard => {
                            let shared = seals.into_iter().next();
                            (0..workers).map(|_| shared.clone().map(Box::new)).collect()
                        }
                    };
                    seals.resize_with(workers, || None);
                    let mut open: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
                    for half in opens {
                        open[usize::from(message::owner(half.local_index(), workers as u8))].push(half);
                    }
                    // First all that opens: whatever one worker seals may be answered to another.
                    for (worker, open) in self.workers.iter().zip(open) {
                        if !open.is_empty() {
                            self.tell(worker, Command::Open(peer, open))?;
                        }
                    }
                    for (worker, seal) in self.workers.iter().zip(seals) {
                        self.tell(worker, Command::Seal { peer, seal, sending })?;
                    }
                    self.next_sample.get_or_insert(worker::time_now() + SAMPLE_INTERVAL);
                    self.follow_mtu()?;
                }
                Action::Promote { peer, session } => self.broadcast(|| Command::Promote(peer, session))?,
                Action::Retire { peer, session } => self.broadcast(|| Command::Retire(peer, session))?,
                Action::SendKeepalive { peer } => self.tell_owner(peer, Command::Keepalive(peer))?,
                Action::Endpoint { peer, endpoint } => {
                    self.forget_path_mtu(peer);
                    self.broadcast(|| Command::Endpoint(peer, endpoint))?;
                    if endpoint.local.is_some() {
                        self.ask_for_route(peer);
                    }
                }
                Action::Unanswered { peer } => self.names.unanswered(peer, worker::time_now()),
                Action::HandshakeGivenUp { peer } => {
                    tracing::info!(peer = %self.peers.name(peer), "no answer to handshakes; giving up until traffic");
                    self.peers.handshake_given_up(peer);
                    self.broadcast(|| Command::GiveUp(peer))?;
                }
                Action::HandshakeDone {
                    peer,
                    suite,
                    initiator,
                    remote_lanes,
                } => {
                    tracing::info!(peer = %self.peers.name(peer), ?suite, initiator, remote_lanes, "handshake done");
                    self.peers.handshake_done(peer, suite, remote_lanes, SystemTime::now());
                    self.names.handshake_done(peer, worker::time_now());
                    self.next_sample.get_or_insert(worker::time_now() + SAMPLE_INTERVAL);
                }
            }
        }
        Ok(())
    }

    /// Learns whether somebody has changed the interface's MTU. Only padding depends on it, so once per session will do.
    pub(super) fn follow_mtu(&mut self) -> Result<(), ControlError> {
        match self.mtu.get() {
            Ok(mtu) if mtu != self.facts.mtu => self.set_tun_mtu(u16::try_from(mtu).unwrap_or(u16::MAX)),
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, "cannot ask for the interface's MTU");
                Ok(())
            }
        }
    }

    pub(super) fn transmit(&mut self, peer: Option<PeerId>, to: &Endpoint, datagram: &[u8]) {
        if self.private_key.is_none() {
            return;
        }
        let now = self.now();
        if let Some(state) = self.state.as_mut().filter(|_| peer.is_some()) {
            state.touch(now);
        }
        match self.door.socket.socket.send_to(to, HANDSHAKE_TOS, datagram) {
            Ok(()) => self.peers.sent(peer, datagram.len()),
            Err(error) => {
                tracing::debug!(to = %to.remote, %error, "cannot send a handshake message");
                self.count(Drop::SendFailed);
            }
        }
    }

    pub(super) fn take_reports(&mut self) {
        // More may wait than one turn takes.
        let mut more = self.reports.reports.len() > REPORTS_PER_TURN;
        for _ in 0..REPORTS_PER_TURN {
            let Ok(report) = self.reports.reports.try_recv() else {
                break;
            };
            let now = self.now();
            match report {
                Report::WantSession(peer) => self.device.want_session(peer, now),
                Report::Confirmed(peer, session) => self.device.confirmed(peer, session, now),
                Report::Roamed(peer, endpoint) => {
                    tracing::debug!(peer = %self.peers.name(peer), endpoint = %endpoint.remote, "peer moved");
                    self.forget_path_mtu(peer);
                    self.device.roamed(peer, endpoint);
                }
                Report::PathTooSmall(peer) => {
                    if self.peers.get(peer).is_some_and(|peer| peer.path_mtu.may_ask(now.mono)) {
                        self.ask_path_mtu(peer, now.mono);
                    }
                }
                Report::Rtt(peer, rtt) => self.peers.record_rtt(peer, rtt),
                Report::Goodbye(peer) => tracing::debug!(peer = %self.peers.name(peer), "peer goes down"),
                // These come by a channel of their own.
                Report::Handshake(_) => {}
            }
        }
        more |= self.reports.handshakes.len() > HANDSHAKES_PER_TURN;
        for _ in 0..HANDSHAKES_PER_TURN {
            let Ok(handshake) = self.reports.handshakes.try_recv() else {
                break;
            };
            let (now, from, datagram) = (self.now(), handshake.from, &handshake.datagram[..]);
            match self.device.handle_admitted(now, from, datagram) {
                Ok(Some(peer)) => self.peers.received(peer, datagram.len()),
                Ok(None) => {}
                Err(rejected) => self.count(rejected.into()),
            }
        }
        if more {
            self.reports.news.notify_one();
        }
    }

    pub(super) fn count(&mut self, reason: Drop) {
        *self.drops.entry(reason.name()).or_default() += 1;
    }

    /// Everything that is due.
    pub(super) fn time_passes(&mut self) {
        let now = self.now();
        if self.next_sample.is_some_and(|due| due <= now.mono) {
            self.count_socket_drops();
            let busy = self.peers.sample(&mut self.device, now);
            self.next_sample = busy.any_session.then(|| now.mono + SAMPLE_INTERVAL);
            for peer in busy.echo {
                // A worker that has died ends the loop by itself.
                let _ = self.tell_owner(peer, Command::Echo(peer));
            }
            for peer in busy.path_mtu {
                self.ask_path_mtu(peer, now.mono);
            }
        }
        if self.device.poll_timeout().is_some_and(|due| due <= now.mono) {
            self.device.handle_timeout(now);
        }
        self.begin_lookups();
        if let Some(mut state) = self.state.take() {
            if state.poll_timeout().is_some_and(|due| due <= now.mono) {
                state.write(now, self.timestamps());
            }
            self.state = Some(state);
        }
    }
}
