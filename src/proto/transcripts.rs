//! Replays handshakes that an independent implementation wrote (tests/vectors/make_noise_transcripts.py): our code, fed
//! with the same keys, has to produce and accept the same bytes, down to the first records of every lane.

use std::sync::Arc;

use serde_json::Value;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::endpoint::{PeerId, SessionId};
use super::handshake::{Agreed, Asked, Initiation};
use super::identity::Identity;
use super::index::Base;
use super::lanes::Direction;
use super::mac;
use super::noise::{Means, NO_PSK};
use super::session::SessionFacts;
use super::suite::Suite;
use super::tai64n::Tai64n;
use super::time::Time;
use crate::crypto::Choice;
use crate::wire::message::{Body, DataHeader, HandshakeMessage};

const TRANSCRIPTS: &str = include_str!("../../tests/vectors/noise_transcripts.json");

fn transcripts() -> Vec<Value> {
    serde_json::from_str(TRANSCRIPTS).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn index(transcript: &Value, end: usize) -> u32 {
    transcript["indices"][end].as_u64().unwrap() as u32
}

fn lanes(transcript: &Value, end: usize) -> u8 {
    transcript["lanes"][end].as_u64().unwrap() as u8
}

fn suite(transcript: &Value) -> Suite {
    Suite::ALL
        .into_iter()
        .find(|suite| transcript["suite"] == suite.name())
        .unwrap()
}

/// Both ends, each knowing the other.
fn identities(transcript: &Value) -> [Arc<Identity>; 2] {
    let [a, b] = [0, 1].map(|end| Identity::new(&StaticSecret::from(array(&transcript["statics"][end])), Choice::Auto));
    a.insert(*b.public(), PeerId(0));
    b.insert(*a.public(), PeerId(0));
    [Arc::new(a), Arc::new(b)]
}

/// Runs a transcript's handshake; returns what the initiator and the responder agreed on.
fn replay(transcript: &Value) -> [Agreed; 2] {
    let suite = suite(transcript);
    let identities = identities(transcript);
    let means = |end: usize| Means {
        identity: &identities[end],
        suite,
    };
    let ephemeral = |end: usize| Zeroizing::new(array(&transcript["ephemerals"][end]));
    let optional = |name: &str| transcript.get(name).filter(|value| value.is_string());
    let psk = optional("preshared_key").map_or(NO_PSK, array);
    let cookie = optional("cookie").map(array);
    let timestamp = Tai64n::from_bytes(array(&transcript["timestamp"]));

    let (mut initiation, mut message) = Initiation::start(
        means(0),
        ephemeral(0),
        identities[1].public(),
        index(transcript, 0),
        timestamp,
        lanes(transcript, 0),
    )
    .ok()
    .unwrap();
    mac::append(&mut message, identities[1].public(), cookie.as_ref());
    assert_eq!(message, bytes(&transcript["initiation"]), "{suite} initiation");

    let parsed = HandshakeMessage::parse(&message).unwrap();
    let Body::Initiation { sender, noise, .. } = parsed.body else {
        panic!("{parsed:?}")
    };
    let asked = Asked::read(means(1), ephemeral(1), sender, noise).ok().unwrap();
    assert_eq!((&asked.initiator, asked.timestamp), (identities[0].public(), timestamp));
    let (responder, mut message) = asked
        .answer(&psk, index(transcript, 1), lanes(transcript, 1))
        .ok()
        .unwrap();
    mac::append(&mut message, identities[0].public(), cookie.as_ref());
    assert_eq!(message, bytes(&transcript["response"]), "{suite} response");

    let parsed = HandshakeMessage::parse(&message).unwrap();
    let Body::Response {
        sender,
        receiver,
        noise,
        ..
    } = parsed.body
    else {
        panic!("{parsed:?}")
    };
    assert_eq!(receiver, index(transcript, 0));
    let initiator = initiation.finish(&psk, sender, noise).ok().unwrap();
    [initiator, responder]
}

#[test]
fn both_ends_write_and_agree_on_what_another_implementation_did() {
    for transcript in transcripts() {
        let agreed = replay(&transcript);
        for (end, agreed) in agreed.iter().enumerate() {
            assert_eq!(
                agreed.keys.to_responder[..],
                bytes(&transcript["directions"][0]["key"])[..]
            );
            assert_eq!(
                agreed.keys.to_initiator[..],
                bytes(&transcript["directions"][1]["key"])[..]
            );
            assert_eq!(
                (agreed.remote, agreed.remote_lanes),
                (index(&transcript, 1 - end), lanes(&transcript, 1 - end))
            );
        }
    }
}

#[test]
fn every_lanes_first_records_are_sealed_and_opened_as_another_implementation_did() {
    let mut records = 0;
    for transcript in transcripts() {
        let suite = suite(&transcript);
        let facts = SessionFacts {
            suite,
            session: SessionId(1),
            created: Time::default(),
            remote_lanes: 1,
            initiator: true,
        };
        for (number, direction) in transcript["directions"].as_array().unwrap().iter().enumerate() {
            let receiver = index(&transcript, 1 - number);
            let made = Direction {
                key: Zeroizing::new(array(&direction["key"])),
                base: Base::of(receiver),
                lanes: lanes(&transcript, number),
                low: receiver.to_le_bytes()[0],
            };
            let (mut seals, mut opens) = (made.seals(facts, Choice::Auto), made.opens(facts, Choice::Auto));
            assert_eq!(seals.len(), direction["records"].as_array().unwrap().len());
            for (lane, expected) in direction["records"].as_array().unwrap().iter().enumerate() {
                for record in expected.as_array().unwrap() {
                    let plaintext = bytes(&record["plaintext"]);
                    let mut datagram = vec![0; 16 + plaintext.len() + 16];
                    datagram[16..16 + plaintext.len()].copy_from_slice(&plaintext);
                    seals[lane].seal(Time::default(), 0, &mut datagram).unwrap();
                    assert_eq!(datagram, bytes(&record["datagram"]), "{suite}, lane {lane}");
                    let header = DataHeader::parse(&datagram).unwrap();
                    assert_eq!(header.receiver, opens[lane].local_index());
                    let range = opens[lane].open(Time::default(), &header, &mut datagram).unwrap();
                    assert_eq!(datagram[range], plaintext);
                    records += 1;
                }
            }
        }
    }
    assert_eq!(
        records,
        2 * 2 * (5 + 2),
        "two records of each lane, native and WireGuard, with and without extras"
    );
}
