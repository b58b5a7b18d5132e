//! The door: one thread that receives what is no data, and lets in what is worth the control thread's time.
//!
//! A flood of handshake messages fills the door's socket and keeps the door busy, and nobody else: workers see data
//! messages (see [`steer`](crate::sys::steer)), and the control thread what the [`Doorman`] has let in. Once something
//! was turned away the door lets datagrams gather, so that a flood costs few wake-ups and system calls; what it has no
//! time for is dropped by the kernel, at the cheapest place there is.
//!
//! Steering looks at the first datagram of a run only, and begins a moment after the sockets are there. So what came to a
//! worker and is no data is brought here, and data messages that came here go to their owner.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::mailbox::{DoorMailbox, WorkerGone};
use super::{HANDSHAKE_TOS, time_now};
use crate::path::drops::Drop;
use crate::path::report::{Handover, Handshake, Received};
use crate::proto::{Doorman, Endpoint, Time};
use crate::stats::counters::WorkerCounters;
use crate::sys::inbox::Inbox;
use crate::sys::outbox::Outbox;
use crate::sys::udp::UdpSocket;
use crate::sys::wake::{Wake, Waker};
use crate::wire::message::{self, COOKIE_REPLY_LEN, DataHeader};

/// Datagrams looked at before the others may gather again: with [`GATHER`] at most 256,000 a second.
const PASS_MAX: usize = 512;
/// How long datagrams gather once something was turned away: also what a flood may add to a handshake's time.
const GATHER: Duration = Duration::from_millis(2);
/// Commands that may wait.
const COMMANDS_MAX: usize = 16;

enum Command {
    Doorman(Box<Doorman>),
    ReplaceUdp(UdpSocket, UdpSocket),
    Stop,
}

/// The control thread's way to the door. The thread ends with it.
pub struct DoorPort {
    commands: Sender<Command>,
    waker: Waker,
    /// Nothing comes; it is cut off when the thread ends.
    ended: Receiver<()>,
}

impl DoorPort {
    /// Lets another doorman decide.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn set_doorman(&self, doorman: Doorman) -> Result<(), WorkerGone> {
        self.send(Command::Doorman(Box::new(doorman)))
    }

    /// Receives from another socket, and sends by `outbox`, another descriptor of the same.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn replace_udp(&self, socket: UdpSocket, outbox: UdpSocket) -> Result<(), WorkerGone> {
        self.send(Command::ReplaceUdp(socket, outbox))
    }

    /// Ends the thread.
    ///
    /// # Errors
    /// It has ended.
    pub fn stop(&self) -> Result<(), WorkerGone> {
        self.send(Command::Stop)
    }

    /// Waits until the thread has ended, but not longer than `patience`.
    pub fn wait_for_end(&self, patience: Duration) {
        let _ = self.ended.recv_timeout(patience);
    }

    fn send(&self, command: Command) -> Result<(), WorkerGone> {
        // The door looks into its mailbox before each pass, so a full one is soon empty.
        self.waker.wake();
        self.commands.send(command).map_err(|_| WorkerGone)?;
        self.waker.wake();
        Ok(())
    }
}

impl std::ops::Drop for DoorPort {
    fn drop(&mut self) {
        // Where the mailbox is full the door finds out by itself that nobody is there any more.
        let _ = self.commands.try_send(Command::Stop);
        self.waker.wake();
    }
}

/// What the thread is to begin with.
pub struct Door {
    socket: UdpSocket,
    wake: Wake,
    doorman: Doorman,
    commands: Receiver<Command>,
    mailbox: DoorMailbox,
    counters: Arc<WorkerCounters>,
    ended: Sender<()>,
}

/// The thread's own.
struct Keeper {
    inbox: Inbox,
    outbox: Outbox,
    commands: Receiver<Command>,
    judge: Judge,
}

/// What becomes of a datagram.
struct Judge {
    doorman: Box<Doorman>,
    mailbox: DoorMailbox,
    counters: Arc<WorkerCounters>,
    /// What the pass turned away, let in, and leaves to be sent.
    turned_away: bool,
    let_in: bool,
    replies: Vec<(Endpoint, [u8; COOKIE_REPLY_LEN])>,
    handovers: Vec<Handover>,
}

