//! The control thread: handshakes, timers, peers, the control socket. It never touches a data packet.
//!
//! One loop waits for reports from workers, requests from the control socket, the protocol's deadlines and signals,
//! and carries out what [`Device`] decides.
#![forbid(unsafe_code)]

mod allowed;
pub mod api;
mod capture;
pub mod changes;
pub mod client;
pub mod dump;
mod explain;
pub mod exporter;
pub mod handover;
mod inquiry;
mod latency_log;
pub mod log_file;
mod lookup;
mod metrics;
mod names;
mod path_mtu;
pub mod pcapng;
mod peers;
mod report;
mod routes;
pub mod runtime;
pub mod server;
pub mod signals;
pub mod socket;
mod stamps;
mod state;
mod stats;
mod turn;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use allowed::AllowedIps;
use capture::Captures;
use changes::{ChangeError, Changes, PeerChanges};
use dump::Dump;
use inquiry::Inquiries;
use ipnet::IpNet;
use latency_log::LatencyLog;
use log_file::Means;
use lookup::Lookups;
use names::{Names, Question};
use peers::Peers;
pub(crate) use peers::random_secret;
use routes::RouteReporter;
use runtime::DISK_TIME_MAX;
use signals::Signals;
use state::State;
use stats::Baseline;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use crate::config::{self, PrivateKey, PublicKey};
use crate::path::drops::Drop;
use crate::proto::{Device, Doorman, Now, PeerId, PeerUpdate, Time, Timestamps};
use crate::stats::buckets::StageBuckets;
use crate::stats::counters::WorkerCounters;
use crate::stats::exposition::Format;
use crate::stats::latency::StageHistograms;
use crate::sys::tun::TunQueue;
use crate::sys::tun_mtu::TunMtu;
use crate::sys::udp::{UdpOptions, UdpSocket};
use crate::worker;
use crate::worker::door::DoorPort;
use crate::worker::mailbox::{Command, Reports, WorkerGone, WorkerPort};

/// How often the workers' tallies are read for the protocol's timers, whose shortest period is 5 s.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// Reports taken before anything else gets its turn again.
const REPORTS_PER_TURN: usize = 256;
/// Handshakes taken before anything else gets its turn again.
const HANDSHAKES_PER_TURN: usize = 32;
/// Orders that may wait for the loop.
const ORDERS_MAX: usize = 32;
/// How long a worker that has closed its mailbox may take to say why.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
/// How long the names of endpoints may take when the tunnel comes up, before it goes on without those that are missing.
const FIRST_LOOKUPS_MAX: Duration = Duration::from_secs(3);

/// Why the tunnel ended.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A worker ended by itself.
    #[error("a worker ended: {0}")]
    Worker(String),
    /// The interface is gone.
    #[error("the interface was removed")]
    InterfaceRemoved,
    /// What must outlive this run is not on the disk within this time.
    #[error(
        "the state file or the latency log is not written within {0:?}; try again when their disk (see state_dir and \
         latency_log) is not that slow any more"
    )]
    SlowDisk(Duration),
    /// The control thread's own runtime failed.
    #[error("the control thread cannot go on: {0}")]
    Io(#[from] io::Error),
}

/// What the control thread needs to know of one worker.
pub struct WorkerInfo {
    /// Its mailbox.
    port: WorkerPort,
    /// What it counts.
    counters: Arc<WorkerCounters>,
    /// Its TUN queue.
    queue: TunQueue,
    /// Its UDP socket.
    socket: WatchedSocket,
    /// The socket on its lane's own port, if it has one.
    lane_socket: Option<UdpSocket>,
    /// The core it is pinned to.
    cpu: Option<u32>,
    /// "uring" or "syscall".
    io: &'static str,
    /// Why not the other one.
    io_reason: Option<String>,
    /// What it has recorded, up to the last read.
    histograms: StageHistograms,
    /// An empty set for the next read.
    spare: Box<StageHistograms>,
}

