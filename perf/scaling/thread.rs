//! One worker's thread: it builds its data path and owns it, as the daemon's workers do (`gateway::workers`), and does
//! one thing at a time, when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use ringway::path::coalesce::{Coalescer, Offloads};
use ringway::path::forward::Forwarder;
use ringway::path::gso::{Batch, Batches, SEND_LEN_MAX, Slots};
use ringway::path::report::{Received, Report};
use ringway::proto::{Endpoint, Time};
use ringway::stats::counters::WorkerCounters;
use ringway::worker::mailbox::Command;

use crate::trace::{WORKERS_MAX, turn_of, turn_of_nobody};

/// How long a worker waits before its turn, so that whoever told it to begin has gone to sleep: the trace does not say which
/// thread an access is of. What is awake even so, on a very busy machine, counts as the worker's: lines that it touches count as
/// shared, and its instructions as the packet's. So a row that fails is counted again.
const QUIET: Duration = Duration::from_millis(20);
/// Sends that one super-packet may become.
const RUNS_MAX: usize = 4;

/// A word for each worker of either host, next to its neighbours': what no data path should have.
static PLANTED: [Planted; 2] = [const { Planted([const { AtomicU64::new(0) }; WORKERS_MAX]) }; 2];

/// The first sixteen are on one pair of cache lines.
#[repr(align(128))]
struct Planted([AtomicU64; WORKERS_MAX]);

/// What a worker is told to do.
enum Order {
    Obey(Command),
    /// Seal a super-packet of its own; the datagrams go into the post bag.
    Send(Post, Load),
    /// Open this run of the post bag, which comes from there.
    Receive(Post, usize, Endpoint),
}

/// How large a super-packet is.
#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// As small as it can be, where only a session is to be confirmed.
    Least,
    /// As large as the TUN makes them.
    Most,
}

/// What it has done.
struct Done {
    post: Post,
    reports: Vec<Report>,
    /// Packets for the TUN.
    opened: u64,
}

/// Runs of datagrams on their way. It is made by the thread that tells the workers what to do, and goes back to it.
#[derive(Default)]
pub(crate) struct Post {
    bytes: Vec<u8>,
    runs: Vec<Run>,
}

/// Datagrams that leave in one send: `count` of `segment` bytes each, the last perhaps shorter.
struct Run {
    len: usize,
    segment: usize,
    count: usize,
}

/// The other threads' end of a worker.
pub(crate) struct Worker {
    orders: Sender<(Order, Time)>,
    done: Receiver<Done>,
}

impl Post {
    pub(crate) fn new() -> Post {
        Post {
            bytes: Vec::with_capacity(RUNS_MAX * SEND_LEN_MAX),
            runs: Vec::with_capacity(RUNS_MAX),
        }
    }

    /// The bag for other datagrams.
    pub(crate) fn emptied(mut self) -> Post {
        self.bytes.clear();
        self.runs.clear();
        self
    }

    /// How many runs there are, and datagrams in them.
    pub(crate) fn contents(&self) -> (usize, usize) {
        (self.runs.len(), self.runs.iter().map(|run| run.count).sum())
    }

    /// The receiver index of a run, by which the kernel steers it: bytes 4 to 7 of its first datagram.
    pub(crate) fn receiver(&self, run: usize) -> u32 {
        u32::from_le_bytes(*self.bytes_of(run)[4..].first_chunk().expect("a data message"))
    }

    fn bytes_of(&self, run: usize) -> &[u8] {
        let start = self.runs[..run].iter().map(|run| run.len).sum();
        &self.bytes[start..][..self.runs[run].len]
    }

    fn put(&mut self, batch: &Batch<Slot>) {
        self.bytes.extend_from_slice(&batch.slot.bytes()[..batch.len]);
        self.runs.push(Run {
            len: batch.len,
            segment: batch.segment,
            count: batch.count as usize,
        });
    }
}

impl Worker {
    /// Starts worker `number` of `workers` of a host, which sends `frame`s.
    pub(crate) fn start(
        host: usize,
        [number, workers]: [u8; 2],
        planted: bool,
        frame: impl Fn(Load) -> Vec<u8> + Send + 'static,
    ) -> Worker {
        let (orders, ordered) = bounded(1);
        let (finished, done) = bounded(1);
        thread::spawn(move || {
            let mut work = Work::new(host, [number, workers], planted, frame);
            for (order, now) in ordered {
                let done = work.carry_out(order, now);
                if finished.send(done).is_err() {
                    return;
                }
            }
        });
        Worker { orders, done }
    }

    /// Gives it what the control thread tells a worker.
    pub(crate) fn tell(&self, command: Command, now: Time) {
        self.ask(Order::Obey(command), now);
    }

    /// Lets it seal a super-packet of its own into `post`, which was emptied; and what it reports.
    pub(crate) fn send(&self, post: Post, load: Load, now: Time) -> (Post, Vec<Report>) {
        let Done { post, reports, .. } = self.ask(Order::Send(post, load), now);
        (post, reports)
    }

    /// Lets it open a run of `post`; what it reports, and how many packets it has opened.
    pub(crate) fn receive(&self, post: Post, run: usize, from: Endpoint, now: Time) -> (Post, Vec<Report>, u64) {
        let Done { post, reports, opened } = self.ask(Order::Receive(post, run, from), now);
        (post, reports, opened)
    }

