//! The door: one thread that receives what is no data, and lets in what is worth the control thread's time.
//!
//! A flood of handshake messages fills the door's socket and keeps the door busy, and nobody else: workers see data
//! messages only (see [`steer`](crate::sys::steer)), and the control thread what the [`Doorman`] has let in. Once something
//! was turned away the door lets datagrams gather, so that a flood costs few wake-ups and system calls; what it has no
//! time for is dropped by the kernel, at the cheapest place there is.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::mailbox::{HandshakePort, WorkerGone};
use super::{HANDSHAKE_TOS, time_now};
use crate::path::drops::Drop;
use crate::path::report::{Handshake, Received};
use crate::proto::{Doorman, Endpoint};
use crate::stats::counters::WorkerCounters;
use crate::sys::inbox::Inbox;
use crate::sys::outbox::Outbox;
use crate::sys::udp::UdpSocket;
use crate::sys::wake::{self, Wake, Waker};
use crate::wire::message::COOKIE_REPLY_LEN;

/// Datagrams looked at before the others may gather again: with [`GATHER`] at most 256,000 a second.
const PASS_MAX: usize = 512;
/// How long datagrams gather once something was turned away: also what a flood may add to a handshake's time.
const GATHER: Duration = Duration::from_millis(2);
/// Commands that may wait.
const COMMANDS_MAX: usize = 16;

enum Command {
    Doorman(Box<Doorman>),
    ReplaceUdp(UdpSocket),
    Stop,
}

/// The control thread's way to the door.
pub struct DoorPort {
    commands: Sender<Command>,
    waker: Waker,
}

impl DoorPort {
    /// Lets another doorman decide.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn set_doorman(&self, doorman: Doorman) -> Result<(), WorkerGone> {
        self.send(Command::Doorman(Box::new(doorman)))
    }

    /// Receives from and sends on another socket.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn replace_udp(&self, socket: UdpSocket) -> Result<(), WorkerGone> {
        self.send(Command::ReplaceUdp(socket))
    }

    /// Ends the thread.
    ///
    /// # Errors
    /// It has ended.
    pub fn stop(&self) -> Result<(), WorkerGone> {
        self.send(Command::Stop)
    }

    fn send(&self, command: Command) -> Result<(), WorkerGone> {
        // The door looks into its mailbox after each pass, so a full one is soon empty.
        self.waker.wake();
        self.commands.send(command).map_err(|_| WorkerGone)?;
        self.waker.wake();
        Ok(())
    }
}

/// What the thread is to begin with.
pub struct Door {
    socket: UdpSocket,
    wake: Wake,
    doorman: Doorman,
    commands: Receiver<Command>,
    control: HandshakePort,
    counters: Arc<WorkerCounters>,
}

/// The thread's own.
struct Keeper {
    inbox: Inbox,
    outbox: Outbox,
    doorman: Box<Doorman>,
    commands: Receiver<Command>,
    control: HandshakePort,
    counters: Arc<WorkerCounters>,
    replies: Vec<(Endpoint, [u8; COOKIE_REPLY_LEN])>,
}

enum Turn {
    Continue,
    Stop,
}

impl Door {
    /// Receives from `socket`, and sends cookie replies on it.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new(
        socket: UdpSocket,
        doorman: Doorman,
        control: HandshakePort,
        counters: Arc<WorkerCounters>,
    ) -> io::Result<(Door, DoorPort)> {
        let (waker, wake) = wake::pair()?;
        let (commands_in, commands) = bounded(COMMANDS_MAX);
        let door = Door {
            socket,
            wake,
            doorman,
            commands,
            control,
            counters,
        };
        let port = DoorPort {
            commands: commands_in,
            waker,
        };
        Ok((door, port))
    }

    /// Keeps the door on the calling thread until told to stop, or until the kernel refuses to go on.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn run(self) -> io::Result<()> {
        let keeper = Keeper {
            outbox: Outbox::new(self.socket.try_clone()?),
            inbox: Inbox::new(self.socket, self.wake)?,
            doorman: Box::new(self.doorman),
            commands: self.commands,
            control: self.control,
            counters: self.counters,
            replies: Vec::new(),
        };
        keeper.run()
    }
}

