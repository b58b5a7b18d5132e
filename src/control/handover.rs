//! What another process needs in order to go on where this one's control thread stopped: everything about peers and
//! sessions, and what was counted.
//!
//! It is as secret as the keys that are in it. What comes again by itself is left out: captures, histograms, cookies,
//! handshakes under way, packets that wait for one.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::api::OffloadReport;
use super::changes::{AllowedIp, ChangeError, Changes, PeerChanges};
use super::peers::{Tally, config_suite};
use super::stats::Baseline;
use super::{Control, ControlError};
use crate::config::{PresharedKey, PrivateKey, PublicKey};
use crate::crypto::Choice;
use crate::path::drops::Drop;
use crate::path::forward::Halves;
use crate::proto::hex::Hex;
use crate::proto::{self, Action, Device, DeviceConfig, PeerConfig, PeerId, Sessions, SuiteChoice};
use crate::stats::counters::CounterSnapshot;
use crate::sys::tun::TunQueue;
use crate::sys::udp::UdpSocket;
use crate::worker;
use crate::worker::mailbox::Command;

/// How long workers may take to carry what they have read to its end. It is a matter of microseconds, unless the machine is
/// very busy.
const AT_REST_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a tunnel may take to leave, from when its workers are told to pause: less than the 10 s in which the service's manager wants
/// a sign of life.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(9);
/// Turns in which handshake messages are answered that had been let in: what a flood has left may take no longer.
const LAST_TURNS: usize = 4;

/// Stands before the number of the descriptor by which a program that was executed goes on.
pub const RESUME_ARGUMENT: &str = "--resume";

