//! What crosses threads: commands down from the control thread, reports up to it, datagrams across to other
//! workers. Every channel is bounded. A worker never waits for one; the control thread may, since workers always
//! drain theirs.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::{Notify, mpsc};

use crate::path::capture::{Chunk, Tap};
use crate::path::forward::Halves;
use crate::path::forward::explain::Explanation;
use crate::path::peers::NewPeer;
use crate::path::report::{Handover, Handshake, Report};
use crate::path::route::RouteTable;
use crate::proto::{Endpoint, Local, OpenHalf, PeerId, SealHalf, SessionId};
use crate::stats::latency::StageHistograms;
use crate::sys::engine::EngineCounters;
use crate::sys::udp::UdpSocket;
use crate::sys::wake::Waker;

/// Commands that may wait in one worker's mailbox.
pub(super) const COMMANDS_MAX: usize = 1024;
/// Batches of mis-steered datagrams that may wait; each is at most one receive buffer.
const HANDOVERS_MAX: usize = 64;
/// Handshake messages that may wait for the control thread.
const HANDSHAKES_MAX: usize = 1024;
/// Handshake messages that came to workers and may wait for the door; steering lets few come there.
const STRAYS_MAX: usize = 64;
/// Other reports that may wait for the control thread.
const REPORTS_MAX: usize = 4096;

/// What the control thread tells a worker.
pub enum Command {
    /// Make a peer known.
    AddPeer(PeerId, Arc<NewPeer>),
    /// Forget a peer.
    RemovePeer(PeerId),
    /// New allowed IPs of all peers.
    Routes(Arc<RouteTable<PeerId>>),
    /// Open the lanes of a new session that this worker owns.
    Open(PeerId, Vec<OpenHalf>),
    /// Seal on this worker's lane of a new session: at once if `sending`. Comes when all workers have been told what they
    /// are to open, since the peer may answer to another worker than the one that it heard from.
    Seal {
        /// Whose.
        peer: PeerId,
        /// None: this worker has no lane.
        seal: Option<Box<SealHalf>>,
        /// Else from the first authentic datagram of the session on.
        sending: bool,
    },
    /// Seal with the next session's keys from now on.
    Promote(PeerId, SessionId),
    /// Forget a session's keys.
    Retire(PeerId, SessionId),
    /// Send to another address.
    Endpoint(PeerId, Endpoint),
    /// Do not answer the peer from this address of ours while it stays where it is; none: from any again.
    RefuseSource(PeerId, Option<Local>),
    /// The largest inner packet for the path, in bytes.
    PathMtu(PeerId, usize),
    /// The interface's MTU.
    TunMtu(usize),
    /// Send an empty message.
    Keepalive(PeerId),
    /// Measure the round-trip time.
    Echo(PeerId),
    /// Tell the peer that this end goes down.
    Goodbye(PeerId),
    /// Drop what waits for the peer's handshake.
    GiveUp(PeerId),
    /// Put the empty histograms in place of the worker's and send those back, with the worker's number.
    TakeHistograms(Box<StageHistograms>, mpsc::Sender<(u8, Box<StageHistograms>)>),
    /// Send the engine's counters, with the worker's number.
    EngineCounters(mpsc::Sender<(u8, EngineCounters)>),
    /// Receive from and send on another socket.
    ReplaceUdp(UdpSocket),
    /// Send the worker's number: everything before this was carried out.
    Answer(Sender<u8>),
    /// Say what would become of a packet from one address to another, with the worker's number.
    Explain(IpAddr, IpAddr, mpsc::Sender<(u8, Explanation)>),
    /// Copy packets, and send the copies with the worker's number. The channel has room for all chunks of the tap.
    BeginCapture(Box<Tap>, mpsc::Sender<(u8, Chunk)>),
    /// A chunk of the capture of this number was looked at.
    ReturnChunk(u64, Chunk),
    /// Nobody looks at the capture of this number any more.
    EndCapture(u64),
    /// End all captures; what was copied until then is sent.
    EndCaptures,
    /// Begin to move packets, for a worker that waits for what an earlier process knew.
    Begin,
    /// Read nothing more, carry what was read to its end, and send the worker's number then.
    Pause(mpsc::Sender<(u8, ())>),
    /// Read again.
    GoOn,
    /// End the thread once all that came to it has left, and send the keys that it had, with the worker's number.
    HandOver(mpsc::Sender<(u8, Halves)>),
    /// End the thread.
    Stop,
}

/// The control thread's end of one worker's mailbox.
#[derive(Clone)]
pub struct WorkerPort {
    commands: Sender<Command>,
    handovers: Sender<Handover>,
    waker: Waker,
}

/// The worker has ended and takes no more.
#[derive(Debug, thiserror::Error)]
#[error("the worker thread has ended")]
pub struct WorkerGone;

impl WorkerPort {
    fn hand_over(&self, handover: Handover) -> bool {
        let taken = self.handovers.try_send(handover).is_ok();
        self.waker.wake();
        taken
    }