impl Keeper {
    fn run(mut self) -> io::Result<()> {
        loop {
            if self.inbox.wait()?
                && let Turn::Stop = self.obey()?
            {
                return Ok(());
            }
            let flooded = self.pass()?;
            if flooded
                && self.inbox.pause(GATHER)?
                && let Turn::Stop = self.obey()?
            {
                return Ok(());
            }
        }
    }

    fn obey(&mut self) -> io::Result<Turn> {
        for command in self.commands.try_iter() {
            match command {
                Command::Doorman(doorman) => self.doorman = doorman,
                Command::ReplaceUdp(socket) => {
                    self.outbox = Outbox::new(socket.try_clone()?);
                    self.inbox.replace(socket)?;
                }
                Command::Stop => return Ok(Turn::Stop),
            }
        }
        Ok(Turn::Continue)
    }

    /// Looks at what has come; whether there is more than the door wants to see at once.
    fn pass(&mut self) -> io::Result<bool> {
        let now = time_now();
        let (doorman, control, counters) = (&mut self.doorman, &self.control, &self.counters);
        let replies = &mut self.replies;
        let (mut seen, mut turned_away, mut let_in) = (0, false, false);
        let mut judge = |message: Option<(&Received, &[u8])>| {
            let Some((received, datagram)) = message else {
                return Err(Drop::BadMessage);
            };
            doorman
                .judge(now, received.from.remote, datagram)
                .map_err(|turned_away| {
                    replies.extend(turned_away.reply.map(|reply| (received.from, reply)));
                    turned_away.reason
                })?;
            let handshake = Handshake {
                from: received.from,
                datagram: datagram.into(),
                admitted: true,
            };
            let_in = true;
            control.post(handshake).map_err(|_| Drop::HandshakeQueueFull)
        };
        while seen < PASS_MAX {
            let count = self.inbox.receive(|message| {
                if let Err(reason) = judge(message) {
                    counters.dropped(reason, 1);
                    turned_away = true;
                }
            })?;
            seen += count;
            if count == 0 {
                break;
            }
        }
        if let_in {
            self.control.wake();
        }
        self.reply();
        Ok(turned_away || seen >= PASS_MAX)
    }

    fn reply(&mut self) {
        let datagrams = self.replies.iter().map(|(to, reply)| (*to, &reply[..]));
        self.outbox.send(HANDSHAKE_TOS, datagrams, |errno| {
            let reason = match errno {
                libc::EAGAIN | libc::ENOBUFS => Drop::SendBufferFull,
                _ => Drop::SendFailed,
            };
            self.counters.dropped(reason, 1);
        });
        self.replies.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ratelimit::FREE;
    use crate::sys::udp::{UdpOptions, bind_group};
    use crate::wire::message::{WG_INITIATION_LEN, initiation_without_macs};
    use crate::worker::mailbox;
    use std::net::{Ipv4Addr, UdpSocket as StdSocket};
    use std::time::Instant;

    const PUBLIC: [u8; 32] = [7; 32];

    struct Lab {
        thread: Option<std::thread::JoinHandle<io::Result<()>>>,
        port: DoorPort,
        reports: mailbox::Reports,
        counters: Arc<WorkerCounters>,
        socket: UdpSocket,
        client: StdSocket,
    }

    fn doorman(public_key: [u8; 32]) -> Doorman {
        Doorman::new(public_key, Arc::default(), |bytes| bytes.fill(9))
    }

    fn client_of(port: u16) -> StdSocket {
        let client = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    }

    fn lab() -> Lab {
        let mut group = bind_group(0, 1, UdpOptions::default()).unwrap();
        let socket = group.sockets.remove(0);
        let watched = socket.try_clone().unwrap();
        let (_, _, handshakes, reports) = mailbox::connect(&[]);
        let counters = Arc::new(WorkerCounters::default());
        let (door, port) = Door::new(socket, doorman(PUBLIC), handshakes, counters.clone()).unwrap();
        Lab {
            thread: Some(std::thread::spawn(move || door.run())),
            port,
            reports,
            counters,
            socket: watched,
            client: client_of(group.port),
        }
    }

    impl Lab {
        fn next(&self) -> Handshake {
            self.reports
                .handshakes
                .recv_timeout(Duration::from_secs(10))
                .expect("a message that was let in")
        }

        /// Waits until `count` messages were dropped for `reason`.
        fn wait_for(&self, reason: Drop, count: u64) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while self.counters.dropped_so_far(reason) < count {
                assert!(Instant::now() < deadline, "{:?}", self.counters.snapshot().drops);
                std::thread::yield_now();
            }
        }

        fn end(mut self) {
            self.port.stop().unwrap();
            self.thread.take().unwrap().join().unwrap().unwrap();
        }
    }

