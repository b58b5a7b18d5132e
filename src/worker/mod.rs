//! One worker per core: the loop that moves packets between one TUN queue and one UDP socket.
//!
//! A pass has visible phases:
//! 1. *submit and wait*: the engine submits what the last pass queued and returns with what completed, by one kernel entry where it need not
//!    sleep;
//! 2. *mailbox*: commands, and datagrams of other workers' sockets;
//! 3. *reap*: each completion goes through the data path, which queues batches and groups;
//! 4. *flush*: batches become sends, groups become TUN writes, reports and hand-overs leave.
//!
//! The clocks are read once per pass.
#![forbid(unsafe_code)]

mod captures;
pub mod door;
pub mod mailbox;
pub mod placement;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use captures::Captures;
use mailbox::{COMMANDS_MAX, Command, Mailbox};
use placement::Placement;
use tokio::sync::mpsc;

use crate::path::coalesce::Group;
use crate::path::drops::Drop;
use crate::path::forward::{Forwarder, Halves};
use crate::path::report::Report;
use crate::proto::{PeerId, Time};
use crate::stats::counters::WorkerCounters;
use crate::stats::latency::{Stage, StageHistograms};
use crate::sys::clock;
use crate::sys::engine::{Engine, Event, SendRun, SendSlots, Sent, TxSlot, UdpBuffer, Wait};

/// Completions in one pass from which on its traffic counts as busy.
const BUSY_EVENTS_MIN: usize = 8;
/// Mean bytes per completion below which a busy pass had small packets: batching completions then pays more
/// than answering each at once.
const SMALL_EVENT_BYTES: usize = 2048;
/// How to wait for more of the same when a busy pass had small packets (as many as a batch needs to pay; the window bounds what it costs a lone packet).
const SMALL_PACKETS_WAIT: Wait = Wait::Batch {
    events: 16,
    window: Duration::from_micros(50),
    timeout: None,
};
/// Hand-overs taken in one pass, each at most a receive buffer, so that strangers' mis-steered datagrams do not stop
/// the worker's own.
const HANDOVERS_PER_PASS: usize = 16;
/// How soon a report is tried again that found its channel full.
const REPORT_RETRY: Duration = Duration::from_millis(1);
/// DSCP AF41 for handshakes, as WireGuard marks them (drivers/net/wireguard/messages.h, HANDSHAKE_DSCP).
pub const HANDSHAKE_TOS: u8 = 0x88;
/// How long a worker that gives its keys away waits for the last sends and writes, which take no time unless something is
/// wrong with the kernel.
const LAST_PASSES_TIME_MAX: Duration = Duration::from_secs(1);

/// One core's share of the tunnel.
pub struct Worker<E: Engine> {
    number: u8,
    engine: E,
    slots: SendSlots,
    forwarder: Forwarder<TxSlot>,
    mailbox: Mailbox,
    counters: Arc<WorkerCounters>,
    /// The pass's receive buffers; groups refer to their bytes until they are written.
    received: Vec<UdpBuffer>,
    histograms: Box<StageHistograms>,
    captures: Captures,
    placement: Placement,
    /// Reports that found the channel full and may not be lost.
    unsent: Vec<Report>,
    wait: Wait,
    /// Who is to be told once all that was read has left.
    pausing: Option<mpsc::Sender<(u8, ())>>,
}

/// Why a pass was the last one.
enum Turn {
    Continue,
    Stop,
    /// And its keys go there.
    HandOver(mpsc::Sender<(u8, Halves)>),
}

impl<E: Engine> Worker<E> {
    /// Worker `number`, with its engine already set up on the calling thread.
    pub fn new(
        number: u8,
        engine: E,
        forwarder: Forwarder<TxSlot>,
        mailbox: Mailbox,
        placement: Placement,
        counters: Arc<WorkerCounters>,
    ) -> Worker<E> {
        Worker {
            number,
            slots: engine.slots(),
            engine,
            forwarder,
            mailbox,
            counters,
            histograms: Box::default(),
            captures: Captures::default(),
            placement,
            received: Vec::new(),
            unsent: Vec::new(),
            wait: Wait::Block,
            pausing: None,
        }
    }

