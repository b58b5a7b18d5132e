//! Small datagrams to many places by few system calls, beside an engine: what is no packet's journey.

use super::send::{Outgoing, SendBatch};
use super::udp::UdpSocket;
use crate::proto::endpoint::Endpoint;

/// Datagrams per sendmmsg(2), at most.
const BATCH: usize = 64;

/// Sends on somebody's socket, through a descriptor of its own.
pub struct Outbox {
    socket: UdpSocket,
    batch: SendBatch,
}

impl Outbox {
    /// On `socket`.
    pub fn new(socket: UdpSocket) -> Outbox {
        Outbox {
            socket,
            batch: SendBatch::new(BATCH),
        }
    }

    /// Sends them in order, with traffic class `tos`. What the kernel refuses is not tried again: `lost` is told of every
    /// such datagram, with its errno.
    pub fn send<'a>(
        &mut self,
        tos: u8,
        datagrams: impl Iterator<Item = (Endpoint, &'a [u8])> + Clone,
        mut lost: impl FnMut(i32),
    ) {
        let mut rest = datagrams.peekable();
        while rest.peek().is_some() {
            let messages = rest.clone().map(|(to, payload)| Outgoing {
                payload,
                segment: None,
                to,
                tos,
            });
            let done = self.batch.send(&self.socket, messages).unwrap_or_else(|errno| {
                lost(errno);
                1
            });
            rest.by_ref().take(done.max(1)).for_each(drop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::udp::{UdpOptions, bind_group};
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    #[test]
    fn what_cannot_be_sent_is_told_and_does_not_keep_the_rest_back() {
        let group = bind_group(0, 1, UdpOptions::default()).unwrap();
        let receiver = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let here = Endpoint::new(receiver.local_addr().unwrap());
        // Port 0 is nobody's: EINVAL.
        let nowhere = Endpoint::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let numbers: Vec<[u8; 1]> = (0..200u8).map(|number| [number]).collect();
        let datagrams = numbers.iter().map(|number| {
            let to = if number[0] % 10 == 7 { nowhere } else { here };
            (to, &number[..])
        });
        let mut lost = Vec::new();
        Outbox::new(group.sockets[0].try_clone().unwrap()).send(0, datagrams, |errno| lost.push(errno));
        assert_eq!(lost, vec![libc::EINVAL; 20]);
        for number in (0..200u8).filter(|number| number % 10 != 7) {
            let mut byte = [0];
            assert_eq!(receiver.recv(&mut byte).unwrap(), 1);
            assert_eq!(byte, [number]);
        }
    }
}