/// Descriptors of the control thread's own for what a worker reads and writes.
pub struct Descriptors {
    /// Its TUN queue, for whoever goes on with the tunnel.
    pub queue: TunQueue,
    /// Its UDP socket.
    pub socket: UdpSocket,
    /// The socket on its lane's own port, if it has one.
    pub lane_socket: Option<UdpSocket>,
}

impl WorkerInfo {
    /// A worker that has just started.
    pub fn new(
        port: WorkerPort,
        counters: Arc<WorkerCounters>,
        descriptors: Descriptors,
        cpu: Option<u32>,
        io: &'static str,
        io_reason: Option<String>,
    ) -> WorkerInfo {
        let (histograms, spare) = Default::default();
        WorkerInfo {
            port,
            counters,
            queue: descriptors.queue,
            socket: WatchedSocket::new(descriptors.socket),
            lane_socket: descriptors.lane_socket,
            cpu,
            io,
            io_reason,
            histograms,
            spare,
        }
    }

    /// Answers leave on `socket` from here on, a descriptor of the socket that the worker is about to move to.
    fn replace_socket(&mut self, socket: UdpSocket) {
        self.socket.replace(socket, &self.counters);
    }
}

/// What the control thread needs to know of the door.
pub struct DoorInfo {
    /// The way to its thread.
    port: DoorPort,
    /// What it counts: drops only.
    counters: Arc<WorkerCounters>,
    /// Its socket, on which handshake messages leave.
    socket: WatchedSocket,
}

impl DoorInfo {
    /// A door that has just been opened; `socket` is a descriptor of its socket.
    pub fn new(port: DoorPort, counters: Arc<WorkerCounters>, socket: UdpSocket) -> DoorInfo {
        DoorInfo {
            port,
            counters,
            socket: WatchedSocket::new(socket),
        }
    }

    fn replace_socket(&mut self, socket: UdpSocket) {
        self.socket.replace(socket, &self.counters);
    }
}

/// A descriptor of somebody's socket.
struct WatchedSocket {
    socket: UdpSocket,
    /// What the kernel said when its drops at the socket were last counted.
    drops: u32,
}

impl WatchedSocket {
    fn new(socket: UdpSocket) -> WatchedSocket {
        WatchedSocket { socket, drops: 0 }
    }

    /// Counts what the kernel has dropped at the socket since the last time. Nobody else writes to that counter.
    fn count_drops(&mut self, counters: &WorkerCounters) {
        let Ok(drops) = self.socket.drops() else { return };
        let news = drops.wrapping_sub(std::mem::replace(&mut self.drops, drops));
        if news > 0 {
            counters.dropped(Drop::SocketFull, news.into());
        }
    }

    fn replace(&mut self, socket: UdpSocket, counters: &WorkerCounters) {
        self.count_drops(counters);
        *self = WatchedSocket::new(socket);
    }
}

/// All threads beside the control thread, and how they reach it.
pub struct Workforce {
    /// Receives what is no data.
    pub door: DoorInfo,
    /// In order of their numbers.
    pub workers: Vec<WorkerInfo>,
    /// What they report.
    pub reports: Reports,
    /// Says why a worker ended by itself.
    pub died: mpsc::UnboundedReceiver<ControlError>,
}

/// The facts of a tunnel that is up.
pub struct Facts {
    /// The interface's name.
    pub name: String,
    /// The UDP port in use.
    pub listen_port: u16,
    /// The TUN's MTU in bytes.
    pub mtu: u32,
    /// The AEAD implementation in use.
    pub crypto: String,
    /// What the kernel granted.
    pub offloads: api::OffloadReport,
}

/// What the tunnel starts with, beside its peers.
pub struct Settings {
    /// Who we are; without it nobody is spoken to.
    pub private_key: Option<PrivateKey>,
    /// Addresses of the interface, for reports.
    pub addresses: Vec<IpNet>,
    /// The options that its sockets have, and that later ones get.
    pub udp_options: UdpOptions,
    /// The suite of peers for which none is named.
    pub suite: config::Suite,
    /// Tells the interface's MTU, which anybody may change.
    pub mtu: TunMtu,
}

