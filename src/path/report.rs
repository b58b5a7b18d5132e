//! What the data path is told of datagrams, and what it says to the rest of the process: reports to the control
//! thread, and datagrams for other workers.

use std::time::Duration;

use crate::proto::{Endpoint, PeerId, SessionId};

/// What is known of a receive buffer beside its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The sender, and the address of ours that it sent to.
    pub from: Endpoint,
    /// Bytes of each datagram in the buffer but perhaps the last (`UDP_GRO`).
    pub segment: usize,
    /// The outer header's traffic class.
    pub tos: u8,
    /// When the kernel received it, nanoseconds since 1970 (`SO_TIMESTAMPNS`); 0 when unknown.
    pub received_unix_ns: u64,
}

/// A handshake message or cookie reply.
#[derive(Debug)]
pub struct Handshake {
    /// Its sender.
    pub from: Endpoint,
    /// The message.
    pub datagram: Box<[u8]>,
}

/// News from a worker for the control thread.
#[derive(Debug)]
pub enum Report {
    /// A handshake message or cookie reply.
    Handshake(Handshake),
    /// A packet waits for keys, or keys grow old.
    WantSession(PeerId),
    /// The peer has shown that it has the session's keys.
    Confirmed(PeerId, SessionId),
    /// An authentic datagram came from elsewhere.
    Roamed(PeerId, Endpoint),
    /// A datagram to the peer was larger than the path carries.
    PathTooSmall(PeerId),
    /// An echo came back after this time.
    Rtt(PeerId, Duration),
    /// The peer goes down.
    Goodbye(PeerId),
}

impl Report {
    /// The peer that it is about; handshake messages are about nobody yet.
    pub fn peer(&self) -> Option<PeerId> {
        match *self {
            Report::Handshake(_) => None,
            Report::WantSession(peer)
            | Report::Confirmed(peer, _)
            | Report::Roamed(peer, _)
            | Report::PathTooSmall(peer)
            | Report::Rtt(peer, _)
            | Report::Goodbye(peer) => Some(peer),
        }
    }
}

/// Datagrams for the worker that owns their session, of one receive buffer.
#[derive(Debug)]
pub struct Handover {
    /// The worker they belong to.
    pub owner: u8,
    /// What is known of all of them.
    pub received: Received,
    /// The datagrams end to end, each `received.segment` bytes long but perhaps the last.
    pub bytes: Vec<u8>,
}

impl Handover {
    /// Adds a datagram to the last hand-over where it goes on, else to a new one.
    pub fn add(handovers: &mut Vec<Handover>, owner: u8, received: &Received, datagram: &[u8]) {
        match handovers.last_mut() {
            Some(last)
                if last.owner == owner && last.received == *received && last.bytes.len() % received.segment == 0 =>
            {
                last.bytes.extend_from_slice(datagram);
            }
            _ => handovers.push(Handover {
                owner,
                received: *received,
                bytes: datagram.to_vec(),
            }),
        }
    }
}
