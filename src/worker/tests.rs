use super::*;
use crate::path::coalesce::{Coalescer, Offloads};
use crate::path::gso::Batches;
use crate::path::peers::NewPeer;
use crate::path::report::{Handover, Received};
use crate::proto::session::open_half;
use crate::proto::{Endpoint, SessionId};
use crate::sys::engine::EngineCounters;
use crate::sys::tun::TunQueue;
use crate::sys::udp::UdpSocket;
use crate::sys::wake;
use crate::wire::message::NATIVE_DATA;
use mailbox::WorkerPort;
use placement::Loads;

const PEER: PeerId = PeerId(0);
const INDEX: u32 = 0x0102_0400;

/// An engine to which nothing happens but what the test puts into the mailbox while the worker waits; nobody is heard to ring.
struct Quiet<F> {
    meanwhile: Option<F>,
}

impl<F: FnOnce()> Engine for Quiet<F> {
    fn turn(&mut self, _: Wait, _: &mut Vec<Event>) -> io::Result<()> {
        match self.meanwhile.take() {
            Some(meanwhile) => meanwhile(),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn slots(&self) -> SendSlots {
        SendSlots::one()
    }

    fn writes_waiting(&self) -> usize {
        0
    }

    fn is_still(&self) -> bool {
        true
    }

    fn counters(&self) -> EngineCounters {
        EngineCounters::default()
    }

    fn pause(&mut self) {}
    fn go_on(&mut self) {}

    fn datagrams<'a>(&'a mut self, _: &'a mut UdpBuffer) -> (Received, &'a mut [u8]) {
        unreachable!("nothing was received")
    }

    fn send(&mut self, _: SendRun) {
        unreachable!("nobody is there to send to")
    }

    fn use_queues(&mut self, _: Arc<[TunQueue]>) {
        unreachable!("nobody has told it of others")
    }

    fn write(&mut self, _: Group) {
        unreachable!("nothing is authentic")
    }

    fn replace_udp(&mut self, _: UdpSocket) -> io::Result<()> {
        unreachable!("nobody asks for it")
    }

    fn add_lane_socket(&mut self, _: UdpSocket) -> io::Result<()> {
        unreachable!("nobody asks for it")
    }
}

/// What one worker counts in a turn in which `meanwhile` fills its mailbox.
fn turn(meanwhile: impl FnOnce(&WorkerPort, &Mailbox)) -> Arc<WorkerCounters> {
    let (wakers, _wakes): (Vec<_>, Vec<_>) = [(); 3].map(|()| wake::pair().expect("an eventfd")).into_iter().unzip();
    let (ports, mut mailboxes, _door, _reports) = mailbox::connect(&wakers[..2], &wakers[2]);
    let other = mailboxes.pop().expect("two workers");
    let counters = Arc::<WorkerCounters>::default();
    let forwarder = Forwarder::new(
        0,
        2,
        Coalescer::new(Offloads { tcp: false, udp: false }),
        Batches::new(false),
        1420,
        counters.clone(),
    );
    let engine = Quiet {
        meanwhile: Some(|| meanwhile(&ports[0], &other)),
    };
    let mailbox = mailboxes.pop().expect("two workers");
    let placement = Placement::new(0, Loads::new(2));
    let end = Worker::new(0, engine, forwarder, mailbox, placement, counters.clone()).run();
    assert_eq!(end.expect_err("the engine ends").kind(), io::ErrorKind::UnexpectedEof);
    counters
}

#[test]
fn keys_that_were_given_before_a_datagram_came_are_there_when_it_is_opened() {
    let counters = turn(|control, other_worker| {
        let sent = [
            Command::AddPeer(PEER, Arc::new(NewPeer::new(None, 2))),
            Command::Open(PEER, vec![open_half(SessionId(1), INDEX)]),
        ];
        for command in sent {
            control.send(command).expect("the worker is there");
        }
        let mut datagram = vec![0; 64];
        datagram[0] = NATIVE_DATA;
        datagram[4..8].copy_from_slice(&INDEX.to_le_bytes());
        let received = Received {
            from: Endpoint::new(([192, 0, 2, 1], 51820).into()),
            segment: datagram.len(),
            tos: 0,
            received_unix_ns: 0,
        };
        let mut handovers = Vec::new();
        Handover::add(&mut handovers, 0, &received, &datagram);
        assert!(other_worker.hand_over(handovers.remove(0)));
    });
    // Its tag is wrong, and the session is as old as the machine's uptime: nobody can tell either without the key.
    let by_the_key = [Drop::Forged, Drop::ExpiredSession].map(|reason| counters.dropped_so_far(reason));
    assert_eq!(by_the_key.iter().sum::<u64>(), 1);
    assert_eq!(counters.dropped_so_far(Drop::UnknownIndex), 0);
}

#[test]
fn as_many_commands_as_may_wait_are_obeyed_in_one_turn() {
    let (done, answers) = crossbeam_channel::bounded(mailbox::COMMANDS_MAX);
    turn(|control, _| {
        for _ in 0..mailbox::COMMANDS_MAX {
            control
                .send(Command::Answer(done.clone()))
                .expect("the worker is there");
        }
    });
    assert_eq!(answers.len(), mailbox::COMMANDS_MAX);
}
