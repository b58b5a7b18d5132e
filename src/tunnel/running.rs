//! A tunnel whose packets ringway carries, while it runs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::{mpsc, oneshot};

use super::check;
use super::error::Error;
use super::statistics::Statistics;
use super::wait::wait;
use crate::config::{Config, PublicKey};
use crate::control::Order;
use crate::control::api::{LatencyReport, PeerReport, Request, Response, StatusReport};
use crate::gateway::{RunError, Wish, embed};
use crate::sys::tun_mtu::TunMtu;

/// A tunnel that [`Builder::connect`](super::Builder::connect) has made. It runs on threads of its own, until it is dropped.
///
/// All methods take `&self`: threads may share a tunnel. None of them is `async`, but they may be called from asynchronous
/// code: they wait for the tunnel's own threads only, usually for less than a millisecond.
pub struct Tunnel {
    name: String,
    index: u32,
    session: Option<String>,
    tun: OwnedFd,
    mtu: Mutex<TunMtu>,
    orders: mpsc::Sender<Order>,
    wishes: mpsc::Sender<Wish>,
    baseline: Mutex<Baseline>,
    running: Running,
}

/// The tunnel's thread, which ends when this is dropped.
struct Running {
    end: Option<mpsc::Sender<Infallible>>,
    thread: Option<JoinHandle<Result<(), RunError>>>,
}

/// What had been counted at the last reset.
#[derive(Default)]
struct Baseline {
    total: Statistics,
    peers: HashMap<PublicKey, Statistics>,
}

