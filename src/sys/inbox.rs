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

/// Datagrams per recvmmsg(2), at most.
const BATCH: u16 = 64;
/// Room for one; what is longer is cut off, and told as such.
const DATAGRAM_MAX: usize = 2048;

/// Receives on a socket of its own, one datagram at a time, until somebody wakes its thread.
pub struct Inbox {
    socket: UdpSocket,
    wake: Wake,
    pool: Rc<Pool>,
    receives: ReceiveBatch,
}

impl Inbox {
    /// On `socket`, which is told not to receive runs.
    ///
    /// # Errors
    /// `ENOMEM`; what setsockopt(2) says.
    pub fn new(socket: UdpSocket, wake: Wake) -> io::Result<Inbox> {
        socket.receive_singly()?;
        Ok(Inbox {
            socket,
            wake,
            pool: Pool::new(BATCH, DATAGRAM_MAX)?,
            receives: ReceiveBatch::new(BATCH.into()),
        })
    }

    /// Receives on another socket from here on.
    ///
    /// # Errors
    /// What setsockopt(2) says; the old socket stays.
    pub fn replace(&mut self, socket: UdpSocket) -> io::Result<()> {
        socket.receive_singly()?;
        self.socket = socket;
        Ok(())
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

    /// Receives what is there, up to 64 datagrams, without waiting, and tells `each` of every one; `None` for one that is
    /// empty, longer than 2048 bytes or without a sender. How many there were.
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
            count += 1;
            match message {
                Some((mut buffer, payload, received)) => each(Some((&received, &buffer.bytes_mut()[payload]))),
                None => each(None),
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
    fn datagrams_come_one_by_one_with_their_senders_and_what_is_too_long_is_told() {
        let (mut inbox, _waker, sender) = inbox();
        for message in [&[7; 100][..], &[8; 100], &[9; 3000], &[]] {
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
        let expected = [Some((from, vec![7; 100])), Some((from, vec![8; 100])), None, None];
        assert_eq!(found, expected);
        assert_eq!(inbox.receive(|_| panic!("there is nothing")).unwrap(), 0);
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