enum Turn {
    Continue,
    Stop,
}

impl Door {
    /// Receives from `socket`, and sends cookie replies on it. `waking` is the pair that `mailbox` was made with.
    pub fn new(
        socket: UdpSocket,
        waking: (Waker, Wake),
        doorman: Doorman,
        mailbox: DoorMailbox,
        counters: Arc<WorkerCounters>,
    ) -> (Door, DoorPort) {
        let (waker, wake) = waking;
        let (commands_in, commands) = bounded(COMMANDS_MAX);
        let (ended_in, ended) = bounded(0);
        let door = Door {
            socket,
            wake,
            doorman,
            commands,
            mailbox,
            counters,
            ended: ended_in,
        };
        let port = DoorPort {
            commands: commands_in,
            waker,
            ended,
        };
        (door, port)
    }

    /// Keeps the door on the calling thread until told to stop, or until the kernel refuses to go on.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn run(self) -> io::Result<()> {
        let _ended = self.ended;
        let keeper = Keeper {
            outbox: Outbox::new(self.socket.try_clone()?),
            inbox: Inbox::new(self.socket, self.wake)?,
            commands: self.commands,
            judge: Judge {
                doorman: Box::new(self.doorman),
                mailbox: self.mailbox,
                counters: self.counters,
                turned_away: false,
                let_in: false,
                replies: Vec::new(),
                handovers: Vec::new(),
            },
        };
        keeper.run()
    }
}

impl Keeper {
    fn run(mut self) -> io::Result<()> {
        let mut flooded = false;
        loop {
            let woken = match flooded {
                true => self.inbox.pause(GATHER)?,
                false => self.inbox.wait()?,
            };
            if woken && let Turn::Stop = self.obey() {
                // What workers have brought would be lost with the channel; what is in the socket is not.
                self.judge_strays(time_now());
                self.finish_pass();
                return Ok(());
            }
            flooded = self.pass()?;
        }
    }

    fn obey(&mut self) -> Turn {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Doorman(doorman)) => self.judge.doorman = doorman,
                Ok(Command::ReplaceUdp(socket, outbox)) => {
                    self.outbox = Outbox::new(outbox);
                    self.inbox.replace(socket);
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Turn::Stop,
                Err(TryRecvError::Empty) => return Turn::Continue,
            }
        }
    }

    /// Looks at what has come; whether there is more than the door wants to see at once.
    fn pass(&mut self) -> io::Result<bool> {
        let now = time_now();
        (self.judge.turned_away, self.judge.let_in) = (false, false);
        self.judge_strays(now);
        let judge = &mut self.judge;
        let mut seen = 0;
        while seen < PASS_MAX {
            let count = self.inbox.receive(|message| judge.look_at(now, message))?;
            if count == 0 {
                break;
            }
            seen += count;
        }
        self.finish_pass();
        Ok(self.judge.turned_away || seen >= PASS_MAX)
    }

    fn judge_strays(&mut self, now: Time) {
        let judge = &mut self.judge;
        // No more of them than there are places: workers may bring others all the time.
        for _ in 0..judge.mailbox.strays.len() {
            let Ok(stray) = judge.mailbox.strays.try_recv() else {
                break;
            };
            judge.judge(now, stray.from, &stray.datagram);
        }
    }

    fn finish_pass(&mut self) {
        let Judge {
            mailbox,
            counters,
            let_in,
            replies,
            handovers,
            ..
        } = &mut self.judge;
        if *let_in {
            mailbox.control.wake();
        }
        for handover in handovers.drain(..) {
            let datagrams = handover.bytes.len().div_ceil(handover.received.segment.max(1)) as u64;
            if !mailbox.hand_over(handover) {
                counters.dropped(Drop::MailboxFull, datagrams);
            }
        }
        let datagrams = replies.iter().map(|(to, reply)| (*to, &reply[..]));
        self.outbox.send(HANDSHAKE_TOS, datagrams, |errno| {
            let reason = match errno {
                libc::EAGAIN | libc::ENOBUFS => Drop::SendBufferFull,
                _ => Drop::SendFailed,
            };
            counters.dropped(reason, 1);
        });
        replies.clear();
    }
}