impl Tunnel {
    pub(super) fn start(config: Config, session: Option<String>) -> Result<Tunnel, Error> {
        let (end, ended) = mpsc::channel(1);
        let (ready, up) = channel();
        let description = session.clone();
        let thread = thread::Builder::new().name("tunnel-control".into()).spawn(move || {
            embed(&config, description.as_deref(), ended, |embedded| {
                // Whoever started it waits.
                let _ = ready.send(embedded);
            })
        })?;
        let mut running = Running {
            end: Some(end),
            thread: Some(thread),
        };
        let Ok(embedded) = up.recv() else {
            // It never came up, and says why.
            return Err(running.end().err().unwrap_or(Error::Ended));
        };
        Ok(Tunnel {
            name: embedded.name,
            index: embedded.ifindex,
            session,
            tun: embedded.tun.descriptor()?,
            mtu: Mutex::new(embedded.tun),
            orders: embedded.orders,
            wishes: embedded.wishes,
            baseline: Mutex::default(),
            running,
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What people call the tunnel.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Whether packets are carried. A tunnel ends by itself when somebody removes its interface, or when a worker fails; then
    /// [`Tunnel::disconnect`] says why.
    pub fn is_running(&self) -> bool {
        self.running.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The interface's MTU in bytes, whoever has set it.
    ///
    /// # Errors
    /// What the kernel says, for example that the interface was removed.
    pub fn mtu(&self) -> Result<u32, Error> {
        Ok(self.mtu.lock().unwrap_or_else(PoisonError::into_inner).get()?)
    }

    /// Changes the interface's MTU while packets flow, to 576 to 65535 bytes.
    ///
    /// # Errors
    /// [`Error::Argument`], or what the kernel says.
    pub fn set_mtu(&self, bytes: u16) -> Result<(), Error> {
        check::check_mtu("set_mtu", bytes)?;
        let (answer, answered) = oneshot::channel();
        wait(self.wishes.send(Wish::Mtu(bytes, answer))).map_err(|_| Error::Ended)?;
        Ok(wait(answered).map_err(|_| Error::Ended)??)
    }

    /// What has passed through the tunnel since it came up, or since [`Tunnel::reset_statistics`].
    ///
    /// # Errors
    /// [`Error::Ended`]; [`Error::Answer`] when a worker is too busy to answer.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        let baseline = self.baseline();
        Ok(total(&self.report()?) - baseline.total)
    }

    /// As [`Tunnel::statistics`], which begin anew with this, as do the counters of [`Tunnel::peers`] and the samples of
    /// [`Tunnel::latency`]. No packet is counted twice, and none is lost in between.
    ///
    /// # Errors
    /// As there; nothing begins anew then.
    pub fn reset_statistics(&self) -> Result<Statistics, Error> {
        let mut baseline = self.baseline();
        self.ask_latency(true)?;
        let report = self.report()?;
        let counted = |peer: &PeerReport| (peer.public_key, Statistics::of_peer(peer));
        let new = Baseline {
            total: total(&report),
            peers: report.peers.iter().map(counted).collect(),
        };
        let before = std::mem::replace(&mut *baseline, new);
        Ok(baseline.total - before.total)
    }

    /// The peers as they are. Their packets and bytes count since the last [`Tunnel::reset_statistics`]; those bytes are of the
    /// outer datagrams, as `wg` counts.
    ///
    /// # Errors
    /// As [`Tunnel::statistics`].
    pub fn peers(&self) -> Result<Vec<PeerReport>, Error> {
        let baseline = self.baseline();
        let mut peers = self.report()?.peers;
        for peer in &mut peers {
            let before = baseline.peers.get(&peer.public_key).copied().unwrap_or_default();
            let since = Statistics::of_peer(peer) - before;
            (peer.tx_packets, peer.tx_bytes) = (since.tx_packets, since.tx_bytes);
            (peer.rx_packets, peer.rx_bytes) = (since.rx_packets, since.rx_bytes);
        }
        Ok(peers)
    }

    /// How long packets took inside of ringway, by stage, and round trips to ringway peers, since the last
    /// [`Tunnel::reset_statistics`].
    ///
    /// # Errors
    /// As [`Tunnel::statistics`].
    pub fn latency(&self) -> Result<LatencyReport, Error> {
        self.ask_latency(false)
    }

    /// All that `ringway status` tells of a tunnel, from its very beginning.
    ///
    /// # Errors
    /// As [`Tunnel::statistics`].
    pub fn report(&self) -> Result<StatusReport, Error> {
        match self.ask(Request::Status {})? {
            Response::Status(report) => Ok(*report),
            _ => Err(Error::Ended),
        }
    }

    /// Tells peers goodbye, puts the system back as it was and removes the interface, as dropping does, but says what went
    /// wrong.
    ///
    /// # Errors
    /// Why the tunnel had ended before.
    pub fn disconnect(mut self) -> Result<(), Error> {
        self.running.end()
    }

    fn ask_latency(&self, reset: bool) -> Result<LatencyReport, Error> {
        match self.ask(Request::Latency { reset })? {
            Response::Latency(report) => Ok(*report),
            _ => Err(Error::Ended),
        }
    }

    fn ask(&self, request: Request) -> Result<Response, Error> {
        let (answer, answered) = oneshot::channel();
        wait(self.orders.send(Order::Answer(request, answer))).map_err(|_| Error::Ended)?;
        match wait(answered) {
            Ok(Response::Error(error)) => Err(error.into()),
            Ok(response) => Ok(response),
            Err(_) => Err(Error::Ended),
        }
    }

    fn baseline(&self) -> std::sync::MutexGuard<'_, Baseline> {
        self.baseline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A descriptor of the TUN, to ask about it or to hand it on; it also keeps the interface alive. Packets are the workers' to
/// read: who reads here takes some of them away.
impl AsFd for Tunnel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel")
            .field("name", &self.name)
            .field("index", &self.index)
            .field("is_running", &self.is_running())
            .finish_non_exhaustive()
    }
}

impl Running {
    /// Ends the thread if it still runs; why it had ended before, if it had.
    fn end(&mut self) -> Result<(), Error> {
        self.end = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => Ok(result?),
            // Its panic was reported by the hook.
            Some(Err(_)) => Err(Error::Ended),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "the tunnel had ended by itself");
        }
    }
}

fn total(report: &StatusReport) -> Statistics {
    let mut total = Statistics::default();
    for worker in &report.workers {
        total.tx_packets += worker.tx.packets;
        total.tx_bytes += worker.tx.bytes;
        total.rx_packets += worker.rx.packets;
        total.rx_bytes += worker.rx.bytes;
        total.dropped += worker.drops.values().sum::<u64>();
    }
    total.dropped += report.control_drops.values().sum::<u64>();
    total
}

impl Statistics {
    fn of_peer(peer: &PeerReport) -> Statistics {
        Statistics {
            tx_packets: peer.tx_packets,
            tx_bytes: peer.tx_bytes,
            rx_packets: peer.rx_packets,
            rx_bytes: peer.rx_bytes,
            dropped: 0,
        }
    }
}