/// What sockets want of the control thread's loop, each with the way that the answer goes.
pub enum Order {
    /// A request of the control socket.
    Answer(api::Request, oneshot::Sender<api::Response>),
    /// Say the interface's name.
    Name(oneshot::Sender<String>),
    /// Begin a capture.
    Capture(
        api::CaptureRequest,
        oneshot::Sender<Result<capture::Feed, api::ApiError>>,
    ),
    /// Say what would become of a packet, of which the kernel has said its part.
    Explain(
        api::ExplainRequest,
        explain::KernelAnswers,
        oneshot::Sender<api::Response>,
    ),
    /// Write metrics; `None` when a worker does not answer.
    Metrics(Format, oneshot::Sender<Option<String>>),
    /// Tell everything.
    Dump(oneshot::Sender<Dump>),
    /// Tell what would be handed over.
    Rehearse(oneshot::Sender<handover::State>),
    /// Have every worker answer with its number.
    Alive(crossbeam_channel::Sender<u8>),
    /// Change something.
    Change(Changes, oneshot::Sender<Result<(), ChangeError>>),
}

/// Where sockets leave their orders, and where [`Control::run`] finds them.
pub fn orders() -> (mpsc::Sender<Order>, mpsc::Receiver<Order>) {
    mpsc::channel(ORDERS_MAX)
}

/// All that the control thread owns.
pub struct Control {
    private_key: Option<PrivateKey>,
    addresses: Vec<IpNet>,
    udp_options: UdpOptions,
    suite: config::Suite,
    mtu: TunMtu,
    facts: Facts,
    device: Device,
    door: DoorInfo,
    workers: Vec<WorkerInfo>,
    reports: Reports,
    died: mpsc::UnboundedReceiver<ControlError>,
    peers: Peers,
    allowed: AllowedIps,
    names: Names,
    lookups: Lookups,
    state: Option<State>,
    /// Peers were removed, of which workers may have reported since.
    removed: bool,
    /// Tells of routes, once the loop runs.
    routes: Option<RouteReporter>,
    latency_since: SystemTime,
    started: SystemTime,
    /// How often another process has gone on with the tunnel since.
    upgrades: u32,
    /// Another one is about to: there is nothing to end here.
    handed_over: bool,
    drops: BTreeMap<&'static str, u64>,
    baseline: Baseline,
    /// Times, where metrics are served.
    metrics: Option<Box<StageBuckets>>,
    captures: Captures,
    next_sample: Option<Time>,
    latency_log: Option<LatencyLog>,
    next_log: Option<Time>,
    /// The log has what workers have recorded up to the end of an interval.
    interval_ended: bool,
    inquiries: Inquiries,
}

impl Control {
    /// Takes over a tunnel whose workers run.
    pub fn new(settings: Settings, facts: Facts, device: Device, workforce: Workforce) -> Control {
        Control {
            private_key: settings.private_key,
            addresses: settings.addresses,
            udp_options: settings.udp_options,
            suite: settings.suite,
            mtu: settings.mtu,
            facts,
            device,
            door: workforce.door,
            workers: workforce.workers,
            reports: workforce.reports,
            died: workforce.died,
            peers: Peers::default(),
            allowed: AllowedIps::default(),
            names: Names::default(),
            lookups: Lookups::new(),
            state: None,
            removed: false,
            routes: None,
            latency_since: SystemTime::now(),
            started: SystemTime::now(),
            upgrades: 0,
            handed_over: false,
            drops: BTreeMap::new(),
            baseline: Baseline::zero(),
            metrics: None,
            captures: Captures::default(),
            next_sample: None,
            latency_log: None,
            next_log: None,
            interval_ended: false,
            inquiries: Inquiries::default(),
        }
    }

    /// Gives the door a doorman who knows our public key.
    fn post_doorman(&self) -> Result<(), ControlError> {
        let posted = self.door.port.set_doorman(doorman(&self.device));
        posted.map_err(|gone| ControlError::Worker(gone.to_string()))
    }

    /// Counts what the kernel has dropped at all sockets since the last time.
    fn count_socket_drops(&mut self) {
        self.door.socket.count_drops(&self.door.counters);
        for worker in &mut self.workers {
            worker.socket.count_drops(&worker.counters);
        }
    }

