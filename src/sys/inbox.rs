//! Small datagrams from many places by few system calls, beside the engines: what is no packet's journey.

use super::engine::Received;
use super::errno;
use super::poll;
use super::pool::Pool;
use super::receive::ReceiveBatch;
use super::udp::UdpSocket;
use super::wake::Wake;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

/// Datagrams, or runs of them, per recvmmsg(2), at most.
const BATCH: u16 = 64;
/// Room for a run (UDP_GRO). What nobody writes to costs no memory.
const RUN_MAX: usize = 1 << 16;

/// Receives on a socket of its own until somebody wakes its thread.
pub struct Inbox {
    socket: UdpSocket,
    wake: Wake,
    pool: Rc<Pool>,
    receives: ReceiveBatch,
}

impl Inbox {
    /// On `socket`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(socket: UdpSocket, wake: Wake) -> io::Result<Inbox> {
        Ok(Inbox {
            socket,
            wake,
            pool: Pool::new(BATCH, RUN_MAX)?,
            receives: ReceiveBatch::new(BATCH.into()),
        })
    }

    /// Receives on another socket from here on.
    pub fn replace(&mut self, socket: UdpSocket) {
        self.socket = socket;
    }

    /// Waits for a datagram or for being woken; true when woken. Look into the mailbox then.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn wait(&self) -> io::Result<bool> {
        let [_, woken] = poll::readable([Some(self.socket.as_fd()), Some(self.wake.as_fd())], None)?;
        Ok(self.answer(woken))
    }

    /// Lets datagrams gather for `time`, unless woken; true when woken.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn pause(&self, time: Duration) -> io::Result<bool> {
        let [woken] = poll::readable([Some(self.wake.as_fd())], Some(time))?;
        Ok(self.answer(woken))
    }

    fn answer(&self, woken: bool) -> bool {
        if woken {
            self.wake.drain();
        }
        woken
    }

    /// Receives what is there, up to 64 datagrams or runs of them, without waiting, and tells `each` of every datagram; `None`
    /// for one that is empty or without a sender. How many datagrams there were.
    ///
    /// # Errors
    /// The socket is no good and never will be. (What else recvmmsg(2) may say passes, as if nothing had been there.)
    pub fn receive(&mut self, mut each: impl FnMut(Option<(&Received, &[u8])>)) -> io::Result<usize> {
        self.receives.refill(&self.pool);
        let messages = match self.receives.receive(&self.socket) {
            Ok(messages) => messages,
            Err(errno) => return errno::of_udp_receive(errno).map_or(Ok(0), Err),
        };
        let mut count = 0;
        for message in messages {
            let Some((mut buffer, payload, received)) = message else {
                count += 1;
                each(None);
                continue;
            };
            for datagram in buffer.bytes_mut()[payload].chunks(received.segment.max(1)) {
                count += 1;
                each(Some((&received, datagram)));
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::udp::{UdpOptions, bind_group};
    use crate::sys::wake;
    use std::net::{Ipv4Addr, UdpSocket as StdSocket};

    fn inbox() -> (Inbox, wake::Waker, StdSocket) {
        let mut group = bind_group(0, 1, UdpOptions::default()).unwrap();
        let (waker, wake) = wake::pair().unwrap();
        let sender = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.connect((Ipv4Addr::LOCALHOST, group.port)).unwrap();
        (Inbox::new(group.sockets.remove(0), wake).unwrap(), waker, sender)
    }

    #[test]
    fn datagrams_come_one_by_one_with_their_senders_and_what_is_empty_is_told() {
        let (mut inbox, _waker, sender) = inbox();
        for message in [&[7; 100][..], &[8; 100], &[9; 9000], &[]] {
            sender.send(message).unwrap();
        }
        assert!(!inbox.wait().unwrap());
        let mut found = Vec::new();
        let mut count = 0;
        while count < 4 {
            count += inbox
                .receive(|message| {
                    found.push(message.map(|(received, datagram)| (received.from.remote, datagram.to_vec())));
                })
                .unwrap();
        }
        let from = sender.local_addr().unwrap();
        let expected = [
            Some((from, vec![7; 100])),
            Some((from, vec![8; 100])),
            Some((from, vec![9; 9000])),
            None,
        ];
        assert_eq!(found, expected);
        assert_eq!(inbox.receive(|_| panic!("there is nothing")).unwrap(), 0);
    }

    #[test]
    fn a_run_comes_as_its_datagrams() {
        let (mut inbox, _waker, sender) = inbox();
        if !inbox.socket.gso() {
            return;
        }
        let segment: libc::c_int = 100;
        let sender_fd = sender.as_fd();
        crate::sys::option::set(sender_fd, libc::SOL_UDP, libc::UDP_SEGMENT, &segment).unwrap();
        sender.send(&[5; 250]).unwrap();
        let mut lengths = Vec::new();
        while lengths.len() < 3 {
            inbox.wait().unwrap();
            inbox.receive(|message| lengths.push(message.unwrap().1.len())).unwrap();
        }
        assert_eq!(lengths, [100, 100, 50]);
    }

    #[test]
    fn more_than_a_call_takes_comes_with_the_next_ones() {
        let (mut inbox, _waker, sender) = inbox();
        for number in 0..200u8 {
            sender.send(&[number]).unwrap();
        }
        let mut numbers = Vec::new();
        while numbers.len() < 200 {
            inbox.wait().unwrap();
            inbox.receive(|message| numbers.push(message.unwrap().1[0])).unwrap();
        }
        assert_eq!(numbers, (0..200).collect::<Vec<u8>>());
    }

    #[test]
    fn a_wake_up_ends_both_ways_of_waiting_once() {
        let (inbox, waker, _sender) = inbox();
        waker.wake();
        assert!(inbox.wait().unwrap());
        assert!(!inbox.pause(Duration::from_millis(1)).unwrap());
        waker.wake();
        assert!(inbox.pause(Duration::from_secs(60)).unwrap());
    }
}
