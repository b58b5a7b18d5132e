//! Starts one thread per core, each with its engine.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, bounded};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::RunError;
use crate::control::changes::Sockets;
use crate::control::{ControlError, Descriptors, DoorInfo, WorkerInfo, Workforce};
use crate::link::MTU_DEFAULT;
use crate::path::coalesce::{self, Coalescer};
use crate::path::forward::Forwarder;
use crate::path::gso::Batches;
use crate::proto::Doorman;
use crate::sandbox;
use crate::stats::counters::{CounterSnapshot, WorkerCounters};
use crate::sys::cpu::{self, Core};
use crate::sys::engine::Engine;
use crate::sys::exec;
use crate::sys::plain::Plain;
use crate::sys::tun::{self, TunQueue};
use crate::sys::udp::UdpSocket;
use crate::sys::uring::Uring;
use crate::sys::wake::{self, Wake, Waker};
use crate::worker::Worker;
use crate::worker::door::Door;
use crate::worker::mailbox::{self, DoorMailbox, Mailbox};
use crate::worker::placement::{Loads, Placement};

/// How much the door stands back behind the workers where all cores are busy: about a quarter of a core is left to it
/// (the kernel's sched_prio_to_weight), which lets it look at 100,000 messages a second, while packets go on.
const DOOR_NICE: i32 = 5;

/// What all workers have in common.
pub(super) struct Plan {
    /// Use io_uring.
    pub(super) uring: bool,
    /// Why not, when it was wanted.
    pub(super) refusal: Option<String>,
    /// Cores to pin workers to, in turn; none leaves them where the scheduler likes, which knows better than a fixed
    /// choice wherever something else runs too.
    pub(super) cores: Vec<Core>,
    pub(super) offloads: tun::Offloads,
    pub(super) gso: bool,
    /// Workers give up what they do not need.
    pub(super) sandbox: bool,
    /// One for each worker to send native data from; none leaves all to the shared port.
    pub(super) lane_sockets: Vec<UdpSocket>,
    /// What workers of an earlier process have counted, which these go on from once they know what those knew; none where
    /// there was no such process.
    pub(super) counted: Vec<CounterSnapshot>,
}