    /// Handshake datagrams that were refused, here or at the door, by reason.
    fn refused_handshakes(&self) -> BTreeMap<String, u64> {
        let mut refused = self.door.counters.snapshot().drops;
        for (reason, count) in &self.drops {
            *refused.entry((*reason).to_owned()).or_default() += count;
        }
        refused
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// What is true of the tunnel.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Where the peers are whose addresses are known.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        let endpoint = |id| Some(self.device.peer(id)?.endpoint?.remote);
        self.peers.iter().filter_map(|(id, _)| endpoint(id)).collect()
    }

    /// Tells everybody the interface's MTU, in bytes.
    pub fn set_tun_mtu(&mut self, mtu: u16) -> Result<(), ControlError> {
        self.facts.mtu = mtu.into();
        self.broadcast(|| Command::TunMtu(mtu.into()))
    }

    /// Makes configured peers known to everybody, and waits a moment for the addresses of those that have names. What
    /// does not come in time is looked up while the tunnel runs.
    pub async fn add_peers(&mut self, peers: &[config::Peer]) -> Result<(), ChangeError> {
        self.apply(Changes {
            peers: peers.iter().map(PeerChanges::configured).collect(),
            ..Changes::default()
        })?;
        let deadline = tokio::time::Instant::now() + FIRST_LOOKUPS_MAX;
        while self.names.any_untried() {
            self.begin_lookups();
            match tokio::time::timeout_at(deadline, self.lookups.answer()).await {
                Ok((question, result)) => self.looked_up(&question, result),
                Err(_) => break,
            }
        }
        Ok(self.act()?)
    }

    /// Keeps in the file at `path` what must outlive this run, and goes on from what an earlier one left there. To be
    /// called before peers are added.
    pub async fn keep_state(&mut self, path: &Path) {
        self.state = State::open(path, self.now()).await;
    }

    /// Runs the tunnel until `signals` or a failure end it.
    pub async fn run(&mut self, orders: &mut mpsc::Receiver<Order>, signals: &mut Signals) -> Result<(), ControlError> {
        match self.run_on(orders, signals).await {
            // Its mailbox closes first; then it says why it ended.
            Err(ControlError::Worker(cause)) => match tokio::time::timeout(LAST_WORDS_MAX, self.died.recv()).await {
                Ok(Some(cause)) => Err(cause),
                _ => Err(ControlError::Worker(cause)),
            },
            result => result,
        }
    }

    async fn run_on(&mut self, orders: &mut mpsc::Receiver<Order>, signals: &mut Signals) -> Result<(), ControlError> {
        let news = self.reports.news.clone();
        if self.routes.is_none() {
            self.routes = RouteReporter::start()
                .inspect_err(|error| tracing::warn!(%error, "peers follow to new links only after a silence"))
                .ok();
        }
        loop {
            self.act()?;
            let deadline = self
                .device
                .poll_timeout()
                .into_iter()
                .chain(self.next_sample)
                .chain(self.next_log)
                .chain(self.names.poll_timeout())
                .chain(self.state.as_ref().and_then(State::poll_timeout))
                .min();
            let pause = deadline.map_or(Duration::MAX, |deadline| deadline - self.now().mono);
            tokio::select! {
                biased;
                () = signals.end() => return Ok(()),
                Some(cause) = self.died.recv() => return Err(cause),
                Some(order) = orders.recv() => self.obey(order)?,
                Some(rest) = self.inquiries.next() => rest(self),
                (question, result) = self.lookups.answer() => self.looked_up(&question, result),
                () = news.notified() => {
                    self.take_reports();
                    // Under a flood there is always news: let sockets, signals and clocks have their turn too.
                    tokio::task::yield_now().await;
                }
                news = RouteReporter::next(&mut self.routes) => self.hear(news)?,
                () = tokio::time::sleep(pause.min(Duration::from_secs(3600))) => {}
            }
            self.time_passes();
            if self.next_log.is_some_and(|due| due <= worker::time_now()) {
                self.next_log = Some(worker::time_now() + latency_log::INTERVAL);
                let histograms = self.ask_for_histograms();
                self.afterwards(histograms.gather(), |control, said| {
                    // A worker without an answer is busy: what it recorded comes with the next interval.
                    let _ = control.take_in(said);
                    control.interval_ended = true;
                });
            }
            if std::mem::take(&mut self.interval_ended) {
                self.write_latency_log().await;
            }
        }
    }

