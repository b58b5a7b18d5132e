//! What is no data: handshake messages go to the control thread, once they have shown that they are worth its time.

use super::Forwarder;
use crate::path::drops::Drop;
use crate::path::report::{Received, Report};
use crate::proto::{Doorman, Endpoint, Time};
use crate::wire::message::{COOKIE_REPLY_LEN, HandshakeMessage};

/// An answer to a handshake message that was turned away.
#[derive(Debug)]
pub struct CookieReply {
    /// Its sender.
    pub to: Endpoint,
    /// The whole message.
    pub datagram: [u8; COOKIE_REPLY_LEN],
}

impl<S: AsMut<[u8]>> Forwarder<S> {
    /// Has `doorman` look at handshake messages from here on. Without one they all go to the control thread.
    pub fn set_doorman(&mut self, doorman: Doorman) {
        self.doorman = Some(Box::new(doorman));
    }

    pub(super) fn handshake(&mut self, now: Time, received: &Received, datagram: &[u8]) -> Result<(), Drop> {
        match &mut self.doorman {
            Some(doorman) => {
                doorman
                    .judge(now, received.from.remote, datagram)
                    .map_err(|turned_away| {
                        self.replies.extend(turned_away.reply.map(|datagram| CookieReply {
                            to: received.from,
                            datagram,
                        }));
                        turned_away.reason
                    })?;
            }
            None if HandshakeMessage::parse(datagram).is_none() => return Err(Drop::BadMessage),
            None => {}
        }
        self.reports.push(Report::Handshake {
            from: received.from,
            datagram: datagram.into(),
            admitted: self.doorman.is_some(),
        });
        Ok(())
    }
}
