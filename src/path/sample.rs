//! Packets for tests and benches, made field by field in the plainest way. It shares no code with what it tests, so its
//! checksums and its [`Sample::cut`] are the slow twins of the fast ones. (Benches and fuzz checks include this file by path.)
#![allow(missing_docs, dead_code, unreachable_pub)]

/// How a packet's TCP or UDP checksum is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Complete,
    /// Only the pseudo-header sum.
    Partial,
}

/// The fields of a TCP or UDP packet over IPv4 or IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub v6: bool,
    pub tcp: bool,
    /// The last byte of both addresses; 0 to 255 different pairs of hosts.
    pub hosts: u8,
    pub ports: u32,
    pub traffic_class: u8,
    pub hops: u8,
    pub dont_fragment: bool,
    pub id: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// TCP options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Sample {
    /// A segment in the middle of a bulk transfer.
    pub fn tcp(v6: bool, seq: u32, payload: Vec<u8>) -> Sample {
        Sample {
            v6,
            tcp: true,
            hosts: 1,
            ports: 0x1234_5678,
            traffic_class: 0,
            hops: 64,
            dont_fragment: true,
            id: 0,
            seq,
            ack: 7,
            flags: 0x10,
            window: 500,
            options: vec![1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7],
            payload,
        }
    }

    /// A datagram.
    pub fn udp(v6: bool, payload: Vec<u8>) -> Sample {
        let tcp = Sample::tcp(v6, 0, payload);
        Sample {
            tcp: false,
            ack: 0,
            flags: 0,
            window: 0,
            options: Vec::new(),
            ..tcp
        }
    }

    /// Where the TCP or UDP header starts.
    pub fn start(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    /// Bytes of all headers.
    pub fn header_len(&self) -> usize {
        self.start() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    /// Where the checksum lies in the TCP or UDP header.
    pub fn checksum_at(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// The packet.
    pub fn bytes(&self, written: Written) -> Vec<u8> {
        let upper = self.upper(written);
        if self.v6 {
            let word = 6 << 28 | u32::from(self.traffic_class) << 20;
            let mut bytes = word.to_be_bytes().to_vec();
            bytes.extend((upper.len() as u16).to_be_bytes());
            bytes.extend([self.protocol(), self.hops]);
            bytes.extend(self.addresses());
            return [bytes, upper].concat();
        }
        let mut bytes = vec![0x45, self.traffic_class];
        bytes.extend(((20 + upper.len()) as u16).to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend([
            if self.dont_fragment { 0x40 } else { 0 },
            0,
            self.hops,
            self.protocol(),
            0,
            0,
        ]);
        bytes.extend(self.addresses());
        let checksum = !sum(&bytes);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        [bytes, upper].concat()
    }

    /// The TUN frame of this packet as the kernel hands it over: checksum partial, to be cut every `step` payload bytes.
    pub fn frame(&self, step: u16) -> Vec<u8> {
        let gso_type = match (self.tcp, self.v6) {
            (true, false) => 1,
            (true, true) => 4,
            (false, _) => 5,
        };
        let ecn = if self.tcp && self.flags & 0x80 != 0 { 0x80 } else { 0 };
        let mut frame = vec![1, gso_type | ecn];
        // The header length is a lie, as it is for forwarded packets.
        for word in [9999, step, self.start() as u16, self.checksum_at() as u16] {
            frame.extend(word.to_ne_bytes());
        }
        [frame, self.bytes(Written::Partial)].concat()
    }

    /// The packets that a super-packet stands for.
    pub fn cut(&self, step: usize) -> Vec<Sample> {
        let pieces: Vec<&[u8]> = self.payload.chunks(step).collect();
        let segment = |(index, piece): (usize, &&[u8])| {
            let mut segment = Sample {
                payload: piece.to_vec(),
                ..self.clone()
            };
            segment.id = self.id.wrapping_add(index as u16);
            segment.seq = self.seq.wrapping_add(if self.tcp { (index * step) as u32 } else { 0 });
            if index > 0 {
                segment.flags &= !0x80;
            }
            if index + 1 < pieces.len() {
                segment.flags &= !0x09;
            }
            segment
        };
        pieces.iter().enumerate().map(segment).collect()
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    fn addresses(&self) -> Vec<u8> {
        let of = |host: u8| -> Vec<u8> {
            if self.v6 {
                [&[0xfd, 0, 0, host][..], &[0; 11], &[self.hosts]].concat()
            } else {
                vec![10, 0, host, self.hosts]
            }
        };
        [of(1), of(2)].concat()
    }

    fn upper(&self, written: Written) -> Vec<u8> {
        let mut upper = self.ports.to_be_bytes().to_vec();
        if self.tcp {
            upper.extend(self.seq.to_be_bytes());
            upper.extend(self.ack.to_be_bytes());
            upper.extend([((5 + self.options.len() / 4) as u8) << 4, self.flags]);
            upper.extend(self.window.to_be_bytes());
            upper.extend([0; 4]);
            upper.extend(&self.options);
        } else {
            upper.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            upper.extend([0; 2]);
        }
        upper.extend(&self.payload);

        let len = (upper.len() as u16).to_be_bytes();
        let pseudo = [&self.addresses()[..], &[0, self.protocol()], &len].concat();
        let checksum = match (written, self.tcp) {
            (Written::Partial, _) => sum(&pseudo),
            (Written::Complete, tcp) => match !sum(&[&pseudo[..], &upper].concat()) {
                0 if !tcp => 0xffff,
                checksum => checksum,
            },
        };
        let at = self.checksum_at();
        upper[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        upper
    }
}

/// RFC 1071, one word after the other.
pub fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, pair| {
        let (sum, carry) = sum.overflowing_add(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum + u16::from(carry)
    })
}