impl Judge {
    /// A datagram that came to the door.
    fn look_at(&mut self, now: Time, message: Option<(&Received, &[u8])>) {
        let Some((received, datagram)) = message else {
            return self.turn_away(Drop::BadMessage);
        };
        match DataHeader::parse(datagram) {
            Some(header) => {
                let owner = message::owner(header.receiver, self.mailbox.workers() as u8);
                Handover::add(&mut self.handovers, owner, received, datagram);
            }
            None => self.judge(now, received.from, datagram),
        }
    }

    /// Lets a message that is no data in, or turns it away.
    fn judge(&mut self, now: Time, from: Endpoint, datagram: &[u8]) {
        match self.doorman.judge(now, from.remote, datagram) {
            Ok(()) => {
                let handshake = Handshake {
                    from,
                    datagram: datagram.into(),
                };
                self.let_in = true;
                if self.mailbox.control.post(handshake).is_err() {
                    self.turn_away(Drop::HandshakeQueueFull);
                }
            }
            Err(turned_away) => {
                self.replies.extend(turned_away.reply.map(|reply| (from, reply)));
                self.turn_away(turned_away.reason.into());
            }
        }
    }

    fn turn_away(&mut self, reason: Drop) {
        self.counters.dropped(reason, 1);
        self.turned_away = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::report::Report;
    use crate::proto::ratelimit::FREE;
    use crate::sys::udp::{UdpOptions, bind_group};
    use crate::sys::wake;
    use crate::wire::message::{WG_INITIATION_LEN, initiation_without_macs};
    use crate::worker::mailbox;
    use std::net::{Ipv4Addr, UdpSocket as StdSocket};
    use std::time::Instant;

    const PUBLIC: [u8; 32] = [7; 32];

    struct Lab {
        thread: Option<std::thread::JoinHandle<io::Result<()>>>,
        port: DoorPort,
        reports: mailbox::Reports,
        workers: Vec<mailbox::Mailbox>,
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
        let waking = wake::pair().unwrap();
        let workers = [(); 2].map(|()| wake::pair().unwrap().0);
        let (_, mailboxes, mailbox, reports) = mailbox::connect(&workers, &waking.0);
        let counters = Arc::new(WorkerCounters::default());
        let (door, port) = Door::new(socket, waking, doorman(PUBLIC), mailbox, counters.clone());
        Lab {
            thread: Some(std::thread::spawn(move || door.run())),
            port,
            reports,
            workers: mailboxes,
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
            (let_in.from.remote, &let_in.datagram[..]),
            (lab.client.local_addr().unwrap(), &initiation(&PUBLIC)[..])
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
        let socket = group.sockets.remove(0);
        let outbox = socket.try_clone().unwrap();
        lab.port.replace_udp(socket, outbox).unwrap();
        let client = client_of(group.port);
        client.send(&initiation(&PUBLIC)).unwrap();
        client.send(&initiation(&[8; 32])).unwrap();
        assert_eq!(&lab.next().datagram[..], &initiation(&[8; 32])[..]);
        lab.wait_for(Drop::BadMac1, 1);
        lab.end();
    }

    #[test]
    fn what_came_to_the_wrong_thread_comes_to_the_right_one() {
        let lab = lab();
        let stray = Handshake {
            from: Endpoint::new(lab.client.local_addr().unwrap()),
            datagram: initiation(&PUBLIC).into(),
        };
        lab.workers[0].report(Report::Handshake(stray)).unwrap();
        assert_eq!(&lab.next().datagram[..], &initiation(&PUBLIC)[..]);
        for (index, owner) in [([7, 7, 7, 7], 0), ([5, 4, 3, 2], 1)] {
            let data = [&[message::WG_DATA, 0, 0, 0], &index[..], &[0; 24]].concat();
            lab.client.send(&data).unwrap();
            let handovers = &lab.workers[usize::from(owner)].handovers;
            let handover = handovers.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!((handover.owner, handover.bytes), (owner, data));
        }
        lab.end();
    }

    #[test]
    fn the_thread_ends_with_its_port() {
        let mut lab = lab();
        let thread = lab.thread.take().unwrap();
        drop(lab);
        thread.join().unwrap().unwrap();
    }
}
