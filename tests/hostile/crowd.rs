//! A thousand clients in one process: the crate's own protocol over plain sockets, each client with an address of its own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringway::crypto::Choice;
use ringway::proto::{
    Action, Device, DeviceConfig, Endpoint, Now, OpenHalf, PeerConfig, PeerId, SealHalf, StaticSecret, SuiteChoice,
    Time,
};
use ringway::wire::checksum::Sum;
use ringway::wire::message::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, TAG_LEN};

use crate::end::{PORT, private_key};
use crate::forge::Random;
use crate::lab::Lab;

/// How long a question waits for its answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How far apart clients begin: so many handshakes per second are free.
const STAGGER: Duration = Duration::from_millis(1);
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ICMP: u8 = 1;

/// Where client `number` is, outside and inside of the tunnel.
pub(crate) fn addresses(number: u32) -> [Ipv4Addr; 2] {
    [0x0ac8_0000, 0x0ac9_0000].map(|network| Ipv4Addr::from(network + 1 + number))
}

/// One client.
struct Client {
    device: Device,
    server: PeerId,
    socket: UdpSocket,
    inner: Ipv4Addr,
    seal: Option<SealHalf>,
    opens: HashMap<u32, OpenHalf>,
    asked: Option<Time>,
    answered: bool,
}

/// All of them.
pub(crate) struct Crowd {
    clients: Vec<Client>,
    started: Instant,
    server: SocketAddr,
    /// The inner address that answers.
    target: Ipv4Addr,
}

impl Crowd {
    /// `count` clients in namespace a of `lab`, of a server at `server` whose key is `public_key`. Client `n` has the private
    /// key `n`.
    pub(crate) fn new(
        lab: &Lab,
        count: u32,
        suite: SuiteChoice,
        server: SocketAddr,
        public_key: [u8; 32],
        target: Ipv4Addr,
    ) -> Crowd {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a process has limits");
        let wanted = most.min(u64::from(count) + 1000);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, most).expect("below the hard limit");
        let sockets = lab.a.enter(|| {
            let bind = |number| UdpSocket::bind((addresses(number)[0], PORT)).expect("the address is ours");
            (0..count).map(bind).collect::<Vec<_>>()
        });
        let clients = (0..count).zip(sockets).map(|(number, socket)| {
            socket.set_nonblocking(true).expect("a socket can be");
            let mut random = Random(u64::from(number));
            let config = DeviceConfig {
                private_key: StaticSecret::from(private_key(number)),
                lanes: 1,
                crypto: Choice::Auto,
            };
            let mut device = Device::new(config, move |bytes: &mut [u8]| {
                let drawn = random.bytes(bytes.len());
                bytes.copy_from_slice(&drawn);
            });
            let peer = PeerConfig {
                public_key,
                preshared_key: None,
                endpoint: Some(server),
                persistent_keepalive: None,
                suite,
            };
            Client {
                server: device.add_peer(Time::default(), peer).expect("the first peer"),
                device,
                socket,
                inner: addresses(number)[1],
                seal: None,
                opens: HashMap::new(),
                asked: None,
                answered: false,
            }
        });
        Crowd {
            clients: clients.collect(),
            started: Instant::now(),
            server,
            target,
        }
    }

    /// Lets every client shake hands and ask, and reads what there is; how many have their answer.
    pub(crate) fn step(&mut self) -> usize {
        let elapsed = self.started.elapsed();
        let now = Now {
            // A device takes time 0 for the beginning of the world.
            mono: Time::from_nanos(1 << 40) + elapsed,
            unix: SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"),
        };
        let present = (elapsed.as_micros() / STAGGER.as_micros()) as usize + 1;
        for client in self.clients.iter_mut().take(present) {
            client.step(now, self.server, self.target);
        }
        self.clients.iter().filter(|client| client.answered).count()
    }
}

impl Client {
    fn step(&mut self, now: Now, server: SocketAddr, target: Ipv4Addr) {
        let mut buffer = [0; 2048];
        while let Ok((len, _)) = self.socket.recv_from(&mut buffer) {
            self.receive(now, server, target, &mut buffer[..len]);
        }
        self.device.handle_timeout(now);
        if !self.answered && self.asked.is_none_or(|asked| now.mono - asked > PATIENCE) {
            match self.seal {
                Some(_) => {
                    self.asked = Some(now.mono);
                    let question = echo(self.inner, target);
                    self.send(now, &question, server);
                }
                None => {
                    self.asked = Some(now.mono);
                    self.device.want_session(self.server, now);
                }
            }
        }
        self.act(now, server);
    }

    fn act(&mut self, now: Now, server: SocketAddr) {
        while let Some(action) = self.device.poll_action() {
            match action {
                Action::Transmit { datagram, .. } => {
                    self.socket
                        .send_to(&datagram, server)
                        .expect("the server is one hop away");
                }
                Action::Install { seals, opens, .. } => {
                    self.seal = seals.into_iter().next();
                    self.opens
                        .extend(opens.into_iter().map(|open| (open.local_index(), open)));
                    // The question comes right after.
                    self.asked = None;
                }
                Action::SendKeepalive { .. } => self.send(now, &[], server),
                _ => {}
            }
        }
    }

    fn receive(&mut self, now: Now, server: SocketAddr, target: Ipv4Addr, datagram: &mut [u8]) {
        let Some(header) = DataHeader::parse(datagram) else {
            // What comes of it are actions; a cookie reply, for one, makes none.
            let _ = self.device.handle_datagram(now, Endpoint::new(server), datagram);
            return;
        };
        let open = self
            .opens
            .get_mut(&header.receiver)
            .expect("the server answers to our index");
        let text = open.open(now.mono, &header, datagram).expect("the server is honest");
        let packet = &datagram[text];
        let is_answer = packet.len() >= 28
            && packet[9] == ICMP
            && packet[12..16] == target.octets()
            && packet[16..20] == self.inner.octets()
            && packet[20] == ECHO_REPLY
            && packet[28..32] == self.inner.octets();
        self.answered |= is_answer;
    }

    fn send(&mut self, now: Now, packet: &[u8], server: SocketAddr) {
        let Some(seal) = &mut self.seal else { return };
        let mut datagram = vec![0; DATA_OVERHEAD + packet.len()];
        let end = datagram.len() - TAG_LEN;
        datagram[DATA_HEADER_LEN..end].copy_from_slice(packet);
        seal.seal(now.mono, 0, &mut datagram).expect("a new session");
        self.socket
            .send_to(&datagram, server)
            .expect("the server is one hop away");
    }
}

/// A ping from `from` to `to`, which carries the asking address.
fn echo(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0; 20];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 32, 64, ICMP);
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let checksum = Sum::of(&packet).checksum();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut question = vec![ECHO_REQUEST, 0, 0, 0, 0x12, 0x34, 0, 1];
    question.extend(from.octets());
    let checksum = Sum::of(&question).checksum();
    question[2..4].copy_from_slice(&checksum.to_be_bytes());
    [packet, question].concat()
}