/// Which engine a worker got: "uring" or "syscall", and why not the other one.
type Started = Result<(&'static str, Option<String>), String>;

/// Opens the door, starts one worker per queue and socket, and waits until all have their engines.
pub(super) fn start(
    mut plan: Plan,
    queues: Vec<TunQueue>,
    sockets: Sockets,
    doorman: Doorman,
) -> Result<(Workforce, Vec<JoinHandle<()>>), RunError> {
    let workers = queues.len();
    let pairs = (0..workers).map(|_| wake::pair()).collect::<Result<Vec<_>, _>>()?;
    let (wakers, wakes): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (door_waker, door_wake) = wake::pair()?;
    let (ports, mailboxes, door_mailbox, reports) = mailbox::connect(&wakers, &door_waker);
    let (died_in, died) = unbounded_channel();
    let death = DeathNotice {
        who: "the door".into(),
        interface_removed: false,
        died: died_in.clone(),
    };
    let (door, door_thread) = open_door(
        sockets.door,
        (door_waker, door_wake),
        doorman,
        door_mailbox,
        death,
        plan.sandbox,
    )?;
    let mut lane_sockets = std::mem::take(&mut plan.lane_sockets).into_iter();
    let all_queues: Arc<[TunQueue]> = queues.iter().map(TunQueue::try_clone).collect::<Result<_, _>>()?;
    let loads = Loads::new(workers);
    let plan = Arc::new(plan);
    let mut infos = Vec::with_capacity(workers);
    let mut threads = vec![door_thread];
    let parts = queues
        .into_iter()
        .zip(sockets.group.sockets)
        .zip(wakes)
        .zip(ports)
        .zip(mailboxes);
    for (number, ((((queue, socket), wake), port), mailbox)) in parts.enumerate() {
        let counters = Arc::new(WorkerCounters::counting_from(plan.counted.get(number)));
        let core = plan.cores.get(number % plan.cores.len().max(1)).copied();
        let lane_socket = lane_sockets.next();
        let descriptors = Descriptors {
            queue: queue.try_clone()?,
            socket: socket.try_clone()?,
            lane_socket: lane_socket.as_ref().map(UdpSocket::try_clone).transpose()?,
        };
        let (started_in, started) = bounded(1);
        let thread = Thread {
            number,
            workers,
            plan: plan.clone(),
            core,
            counters: counters.clone(),
            lane_socket,
            mailbox,
            queues: all_queues.clone(),
            loads: loads.clone(),
            death: DeathNotice {
                who: format!("worker {number}"),
                interface_removed: false,
                died: died_in.clone(),
            },
        };
        let builder = thread::Builder::new().name(format!("worker-{number}"));
        // Signals are the control thread's: an upgrade has them wait there.
        threads.push(exec::with_signals_held(|| {
            builder.spawn(move || thread.run(queue, socket, wake, &started_in))
        })?);
        let (io, io_reason) = started
            .recv()
            .unwrap_or_else(|_| Err("it panicked".into()))
            .map_err(|cause| RunError::Worker { worker: number, cause })?;
        let cpu = core.map(|core| core.number() as u32);
        infos.push(WorkerInfo::new(port, counters, descriptors, cpu, io, io_reason));
    }
    let workforce = Workforce {
        door,
        workers: infos,
        reports,
        died,
    };
    Ok((workforce, threads))
}

/// Starts the thread that receives what is no data.
fn open_door(
    socket: UdpSocket,
    waking: (Waker, Wake),
    doorman: Doorman,
    mailbox: DoorMailbox,
    death: DeathNotice,
    sandbox: bool,
) -> Result<(DoorInfo, JoinHandle<()>), RunError> {
    let counters = Arc::new(WorkerCounters::default());
    let control_sends_by = socket.try_clone()?;
    let (door, port) = Door::new(socket, waking, doorman, mailbox, counters.clone());
    let keep = move || {
        let _death = death;
        cpu::be_nice(DOOR_NICE);
        if sandbox {
            confine("door");
        }
        if let Err(error) = door.run() {
            tracing::error!(%error, "the door cannot be kept");
        }
    };
    let thread = exec::with_signals_held(|| thread::Builder::new().name("door".into()).spawn(keep))?;
    Ok((DoorInfo::new(port, counters, control_sends_by), thread))
}

fn confine(thread: &str) {
    for missing in sandbox::confine_worker() {
        tracing::debug!(thread, "{missing}");
    }
}

/// One worker's thread.
struct Thread {
    number: usize,
    workers: usize,
    plan: Arc<Plan>,
    core: Option<Core>,
    counters: Arc<WorkerCounters>,
    lane_socket: Option<UdpSocket>,
    mailbox: Mailbox,
    queues: Arc<[TunQueue]>,
    loads: Arc<Loads>,
    death: DeathNotice,
}

/// Tells the control thread when a thread ends, also by a panic.
struct DeathNotice {
    who: String,
    interface_removed: bool,
    died: UnboundedSender<ControlError>,
}

impl Drop for DeathNotice {
    fn drop(&mut self) {
        let how = if thread::panicking() { "panicked" } else { "ended" };
        let cause = if self.interface_removed {
            ControlError::InterfaceRemoved
        } else {
            ControlError::Worker(format!("{} {how}", self.who))
        };
        // Nobody listens any more when the tunnel goes down in good order.
        let _ = self.died.send(cause);
    }
}

impl Thread {
    fn run(self, queue: TunQueue, socket: UdpSocket, wake: Wake, started: &Sender<Started>) {
        if let Some(core) = self.core
            && !core.pin()
        {
            tracing::warn!(
                worker = self.number,
                core = core.number(),
                "cannot pin the worker to its core"
            );
        }
        // The receiver waits for this one message.
        let report = |message: Started| started.send(message).unwrap_or_default();
        if self.plan.uring {
            match Uring::new(queue, socket, wake) {
                Ok(engine) => {
                    report(Ok(("uring", None)));
                    self.work(engine);
                }
                Err(refused) => {
                    let reason = refused.reason.to_string();
                    tracing::warn!(
                        worker = self.number,
                        "io_uring is refused, going on with system calls: {reason}"
                    );
                    self.work_plainly(refused.tun, refused.udp, refused.wake, Some(reason), report);
                }
            }
        } else {
            let reason = self.plan.refusal.clone();
            self.work_plainly(queue, socket, wake, reason, report);
        }
    }

    fn work_plainly(
        self,
        queue: TunQueue,
        socket: UdpSocket,
        wake: Wake,
        reason: Option<String>,
        report: impl Fn(Started),
    ) {
        match Plain::new(queue, socket, wake) {
            Ok(engine) => {
                report(Ok(("syscall", reason)));
                self.work(engine);
            }
            Err(error) => report(Err(error.to_string())),
        }
    }

    fn work<E: Engine>(mut self, mut engine: E) {
        let offloads = coalesce::Offloads {
            tcp: self.plan.offloads.tso,
            udp: self.plan.offloads.uso,
        };
        let mut forwarder = Forwarder::new(
            self.number as u8,
            self.workers as u8,
            Coalescer::new(offloads),
            Batches::new(self.plan.gso),
            usize::from(MTU_DEFAULT),
            self.counters.clone(),
        );
        if let Some(socket) = self.lane_socket {
            match engine.add_lane_socket(socket) {
                Ok(()) => forwarder.use_lane_ports(),
                Err(error) => tracing::warn!(worker = self.number, %error, "the lane has no port of its own"),
            }
        }
        if self.plan.sandbox {
            confine(&format!("worker {}", self.number));
        }
        engine.use_queues(self.queues);
        let number = self.number as u8;
        let placement = Placement::new(number, self.loads);
        let worker = Worker::new(number, engine, forwarder, self.mailbox, placement, self.counters);
        let result = match self.plan.counted.is_empty() {
            true => worker.run(),
            false => worker.run_when_told(),
        };
        match result {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => self.death.interface_removed = true,
            Err(error) => tracing::error!(worker = self.number, %error, "the worker cannot go on"),
            Ok(()) => {}
        }
    }
}