/// The control thread's part of a hand-over.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// The interface's name.
    pub name: String,
    /// The UDP port in use.
    pub listen_port: u16,
    /// SO_MARK of the sockets.
    pub mark: u32,
    /// What the kernel carries out.
    pub offloads: OffloadReport,
    private_key: Option<Hex<32>>,
    addresses: Vec<IpNet>,
    mtu: u16,
    started: SystemTime,
    upgrades: u32,
    latency_log_begin: Option<SystemTime>,
    drops: BTreeMap<String, u64>,
    door_socket_drops: u32,
    baseline: Baseline,
    workers: Vec<WorkerState>,
    peers: Vec<PeerState>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WorkerState {
    counters: CounterSnapshot,
    socket_drops: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct PeerState {
    public_key: PublicKey,
    name: Option<String>,
    preshared_key: Option<Hex<32>>,
    /// Its host name and port, where its endpoint is one.
    host: Option<String>,
    persistent_keepalive_s: Option<u64>,
    suite: SuiteChoice,
    allowed_ips: Vec<IpNet>,
    path_mtu: Option<usize>,
    tally: Tally,
    protocol: proto::PeerState,
}

/// A tunnel whose workers have ended, for another process.
pub struct HandedOver {
    /// What it has to know.
    pub state: State,
    /// TUN queues, in the order of workers.
    pub queues: Vec<TunQueue>,
    /// UDP sockets: the door's, then those of the workers in their order.
    pub sockets: Vec<UdpSocket>,
    /// The sockets on ports of lanes, in the order of workers; none where there are none.
    pub lane_sockets: Vec<UdpSocket>,
}

/// Workers at rest.
pub struct Paused {
    /// Another descriptor of the door's socket.
    door: UdpSocket,
    /// When all that is left to be done has to be done.
    deadline: Instant,
}

impl State {
    /// Our private key.
    pub fn private_key(&self) -> Option<PrivateKey> {
        let key = self.private_key.as_ref()?;
        Some(PrivateKey::from_bytes(key.0.clone()))
    }

    /// Whether a device could go on with the peers, as far as that can be told without any worker.
    ///
    /// # Errors
    /// A phrase about what can't be gone on with.
    pub fn rehearse(&self, crypto: Choice) -> Result<(), String> {
        let private_key = super::random_secret();
        let lanes = u8::try_from(self.workers.len()).map_err(|_| "it has more workers than lanes".to_owned())?;
        let config = DeviceConfig {
            private_key,
            lanes,
            crypto,
        };
        let mut device = Device::new(config, super::random);
        for peer in &self.peers {
            let config = PeerConfig {
                public_key: peer.public_key.0,
                preshared_key: None,
                endpoint: None,
                persistent_keepalive: peer.persistent_keepalive_s.map(Duration::from_secs),
                suite: peer.suite,
            };
            let known = device.add_peer(crate::worker::time_now(), config);
            if !known.is_ok_and(|id| device.resume_peer(id, &peer.protocol)) {
                return Err(format!("the peer {} cannot be gone on with", peer.public_key));
            }
            while device.poll_action().is_some() {}
        }
        Ok(())
    }

    /// What each worker had counted.
    pub fn counters(&self) -> Vec<CounterSnapshot> {
        self.workers.iter().map(|worker| worker.counters.clone()).collect()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// When the latency log began, where there is one.
    pub fn latency_log_begin(&self) -> Option<SystemTime> {
        self.latency_log_begin
    }

    /// What the tunnel is to be told as the number of upgrades that there were, itself included.
    pub fn count_upgrade(&mut self) {
        self.upgrades = self.upgrades.saturating_add(1);
    }
}

impl Control {
    /// What would be handed over at this moment, but for counters of workers and all keys, which are zeros: for a program that
    /// is asked whether it could go on.
    pub fn rehearsal(&self) -> State {
        let blank = |key: &mut Option<Hex<32>>| *key = key.as_ref().map(|_| Hex::new(&[0; 32]));
        let mut state = self.state_with(|id| self.device.rehearsed_peer_state(self.now(), id));
        blank(&mut state.private_key);
        for peer in &mut state.peers {
            blank(&mut peer.preshared_key);
        }
        state
    }

    /// Has the workers carry what they have read to its end, and read nothing more. All other things go on, and packets wait
    /// in the kernel.
    ///
    /// # Errors
    /// Some don't come to rest: the machine is too busy, or one has ended. Then all read on.
    pub async fn pause(&mut self) -> Result<Paused, ControlError> {
        let door = self.door.socket.socket.try_clone()?;
        let deadline = Instant::now() + LEAVE_TIME_MAX;
        let at_rest = self.ask_workers_within(AT_REST_TIME_MAX, Command::Pause).gather().await;
        if at_rest.by_all().is_err() {
            self.go_on()?;
            let busy = "a worker does not come to rest within the time that an upgrade takes";
            return Err(ControlError::Worker(busy.into()));
        }
        Ok(Paused { door, deadline })
    }

    /// Has workers read on that were to come to rest.
    ///
    /// # Errors
    /// One has ended.
    pub fn go_on(&self) -> Result<(), ControlError> {
        self.broadcast(|| Command::GoOn)
    }

    /// Ends the workers and gives away all that there is. Nothing but dropping it may be done with this afterwards.
    ///
    /// # Errors
    /// A worker has ended by itself, or does not come to its end.
    pub async fn hand_over(&mut self, paused: Paused) -> Result<HandedOver, ControlError> {
        let Paused { door, deadline } = paused;
        // The door may have ended by itself; then there is nobody to stop.
        let _ = self.door.port.stop();
        self.door.port.wait_for_end((deadline - Instant::now()) / 2);
        // Sessions that are about to be made come to the workers before they end.
        for _ in 0..LAST_TURNS {
            self.take_reports();
            self.act()?;
        }
        let sessions = self.stop_workers(deadline).await?;
        self.take_last_reports();
        self.count_socket_drops();
        let state = self.state_with(|id| self.device.peer_state(self.now(), id, &sessions));
        self.handed_over = true;
        let mut handed_over = HandedOver {
            state,
            queues: Vec::new(),
            sockets: vec![door],
            lane_sockets: Vec::new(),
        };
        for worker in self.workers.drain(..) {
            handed_over.queues.push(worker.queue);
            handed_over.sockets.push(worker.socket.socket);
            handed_over.lane_sockets.extend(worker.lane_socket);
        }
        Ok(handed_over)
    }

    /// All keys, which no worker has any more.
    async fn stop_workers(&self, deadline: Instant) -> Result<Sessions, ControlError> {
        let answers = self.ask_workers_within(deadline - Instant::now(), Command::HandOver);
        let slow = |_| ControlError::Worker("a worker does not hand its sessions over".into());
        let of_worker: Vec<Halves> = answers.gather().await.by_all().map_err(slow)?;
        let mut sessions = Sessions::default();
        // A worker's number is its lane.
        for halves in of_worker {
            halves.seals.into_iter().for_each(|(_, seal)| sessions.add_seal(seal));
            halves.opens.into_iter().for_each(|(_, open)| sessions.add_open(open));
        }
        Ok(sessions)
    }

    /// What workers had to say before they ended. Handshake messages for which there was no time are lost: an answer to one
    /// would make keys that no worker is there to take.
    fn take_last_reports(&mut self) {
        while self.reports.handshakes.try_recv().is_ok() {
            self.count(Drop::HandshakeQueueFull);
        }
        while !self.reports.reports.is_empty() {
            self.take_reports();
        }
        while let Some(action) = self.device.poll_action() {
            if let Action::HandshakeDone {
                peer,
                suite,
                remote_lanes,
                ..
            } = action
            {
                self.peers.handshake_done(peer, suite, remote_lanes, SystemTime::now());
            }
        }
    }

    fn state_with(&self, protocol: impl Fn(PeerId) -> Option<proto::PeerState>) -> State {
        let workers = self.workers.iter().map(|worker| WorkerState {
            counters: worker.counters.snapshot(),
            socket_drops: worker.socket.drops,
        });
        let mut peers = self.peers.ids();
        // In the order in which they were added, so that they are listed in it again.
        peers.sort();
        State {
            name: self.facts.name.clone(),
            listen_port: self.facts.listen_port,
            mark: self.udp_options.mark,
            offloads: self.facts.offloads,
            private_key: self.private_key.as_ref().map(|key| Hex::new(key.as_bytes())),
            addresses: self.addresses.clone(),
            mtu: u16::try_from(self.facts.mtu).unwrap_or(u16::MAX),
            started: self.started,
            upgrades: self.upgrades,
            latency_log_begin: self.latency_log.as_ref().map(|log| log.begin()),
            drops: self.refused_handshakes(),
            door_socket_drops: self.door.socket.drops,
            baseline: self.baseline.without_engines(),
            workers: workers.collect(),
            peers: peers
                .into_iter()
                .filter_map(|id| self.peer_state(id, protocol(id)?))
                .collect(),
        }
    }

    fn peer_state(&self, id: PeerId, protocol: proto::PeerState) -> Option<PeerState> {
        let peer = self.peers.get(id)?;
        let info = self.device.peer(id)?;
        Some(PeerState {
            public_key: peer.public_key,
            name: peer.name.clone(),
            preshared_key: self.device.preshared_key(id).map(Hex::new),
            host: self.names.host(id).map(ToString::to_string),
            persistent_keepalive_s: info.persistent_keepalive.map(|interval| interval.as_secs()),
            suite: info.suite_choice,
            allowed_ips: self.allowed.of(id),
            path_mtu: peer.path_mtu.known(),
            tally: peer.tally(),
            protocol,
        })
    }

    /// Goes on from where another process stopped. This has our key and no peers yet, and its workers wait.
    pub fn resume(&mut self, state: &State) -> Result<(), ChangeError> {
        self.addresses.clone_from(&state.addresses);
        self.started = state.started;
        self.upgrades = state.upgrades;
        self.baseline = state.baseline.clone();
        let count = |name: &Drop| Some((name.name(), *state.drops.get(name.name())?));
        self.drops = Drop::ALL.iter().filter_map(count).collect();
        self.door.socket.drops = state.door_socket_drops;
        for (worker, state) in self.workers.iter_mut().zip(&state.workers) {
            worker.socket.drops = state.socket_drops;
        }
        self.set_tun_mtu(state.mtu)?;
        self.apply(Changes {
            peers: state.peers.iter().map(PeerState::changes).collect(),
            ..Changes::default()
        })?;
        for peer in &state.peers {
            let Some(id) = self.device.find_peer(&peer.public_key.0) else {
                continue;
            };
            if let Some(known) = self.peers.get_mut(id) {
                known.count_from(&peer.tally);
            }
            self.device.resume_peer(id, &peer.protocol);
        }
        self.act()?;
        for peer in state.peers.iter().filter(|peer| peer.path_mtu.is_some()) {
            if let Some(id) = self.device.find_peer(&peer.public_key.0) {
                self.ask_path_mtu(id, worker::time_now());
            }
        }
        Ok(self.broadcast(|| Command::Begin)?)
    }
}

impl PeerState {
    fn changes(&self) -> PeerChanges {
        let preshared_key = self.preshared_key.as_ref().map(|key| key.0.clone());
        let keepalive = self.persistent_keepalive_s.map(std::time::Duration::from_secs);
        PeerChanges {
            name: Some(self.name.clone()),
            preshared_key: Some(preshared_key.map(PresharedKey::from_bytes)),
            // What the configuration took is a name still.
            host: Some(self.host.as_ref().and_then(|host| host.parse().ok())),
            persistent_keepalive: Some(keepalive),
            suite: Some(config_suite(self.suite)),
            replace_allowed_ips: true,
            allowed_ips: self.allowed_ips.iter().copied().map(AllowedIp::Add).collect(),
            ..PeerChanges::of(self.public_key)
        }
    }
}