    /// Writes what passes inside the tunnel to `path` from here on, an interval per second.
    pub async fn log_latency(&mut self, means: Means, path: &Path) -> io::Result<()> {
        self.latency_log = Some(LatencyLog::create(means, path).await?);
        self.next_log = Some(worker::time_now() + latency_log::INTERVAL);
        Ok(())
    }

    /// As [`Control::log_latency`], to the log that an earlier process began at `begin`.
    pub async fn resume_latency_log(&mut self, means: Means, path: &Path, begin: SystemTime) -> io::Result<()> {
        self.latency_log = Some(LatencyLog::resume(means, path, begin).await?);
        self.next_log = Some(worker::time_now() + latency_log::INTERVAL);
        Ok(())
    }

    async fn write_latency_log(&mut self) {
        let Some(log) = &mut self.latency_log else { return };
        let written = log.end_interval().await;
        self.end_latency_log_unless(written);
    }

    fn end_latency_log_unless(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!(%error, "the latency log cannot be written any more");
            (self.latency_log, self.next_log) = (None, None);
        }
    }

    /// Tells native peers goodbye, ends the workers, and writes what must outlive this run. Nothing happens where another
    /// process goes on with the tunnel.
    pub async fn stop(&mut self) {
        if self.handed_over {
            return;
        }
        self.take_last_histograms().await;
        for id in self.peers.ids() {
            // Workers that have died need not hear it.
            let _ = self.tell_owner(id, Command::Goodbye(id));
        }
        for worker in &self.workers {
            let _ = worker.port.send(Command::Stop);
        }
        let _ = self.door.port.stop();
        if self.finish_state().await.is_err() {
            tracing::warn!(
                "the state file or the latency log is not written within {DISK_TIME_MAX:?} (see state_dir and latency_log): the \
                 next run may begin as after a kill"
            );
        }
    }

    /// Has the latency log have what workers have recorded since they were asked last.
    async fn take_last_histograms(&mut self) {
        if self.latency_log.is_some() {
            let histograms = self.ask_for_histograms().gather().await;
            // What a worker that does not answer has recorded is not in the log.
            let _ = self.take_in(histograms);
        }
    }

    /// Writes what must outlive this run as if it ended here, and the latency log's last interval.
    ///
    /// # Errors
    /// The disk takes too long. It has been given all of it, unless it had not yet taken what it was given before.
    async fn finish_state(&mut self) -> Result<(), ControlError> {
        let (now, timestamps) = (self.now(), self.timestamps().collect());
        let state = async {
            if let Some(state) = &mut self.state {
                state.finish(now, timestamps).await;
            }
        };
        let log = async {
            match &mut self.latency_log {
                Some(log) => log.finish().await,
                None => Ok(()),
            }
        };
        // They may be on two disks.
        let (state, log) = tokio::join!(
            tokio::time::timeout(DISK_TIME_MAX, state),
            tokio::time::timeout(DISK_TIME_MAX, log)
        );
        let slow = |_| ControlError::SlowDisk(DISK_TIME_MAX);
        let log = log.map(|written| self.end_latency_log_unless(written));
        state.and(log).map_err(slow)
    }

    /// A client that hung up loses its own answer only.
    fn obey(&mut self, order: Order) -> Result<(), ControlError> {
        // Who asks sees what happened before.
        self.take_reports();
        match order {
            Order::Answer(request, reply) => self.answer(&request, reply),
            Order::Name(reply) => drop(reply.send(self.facts.name.clone())),
            Order::Capture(request, reply) => drop(reply.send(self.begin_capture(&request))),
            Order::Explain(request, kernel, reply) => self.explain_to(request, kernel, reply),
            Order::Metrics(format, reply) => self.send_metrics(format, reply),
            Order::Dump(reply) => drop(reply.send(self.dump())),
            Order::Rehearse(reply) => drop(reply.send(self.rehearsal())),
            Order::Alive(done) => self.broadcast(|| Command::Answer(done.clone()))?,
            Order::Change(changes, reply) => match self.apply(changes) {
                Err(ChangeError::Control(error)) => return Err(error),
                result => drop(reply.send(result)),
            },
        }
        Ok(())
    }

    fn now(&self) -> Now {
        Now {
            mono: worker::time_now(),
            unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    /// What must outlive a restart.
    fn timestamps(&self) -> impl Iterator<Item = (PublicKey, Timestamps)> + '_ {
        self.peers
            .iter()
            .filter_map(|(id, peer)| Some((peer.public_key, self.device.timestamps(id)?)))
    }

    /// Begins the look-ups whose time has come.
    fn begin_lookups(&mut self) {
        while let Some(question) = self.names.next(worker::time_now()) {
            self.lookups.begin(question);
        }
    }

    /// Takes in where a peer's name says that it is.
    fn looked_up(&mut self, question: &Question, result: io::Result<Vec<SocketAddr>>) {
        let mut random = [0];
        // Without randomness the look-ups are merely not spread.
        let _ = getrandom::fill(&mut random);
        let now = self.now();
        let peer = self.peers.name(question.peer);
        let addresses = result.unwrap_or_else(|error| {
            tracing::warn!(peer, host = %question.host, %error, "cannot look up the endpoint; trying again");
            Vec::new()
        });
        let jitter = f64::from(random[0]) / 255.0;
        let Some(mut found) = self.names.answered(question, addresses, now.mono, jitter) else {
            return;
        };
        let info = self.device.peer(question.peer);
        if let Some(info) = info.filter(|info| info.last_handshake.is_some() && !found.moves)
            && let Some(endpoint) = info.endpoint
        {
            names::prefer_family(&mut found.addresses, endpoint.remote);
        }
        tracing::debug!(peer, host = %question.host, addresses = ?found.addresses, "looked up");
        if found.moves {
            let update = PeerUpdate {
                endpoint: found.addresses.first().copied(),
                ..PeerUpdate::default()
            };
            self.device.update_peer(now, question.peer, update);
        }
        self.device.set_candidates(now, question.peer, found.addresses);
    }

    fn tell(&self, worker: &WorkerInfo, command: Command) -> Result<(), ControlError> {
        worker
            .port
            .send(command)
            .map_err(|gone: WorkerGone| ControlError::Worker(gone.to_string()))
    }

    /// Tells the one worker that speaks for the peer where one message is enough.
    fn tell_owner(&self, peer: PeerId, command: Command) -> Result<(), ControlError> {
        self.tell(&self.workers[peer.0 as usize % self.workers.len()], command)
    }

    fn broadcast(&self, command: impl Fn() -> Command) -> Result<(), ControlError> {
        self.workers.iter().try_for_each(|worker| self.tell(worker, command()))
    }
}

/// A doorman for whoever receives for `device`.
pub fn doorman(device: &Device) -> Doorman {
    Doorman::new(device.public_key(), device.awaited_answers(), drawing_ahead())
}

/// As [`random`], for one who often wants a few bytes: draws from the kernel for many calls at once.
fn drawing_ahead() -> impl FnMut(&mut [u8]) + Send {
    let mut pool = Zeroizing::new([0; 1024]);
    let mut used = pool.len();
    move |bytes| {
        if bytes.len() > pool.len() - used {
            random(&mut pool[..]);
            used = 0;
        }
        // What does not fit an empty pool is nothing that a doorman asks for, but must not be less random.
        let Some(drawn) = pool.get_mut(used..used + bytes.len()) else {
            return random(bytes);
        };
        bytes.copy_from_slice(drawn);
        drawn.fill(0);
        used += bytes.len();
    }
}

/// Fills `bytes` from the kernel's random source.
pub fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel's random source does not fail once it was seeded");
}