    fn ask(&self, order: Order, now: Time) -> Done {
        self.orders.send((order, now)).expect("the worker waits for orders");
        self.done.recv().expect("the worker answers each order")
    }
}

/// What the worker's thread owns.
struct Work {
    host: usize,
    number: usize,
    planted: bool,
    counters: Arc<WorkerCounters>,
    forwarder: Forwarder<Slot>,
    slots: Free,
    /// The super-packets that it sends, as read from the TUN: the least, and the largest.
    frames: [Vec<u8>; 2],
    /// What it receives, as read from the socket.
    received: Slot,
    sent: Vec<Batch<Slot>>,
}

/// Memory for datagrams. The daemon's is in pages of its own (`sys::pool`); here nothing else lies on its first and last lines.
struct Slot(Box<[u8]>);

/// Unused bytes before and behind a slot: a pair of cache lines.
const MARGIN: usize = 128;

impl Slot {
    fn new() -> Slot {
        Slot(vec![0; MARGIN + SEND_LEN_MAX + MARGIN].into())
    }

    fn bytes(&self) -> &[u8] {
        &self.0[MARGIN..][..SEND_LEN_MAX]
    }
}

impl AsMut<[u8]> for Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0[MARGIN..][..SEND_LEN_MAX]
    }
}

/// Send slots, used again and again.
struct Free(Vec<Slot>);

impl Slots for Free {
    type Slot = Slot;

    fn acquire(&mut self) -> Option<Slot> {
        Some(self.0.pop().unwrap_or_else(Slot::new))
    }
}

impl Work {
    fn new(host: usize, [number, workers]: [u8; 2], planted: bool, frame: impl Fn(Load) -> Vec<u8>) -> Work {
        let coalescer = Coalescer::new(Offloads { tcp: true, udp: true });
        let counters = Arc::new(WorkerCounters::default());
        Work {
            host,
            number: usize::from(number),
            planted,
            counters: counters.clone(),
            forwarder: Forwarder::new(number, workers, coalescer, Batches::new(true), 1420, counters),
            slots: Free(Vec::with_capacity(RUNS_MAX)),
            frames: [Load::Least, Load::Most].map(frame),
            received: Slot::new(),
            sent: Vec::with_capacity(RUNS_MAX),
        }
    }

    fn carry_out(&mut self, order: Order, now: Time) -> Done {
        let before = self.counters.packets_in.get();
        let post = match order {
            Order::Obey(command) => {
                self.obey(command, now);
                Post::default()
            }
            Order::Send(post, load) => self.send(post, load, now),
            Order::Receive(post, run, from) => self.receive(post, run, from, now),
        };
        let drops = self.counters.snapshot().drops;
        assert!(drops.is_empty(), "honest packets: {drops:?}");
        Done {
            post,
            reports: self.forwarder.reports.drain(..).collect(),
            opened: self.counters.packets_in.get() - before,
        }
    }

    /// As `ringway::worker` does, what a session needs of it.
    fn obey(&mut self, command: Command, now: Time) {
        let Work { forwarder, slots, .. } = self;
        match command {
            Command::AddPeer(peer, new) => forwarder.add_peer(peer, new),
            Command::Routes(routes) => forwarder.set_routes(routes),
            Command::Open(peer, halves) => forwarder.open_with(peer, halves),
            Command::Seal { peer, seal, sending } => {
                forwarder.seal_with(now, peer, seal.map(|seal| *seal), sending, slots);
            }
            Command::Promote(peer, session) => forwarder.promote(now, peer, session, slots),
            Command::Retire(peer, session) => forwarder.retire(peer, session),
            _ => unreachable!("no session needs it"),
        }
    }

    fn send(&mut self, mut post: Post, load: Load, now: Time) -> Post {
        thread::sleep(QUIET);
        turn_of(self.host, self.number);
        self.forwarder
            .outbound(now, &self.frames[load as usize], &mut self.slots);
        self.forwarder.finish_pass();
        self.sent.extend(self.forwarder.batches.drain());
        self.count_beside_others();
        turn_of_nobody();
        for batch in self.sent.drain(..) {
            post.put(&batch);
            self.slots.0.push(batch.slot);
        }
        post
    }

    fn receive(&mut self, post: Post, run: usize, from: Endpoint, now: Time) -> Post {
        let bytes = post.bytes_of(run);
        let datagrams = &mut self.received.as_mut()[..bytes.len()];
        datagrams.copy_from_slice(bytes);
        let received = Received {
            from,
            segment: post.runs[run].segment,
            tos: 0,
            received_unix_ns: 0,
        };
        thread::sleep(QUIET);
        turn_of(self.host, self.number);
        self.forwarder.inbound(now, &received, 0, datagrams, &mut self.slots);
        self.forwarder.finish_pass();
        let mut groups = 0;
        while let Some(group) = self.forwarder.groups.pop() {
            self.forwarder.recycle(group);
            groups += 1;
        }
        self.count_beside_others();
        turn_of_nobody();
        assert!(groups > 0, "what is opened is written");
        post
    }

    /// What has to be noticed, if it was planted.
    fn count_beside_others(&self) {
        if self.planted {
            PLANTED[self.host].0[self.number].fetch_add(1, Ordering::Relaxed);
        }
    }
}