    fn initiation(receiver: &[u8; 32]) -> Vec<u8> {
        let mut message = initiation_without_macs(false, 3, &[5; WG_INITIATION_LEN - 8 - 32]);
        crate::proto::mac::append(&mut message, receiver, None);
        message
    }

    #[test]
    fn what_is_worth_it_is_passed_on_and_all_else_is_counted() {
        let lab = lab();
        lab.client.send(&initiation(&PUBLIC)).unwrap();
        let let_in = lab.next();
        assert_eq!(
            (let_in.from.remote, &let_in.datagram[..], let_in.admitted),
            (lab.client.local_addr().unwrap(), &initiation(&PUBLIC)[..], true)
        );
        for message in [&initiation(&[8; 32])[..], &[1, 2, 3], &[0; 4000], &[]] {
            lab.client.send(message).unwrap();
        }
        lab.wait_for(Drop::BadMac1, 1);
        lab.wait_for(Drop::BadMessage, 3);
        lab.end();
    }

    #[test]
    fn in_a_flood_cookies_are_demanded_and_what_comes_is_accounted_for() {
        let lab = lab();
        const COUNT: u64 = 4000;
        let message = initiation(&PUBLIC);
        for _ in 0..COUNT {
            lab.client.send(&message).unwrap();
        }
        let mut reply = [0; 100];
        assert_eq!(lab.client.recv(&mut reply).unwrap(), COOKIE_REPLY_LEN);
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut let_in = 0;
        let turned_away = || {
            let unseen = lab.socket.drops().unwrap();
            u64::from(unseen) + lab.counters.dropped_so_far(Drop::CookieDemanded)
        };
        while let_in + turned_away() < COUNT {
            let_in += lab.reports.handshakes.try_iter().count() as u64;
            assert!(
                Instant::now() < deadline,
                "{let_in}, {:?}",
                lab.counters.snapshot().drops
            );
            std::thread::yield_now();
        }
        assert!(let_in >= FREE.burst.into(), "{let_in}");
        lab.end();
    }

    #[test]
    fn another_doorman_and_another_socket_take_over() {
        let lab = lab();
        lab.port.set_doorman(doorman([8; 32])).unwrap();
        let mut group = bind_group(0, 1, UdpOptions::default()).unwrap();
        lab.port.replace_udp(group.sockets.remove(0)).unwrap();
        let client = client_of(group.port);
        client.send(&initiation(&PUBLIC)).unwrap();
        client.send(&initiation(&[8; 32])).unwrap();
        assert_eq!(&lab.next().datagram[..], &initiation(&[8; 32])[..]);
        lab.wait_for(Drop::BadMac1, 1);
        lab.end();
    }
}