    /// As [`Worker::run`], once [`Command::Begin`] comes. Until then packets wait in the kernel: without the keys and peers that
    /// are on their way they would be lost.
    pub fn run_when_told(mut self) -> io::Result<()> {
        loop {
            match self.mailbox.commands.recv() {
                Ok(Command::Begin) => return self.run(),
                Ok(Command::HandOver(to)) => return self.hand_over(time_now(), &mut Vec::new(), &to),
                Ok(Command::Stop) | Err(_) => return Ok(()),
                Ok(Command::ReplaceUdp(socket)) => self.engine.replace_udp(socket)?,
                Ok(command) => self.obey(time_now(), command),
            }
        }
    }

    /// Moves packets until told to stop, or until the kernel refuses to go on.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(1024);
        loop {
            self.engine.turn(self.wait, &mut events)?;
            self.counters.loops.add(1);
            let now = time_now();
            // Keys before the datagrams that are sealed with them. Those may have come without the ring for the keys, which were
            // put into the mailbox after this turn had looked for rings and before it received.
            if !self.mailbox.is_empty() {
                match self.mailbox(now)? {
                    Turn::Continue => {}
                    Turn::Stop => {
                        self.flush(now);
                        return self.engine.turn(Wait::Now, &mut events);
                    }
                    Turn::HandOver(to) => return self.hand_over(now, &mut events, &to),
                }
            }
            self.reap(now, &mut events);
            self.flush(now);
            if self.pausing.is_some() && self.is_still() {
                // Who does not wait any more has changed his mind.
                self.pausing.take().map(|to| to.try_send((self.number, ())));
            }
        }
    }

    /// Whether the worker has nothing left of all that it has read and been handed.
    fn is_still(&self) -> bool {
        self.engine.is_still() && self.mailbox.handovers.is_empty()
    }

    /// Carries what has arrived to its end, then gives the keys away. What arrives later waits in the kernel for whoever reads
    /// next from the same queue and socket.
    fn hand_over(mut self, now: Time, events: &mut Vec<Event>, to: &mpsc::Sender<(u8, Halves)>) -> io::Result<()> {
        self.engine.pause();
        let deadline = now + LAST_PASSES_TIME_MAX;
        loop {
            for mut handover in self.mailbox.handovers.try_iter() {
                self.forwarder.handed_over(now, &mut handover, &mut self.slots);
            }
            self.reap(now, events);
            self.flush(now);
            if self.is_still() || time_now() >= deadline {
                break;
            }
            self.engine.turn(Wait::For(REPORT_RETRY), events)?;
        }
        // Who does not wait any more goes down.
        let _ = to.try_send((self.number, self.forwarder.into_halves()));
        Ok(())
    }

    /// Sends every completion through the data path.
    fn reap(&mut self, now: Time, events: &mut Vec<Event>) {
        let unix_ns = clock::unix_ns();
        let (completions, mut bytes) = (events.len(), 0);
        for event in events.drain(..) {
            match event {
                Event::Tun(buffer) => {
                    bytes += buffer.frame().len();
                    self.forwarder.outbound(now, buffer.frame(), &mut self.slots);
                }
                Event::Udp(mut buffer) => {
                    let index = buffer.index();
                    let (received, payload) = self.engine.datagrams(&mut buffer);
                    bytes += payload.len();
                    self.forwarder.inbound(now, &received, index, payload, &mut self.slots);
                    self.received.push(buffer);
                }
                Event::Written { group, result } => self.written(unix_ns, group, result),
                Event::Sent(sent) => self.sent(&sent),
                // The mailbox has been looked into.
                Event::Woken => {}
            }
        }
        self.placement.came(now, bytes);
        let small = completions >= BUSY_EVENTS_MIN && bytes < completions * SMALL_EVENT_BYTES;
        self.wait = if small { SMALL_PACKETS_WAIT } else { Wait::Block };
    }

    fn written(&mut self, unix_ns: u64, group: Group, result: Result<(), i32>) {
        let packets = u64::from(group.packets());
        match result {
            Ok(()) => {
                self.counters.tun_writes.add(1);
                self.counters.tun_write_packets.add(packets);
                self.histograms.record(Stage::WriteBatch, packets, 1);
                if group.received_ns() != 0 {
                    let latency_ns = unix_ns.saturating_sub(group.received_ns());
                    self.histograms.record(Stage::UdpToTun, latency_ns, packets);
                }
            }
            Err(_) => self.counters.dropped(Drop::TunWriteFailed, packets),
        }
        self.forwarder.recycle(group);
    }

    fn sent(&mut self, sent: &Sent) {
        let peer = PeerId(sent.tag as u32);
        if sent.stale_source {
            self.forwarder.forget_source(peer);
        }
        let lost = u64::from(sent.count - sent.taken);
        match sent.result {
            Ok(()) => {}
            // The engine has sent the run again, in fragments; `lost` of them did not leave even so.
            Err(libc::EMSGSIZE) => {
                self.forwarder.reports.push(Report::PathTooSmall(peer));
                self.counters.dropped(Drop::TooBig, lost);
            }
            Err(libc::EAGAIN | libc::ENOBUFS) => self.counters.dropped(Drop::SendBufferFull, lost),
            Err(_) => self.counters.dropped(Drop::SendFailed, lost),
        }
    }

    fn mailbox(&mut self, now: Time) -> io::Result<Turn> {
        // Their packets are in memory of their own: while writes wait they stay in the mailbox, which is bounded.
        let most = if self.engine.writes_waiting() == 0 {
            HANDOVERS_PER_PASS
        } else {
            0
        };
        // Those that are there by now: what comes later may need keys that are not among this pass's commands.
        let handovers = self.mailbox.handovers.len().min(most);
        // No more than may wait at one time.
        for _ in 0..COMMANDS_MAX {
            match self.mailbox.commands.try_recv() {
                Ok(Command::Stop) => return Ok(Turn::Stop),
                Ok(Command::HandOver(to)) => return Ok(Turn::HandOver(to)),
                Ok(Command::ReplaceUdp(socket)) => self.engine.replace_udp(socket)?,
                Ok(command) => self.obey(now, command),
                Err(_) => break,
            }
        }
        for mut handover in self.mailbox.handovers.try_iter().take(handovers) {
            self.forwarder.handed_over(now, &mut handover, &mut self.slots);
        }
        if !self.mailbox.is_empty() {
            self.mailbox.ring_self(self.number);
        }
        Ok(Turn::Continue)
    }

    fn obey(&mut self, now: Time, command: Command) {
        let forwarder = &mut self.forwarder;
        let slots = &mut self.slots;
        match command {
            Command::AddPeer(peer, new) => forwarder.add_peer(peer, new),
            Command::RemovePeer(peer) => {
                forwarder.remove_peer(peer);
                self.captures.end_of(self.number, &mut forwarder.taps, peer);
                self.unsent.retain(|report| report.peer() != Some(peer));
            }
            Command::Routes(routes) => forwarder.set_routes(routes),
            Command::Open(peer, halves) => forwarder.open_with(peer, halves),
            Command::Seal { peer, seal, sending } => {
                forwarder.seal_with(now, peer, seal.map(|seal| *seal), sending, slots);
            }
            Command::Promote(peer, session) => forwarder.promote(now, peer, session, slots),
            Command::Retire(peer, session) => forwarder.retire(peer, session),
            Command::Endpoint(peer, endpoint) => forwarder.set_endpoint(peer, endpoint),
            Command::RefuseSource(peer, source) => forwarder.refuse_source(peer, source),
            Command::PathMtu(peer, mtu) => forwarder.set_path_mtu(peer, mtu),
            Command::TunMtu(mtu) => forwarder.set_tun_mtu(mtu),
            Command::Keepalive(peer) => forwarder.send_keepalive(now, peer, slots),
            Command::Echo(peer) => forwarder.send_echo(now, peer, slots),
            Command::Goodbye(peer) => forwarder.send_goodbye(now, peer, slots),
            Command::GiveUp(peer) => forwarder.give_up(peer),
            Command::TakeHistograms(empty, reply) => {
                if let Err(error) = reply.try_send((self.number, self.histograms.swap(empty))) {
                    // The reader has given up: the next one gets these samples.
                    self.histograms = error.into_inner().1;
                }
            }
            Command::EngineCounters(reply) => {
                let _ = reply.try_send((self.number, self.engine.counters()));
            }
            Command::Explain(source, destination, reply) => {
                let explanation = forwarder.explain(now, source, destination);
                let _ = reply.try_send((self.number, explanation));
            }
            Command::BeginCapture(tap, to) => self.captures.begin(&mut forwarder.taps, *tap, to),
            Command::ReturnChunk(capture, chunk) => captures::give_back(&mut forwarder.taps, capture, chunk),
            Command::EndCapture(capture) => self.captures.end(&mut forwarder.taps, capture),
            Command::EndCaptures => self.captures.end_all(self.number, &mut forwarder.taps),
            Command::Pause(to) => {
                self.engine.pause();
                self.pausing = Some(to);
            }
            Command::GoOn => {
                self.engine.go_on();
                self.pausing = None;
            }
            Command::Answer(done) => {
                let _ = done.try_send(self.number);
            }
            // Whoever took them out of the mailbox carries these out.
            Command::Begin | Command::ReplaceUdp(_) | Command::HandOver(_) | Command::Stop => {}
        }
    }

    /// Gives everything that the pass produced to whom it concerns.
    fn flush(&mut self, now: Time) {
        self.forwarder.finish_pass();
        for mut group in self.forwarder.groups.drain(..) {
            let queue = self.placement.queue(now, group.connection());
            group.queue = queue.filter(|&queue| queue != self.number);
            self.engine.write(group);
        }
        // What no write refers to goes back to the kernel here.
        self.received.clear();
        self.send_batches(now);
        for handover in self.forwarder.handovers.drain(..) {
            let datagrams = handover.bytes.len().div_ceil(handover.received.segment.max(1)) as u64;
            if !self.mailbox.hand_over(handover) {
                self.counters.dropped(Drop::MailboxFull, datagrams);
            }
        }
        if !self.forwarder.taps.is_empty() {
            self.captures.deliver(self.number, &mut self.forwarder.taps);
        }
        self.report();
    }

    fn send_batches(&mut self, now: Time) {
        let mut latency_ns = None;
        for batch in self.forwarder.batches.drain() {
            let latency_ns = *latency_ns.get_or_insert_with(|| (time_now() - now).as_nanos() as u64);
            self.histograms
                .record(Stage::TunToUdp, latency_ns, u64::from(batch.count));
            self.histograms.record(Stage::SendBatch, u64::from(batch.count), 1);
            self.counters.udp_sends.add(1);
            self.counters.udp_send_datagrams.add(u64::from(batch.count));
            self.engine.send(SendRun {
                slot: batch.slot,
                len: batch.len,
                segment: batch.segment,
                count: batch.count,
                to: batch.to,
                tos: batch.outer.tos,
                lane_port: batch.outer.lane_port,
                tag: u64::from(batch.peer.0),
            });
        }
    }

    fn report(&mut self) {
        if self.unsent.is_empty() && self.forwarder.reports.is_empty() {
            return;
        }
        self.unsent.append(&mut self.forwarder.reports);
        let mut refused: Vec<Report> = Vec::new();
        for report in self.unsent.drain(..) {
            match self.mailbox.report(report) {
                Ok(()) => {}
                Err(Report::Handshake(_)) => self.counters.dropped(Drop::HandshakeQueueFull, 1),
                // Only these two may not be lost, and of a peer only the latest of each counts: so this is bounded.
                Err(report @ (Report::Confirmed(..) | Report::Roamed(..))) => {
                    let is_older = |other: &Report| {
                        std::mem::discriminant(other) == std::mem::discriminant(&report)
                            && other.peer() == report.peer()
                    };
                    refused.retain(|other| !is_older(other));
                    refused.push(report);
                }
                Err(_) => {}
            }
        }
        if !refused.is_empty() {
            self.wait = Wait::For(REPORT_RETRY);
        }
        self.unsent = refused;
        self.mailbox.wake_control();
    }
}

/// The protocol's time. It goes on while the machine sleeps, so that keys grow old meanwhile.
pub fn time_now() -> Time {
    Time::from_nanos(clock::boot_ns())
}