    /// Queues a command and wakes the worker; waits while the mailbox is full.
    pub fn send(&self, command: Command) -> Result<(), WorkerGone> {
        let full = match self.commands.try_send(command) {
            Ok(()) => None,
            Err(TrySendError::Full(command)) => Some(command),
            Err(TrySendError::Disconnected(_)) => return Err(WorkerGone),
        };
        self.waker.wake();
        match full {
            Some(command) => {
                self.commands.send(command).map_err(|_| WorkerGone)?;
                self.waker.wake();
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// A worker's end of its mailbox, and its ways to everybody else.
pub struct Mailbox {
    /// Commands from the control thread.
    pub commands: Receiver<Command>,
    /// Datagrams that other workers received for this one.
    pub handovers: Receiver<Handover>,
    /// Every worker's mailbox, this one's included.
    peers: Vec<WorkerPort>,
    door: StrayPort,
    control: ReportPort,
}

/// A worker's way to the door.
#[derive(Clone)]
struct StrayPort {
    strays: Sender<Handshake>,
    waker: Waker,
}

/// The door's end of its channels, and its ways to everybody else.
pub struct DoorMailbox {
    /// What came to workers and is no data.
    pub strays: Receiver<Handshake>,
    /// The way of what is let in.
    pub control: HandshakePort,
    workers: Vec<WorkerPort>,
}

impl DoorMailbox {
    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Hands data messages to their owner; false when its mailbox is full.
    pub fn hand_over(&self, handover: Handover) -> bool {
        self.workers[usize::from(handover.owner)].hand_over(handover)
    }
}

#[derive(Clone)]
struct ReportPort {
    reports: Sender<Report>,
    news: Arc<Notify>,
}

/// The way of handshake messages to the control thread.
pub struct HandshakePort {
    handshakes: Sender<Handshake>,
    news: Arc<Notify>,
}

impl HandshakePort {
    /// Posts a message without waking the control thread.
    ///
    /// # Errors
    /// The message, when the channel is full.
    pub fn post(&self, handshake: Handshake) -> Result<(), Handshake> {
        self.handshakes.try_send(handshake).map_err(TrySendError::into_inner)
    }

    /// Wakes the control thread.
    pub fn wake(&self) {
        self.news.notify_one();
    }
}

/// The control thread's end of the reports' channels.
pub struct Reports {
    /// Handshake messages that the door let in.
    pub handshakes: Receiver<Handshake>,
    /// Everything else.
    pub reports: Receiver<Report>,
    /// Notified when either has something.
    pub news: Arc<Notify>,
}

/// Builds the channels between `wakers.len()` workers, the door, which is woken by `door`, and the control thread.
pub fn connect(wakers: &[Waker], door: &Waker) -> (Vec<WorkerPort>, Vec<Mailbox>, DoorMailbox, Reports) {
    let (handshakes_in, handshakes) = bounded(HANDSHAKES_MAX);
    let (reports_in, reports) = bounded(REPORTS_MAX);
    let news = Arc::new(Notify::new());
    let (strays_in, strays) = bounded(STRAYS_MAX);
    let door = StrayPort {
        strays: strays_in,
        waker: door.clone(),
    };
    let control = ReportPort {
        reports: reports_in,
        news: news.clone(),
    };
    let (ports, ends): (Vec<_>, Vec<_>) = wakers
        .iter()
        .map(|waker| {
            let (commands, commands_out) = bounded(COMMANDS_MAX);
            let (handovers, handovers_out) = bounded(HANDOVERS_MAX);
            (
                WorkerPort {
                    commands,
                    handovers,
                    waker: waker.clone(),
                },
                (commands_out, handovers_out),
            )
        })
        .unzip();
    let mailboxes = ends
        .into_iter()
        .map(|(commands, handovers)| Mailbox {
            commands,
            handovers,
            peers: ports.clone(),
            door: door.clone(),
            control: control.clone(),
        })
        .collect();
    let door = DoorMailbox {
        strays,
        control: HandshakePort {
            handshakes: handshakes_in,
            news: news.clone(),
        },
        workers: ports.clone(),
    };
    (
        ports,
        mailboxes,
        door,
        Reports {
            handshakes,
            reports,
            news,
        },
    )
}

impl Mailbox {
    /// Whether nothing waits. What somebody put in before he did what this thread has seen by now is not overlooked.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.handovers.is_empty()
    }

    /// Hands datagrams to their owner; false when its mailbox is full.
    pub fn hand_over(&self, handover: Handover) -> bool {
        self.peers[usize::from(handover.owner)].hand_over(handover)
    }

    /// Reports to the control thread without waking it, or to the door, which is woken; gives the report back when its channel
    /// is full.
    pub fn report(&self, report: Report) -> Result<(), Report> {
        match report {
            Report::Handshake(handshake) => {
                let posted = self.door.strays.try_send(handshake);
                self.door.waker.wake();
                posted.map_err(|error| Report::Handshake(error.into_inner()))
            }
            _ => self.control.reports.try_send(report).map_err(TrySendError::into_inner),
        }
    }

    /// Makes worker `number`, this one, look into its mailbox again in its next pass.
    pub fn ring_self(&self, number: u8) {
        self.peers[usize::from(number)].waker.wake();
    }

    /// Wakes the control thread.
    pub fn wake_control(&self) {
        self.control.news.notify_one();
    }
}
