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
mod end;
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
mod workforce;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use allowed::AllowedIps;
use capture::Captures;
use changes::{ChangeError, Changes, PeerChanges};
use dump::Dump;
use inquiry::Inquiries;
use ipnet::IpNet;
use latency_log::LatencyLog;
use lookup::Lookups;
use names::{Names, Question};
use peers::Peers;
pub(crate) use peers::random_secret;
use routes::RouteReporter;
use signals::Signals;
use state::State;
use stats::Baseline;
use tokio::sync::{mpsc, oneshot};
pub use workforce::{Descriptors, DoorInfo, WorkerInfo, Workforce};
use zeroize::Zeroizing;

use crate::config::{self, PrivateKey, PublicKey};
use crate::proto::{Device, Doorman, Now, PeerId, PeerUpdate, Time, Timestamps};
use crate::stats::buckets::StageBuckets;
use crate::stats::exposition::Format;
use crate::sys::tun_mtu::TunMtu;
use crate::sys::udp::UdpOptions;
use crate::worker;
use crate::worker::mailbox::{Command, Reports, WorkerGone};

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
    /// A thread waits for a disk, so that no other program can take this one's place.
    #[error("a disk does not answer to what was read or written before; try again when it does")]
    BusyDisk,
    /// The control thread's own runtime failed.
    #[error("the control thread cannot go on: {0}")]
    Io(#[from] io::Error),
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
