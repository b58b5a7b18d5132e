//! Datagrams that look like the protocol's and are none of its. (Root tests include this file by path.)

use std::time::Duration;

use ringway::crypto::Choice;
use ringway::proto::{Action, Device, DeviceConfig, Now, PeerConfig, StaticSecret, Suite, SuiteChoice, Time, mac};
use ringway::wire::message::{
    DATA_OVERHEAD, DataHeader, MAC_LEN, NATIVE_DATA, NATIVE_INITIATION_LEN, WG_DATA, WG_INITIATION_LEN, cookie_reply,
    initiation_without_macs,
};

/// What is wrong with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Noise of any size, of no known type
    Garbage,
    /// An initiation of noise, mac1 included
    NoMac1,
    /// An initiation of noise with a valid mac1
    Mac1,
    /// A whole initiation from a static key that nobody knows
    UnknownKey,
    /// A genuine message that was recorded
    Replay,
    /// A cookie reply that nobody sent
    CookieReply,
    /// A data message to a random receiver
    Data,
    /// An initiation that ends too early
    Truncated,
    /// An initiation that does not end where it should
    Oversized,
}

/// Makes them.
pub(crate) struct Forge {
    suite: Suite,
    victim: [u8; 32],
    random: Random,
}

impl Forge {
    /// For an end that speaks `suite` and whose public key is `victim`.
    pub(crate) fn new(suite: Suite, victim: [u8; 32], seed: u64) -> Forge {
        Forge {
            suite,
            victim,
            random: Random(seed),
        }
    }

    /// One of that kind, different from all before.
    ///
    /// # Panics
    /// For [`Kind::Replay`], which cannot be made.
    pub(crate) fn message(&mut self, kind: Kind) -> Vec<u8> {
        match kind {
            Kind::Garbage => self.garbage(),
            Kind::NoMac1 => self.initiation(|message, random| message.extend(random.bytes(2 * MAC_LEN))),
            Kind::Mac1 => self.signed(),
            Kind::UnknownKey => {
                let key = self.random.bytes(32).try_into().expect("32 bytes");
                self.initiation_of(key)
            }
            Kind::CookieReply => self.cookie_reply(),
            Kind::Data => self.data(),
            Kind::Truncated => {
                let mut message = self.signed();
                let len = 1 + self.random.below(message.len() - 1);
                message.truncate(len);
                message
            }
            Kind::Oversized => {
                let mut message = self.signed();
                let more = 1 + self.random.below(1200);
                message.extend(self.random.bytes(more));
                message
            }
            Kind::Replay => panic!("a message that is replayed is recorded, not made"),
        }
    }

    fn is_native(&self) -> bool {
        self.suite == Suite::Native
    }

    fn garbage(&mut self) -> Vec<u8> {
        let len = 1 + self.random.below(200);
        let mut message = self.random.bytes(len);
        // No suite has types of which these bits are set.
        message[0] |= 0x70;
        message
    }

    /// An initiation of noise, to which `finish` appends both macs.
    fn initiation(&mut self, finish: impl FnOnce(&mut Vec<u8>, &mut Random)) -> Vec<u8> {
        let len = if self.is_native() {
            NATIVE_INITIATION_LEN
        } else {
            WG_INITIATION_LEN
        };
        // The header is 8 bytes long: type, zeros, sender.
        let noise = self.random.bytes(len - 8 - 2 * MAC_LEN);
        // As a native index, whose low byte is the lane's place.
        let sender = (self.random.next() as u32) << 8;
        let mut message = initiation_without_macs(self.is_native(), sender, &noise);
        finish(&mut message, &mut self.random);
        message
    }

    fn signed(&mut self) -> Vec<u8> {
        let victim = self.victim;
        self.initiation(|message, _| {
            mac::append(message, &victim, None);
        })
    }

    /// A whole initiation from the owner of `private_key`, sent in November 2023: late, should it have sent others since.
    pub(crate) fn initiation_of(&mut self, private_key: [u8; 32]) -> Vec<u8> {
        let mut random = Random(self.random.next());
        let config = DeviceConfig {
            private_key: StaticSecret::from(private_key),
            lanes: 1,
            crypto: Choice::Auto,
        };
        let mut device = Device::new(config, move |bytes: &mut [u8]| {
            let drawn = random.bytes(bytes.len());
            bytes.copy_from_slice(&drawn);
        });
        let peer = PeerConfig {
            public_key: self.victim,
            preshared_key: None,
            // Where it would go is of no interest.
            endpoint: Some(([192, 0, 2, 1], 1).into()),
            persistent_keepalive: None,
            suite: match self.suite {
                Suite::Native => SuiteChoice::Native,
                Suite::WireGuard => SuiteChoice::WireGuard,
            },
        };
        let id = device.add_peer(Time::default(), peer).expect("the first peer");
        let now = Now {
            mono: Time::default(),
            unix: Duration::from_secs(1_700_000_000),
        };
        device.want_session(id, now);
        let mut actions = std::iter::from_fn(|| device.poll_action());
        let message = actions.find_map(|action| match action {
            Action::Transmit { datagram, .. } => Some(datagram),
            _ => None,
        });
        message.expect("who wants a session sends an initiation")
    }

    fn cookie_reply(&mut self) -> Vec<u8> {
        let receiver = self.random.next() as u32;
        let nonce = self.random.bytes(24).try_into().expect("24 bytes");
        let sealed = self.random.bytes(32).try_into().expect("32 bytes");
        cookie_reply(self.is_native(), receiver, &nonce, &sealed).to_vec()
    }

    fn data(&mut self) -> Vec<u8> {
        let header = DataHeader {
            kind: if self.is_native() { NATIVE_DATA } else { WG_DATA },
            flags: 0,
            receiver: self.random.next() as u32,
            counter: self.random.next() >> 40,
        };
        let len = DATA_OVERHEAD - header.bytes().len() + self.random.below(1200);
        [header.bytes().to_vec(), self.random.bytes(len)].concat()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): incompressible, and the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
