#!/usr/bin/env python3
"""Writes noise_transcripts.json: handshakes of both suites with fixed keys, byte for byte.

Made with an implementation that shares nothing with ringway's (PyPI noiseprotocol for the handshakes, hashlib for the
MACs and the lanes, cryptography for the records), so that a misreading of a specification cannot agree with itself.

    python3 -m venv venv && venv/bin/pip install noiseprotocol==0.3.1 && venv/bin/python make_noise_transcripts.py
"""

import hashlib
import hmac
import json
import pathlib

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from noise.connection import Keypair, NoiseConnection

SUITES = {
    "native": {
        "pattern": "Noise_IKpsk2_25519_AESGCM_BLAKE2s",
        "prologue": b"ringway v1",
        "bit": 0x80,
    },
    "wireguard": {
        "pattern": "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
        "prologue": b"WireGuard v1 zx2c4 Jason@zx2c4.com",
        "bit": 0,
    },
}
# An initiator with 3 lanes and a responder with 2, both of protocol version 1 and without features.
INITIATOR_LANES, RESPONDER_LANES = 3, 2
TIMESTAMP = bytes.fromhex("400000006553f10a0e000000")


def secret(label):
    """32 bytes that nobody chose."""
    return hashlib.sha256(b"ringway transcript: " + label.encode()).digest()


def public(private):
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def noise(suite, initiator, static, ephemeral, psk, responder_public=None):
    connection = NoiseConnection.from_name(suite["pattern"].encode())
    connection.set_psks(psk)
    connection.set_prologue(suite["prologue"])
    connection.set_keypair_from_private_bytes(Keypair.STATIC, static)
    connection.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    if initiator:
        connection.set_as_initiator()
        connection.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, responder_public)
    else:
        connection.set_as_responder()
    connection.start_handshake()
    return connection


def with_macs(message, receiver_public, cookie):
    """Appends mac1 and mac2 (WireGuard paper, section 5.4.4)."""
    key = hashlib.blake2s(b"mac1----" + receiver_public).digest()
    message += hashlib.blake2s(message, digest_size=16, key=key).digest()
    return message + (hashlib.blake2s(message, digest_size=16, key=cookie).digest() if cookie else bytes(16))


def little(value, size=4):
    return value.to_bytes(size, "little")


def announcement(lanes):
    version, features = 1, 0
    return bytes([version]) + little(features) + bytes([lanes])


def lane_key(direction, lane):
    """The first output of Noise's HKDF."""
    mac = lambda key, data: hmac.new(key, data, hashlib.blake2s).digest()
    return mac(mac(direction, b"ringway lane" + bytes([lane])), b"\x01")


def record(native, key, receiver, counter, plaintext):
    """A data message."""
    header = bytes([0x84 if native else 4, 0, 0, 0]) + little(receiver) + little(counter, 8)
    if native:
        return header + AESGCM(key).encrypt(bytes(4) + counter.to_bytes(8, "big"), plaintext, header)
    return header + ChaCha20Poly1305(key).encrypt(bytes(4) + little(counter, 8), plaintext, None)


def transcript(name, psk, cookie):
    suite, native = SUITES[name], name == "native"
    statics = [secret("initiator static"), secret("responder static")]
    ephemerals = [secret("initiator ephemeral"), secret("responder ephemeral")]
    # Native indices have a zero low byte, the lane's place.
    indices = [0xA1B2C300, 0x0D0E0F00] if native else [0xA1B2C3D4, 0x0D0E0F01]
    used_psk = psk or bytes(32)
    initiator = noise(suite, True, statics[0], ephemerals[0], used_psk, public(statics[1]))
    responder = noise(suite, False, statics[1], ephemerals[1], used_psk)

    payload = TIMESTAMP + (announcement(INITIATOR_LANES) if native else b"")
    message = bytes(initiator.write_message(payload))
    assert responder.read_message(message) == payload
    head = bytes([suite["bit"] | 1, 0, 0, 0]) + little(indices[0])
    initiation = with_macs(head + message, public(statics[1]), cookie)

    payload = announcement(RESPONDER_LANES) if native else b""
    message = bytes(responder.write_message(payload))
    assert initiator.read_message(message) == payload
    head = bytes([suite["bit"] | 2, 0, 0, 0]) + little(indices[1]) + little(indices[0])
    response = with_macs(head + message, public(statics[0]), cookie)

    protocol = initiator.noise_protocol
    keys = [bytes(protocol.cipher_state_encrypt.k), bytes(protocol.cipher_state_decrypt.k)]
    lanes = [INITIATOR_LANES, RESPONDER_LANES] if native else [1, 1]
    directions = []
    for direction, key in enumerate(keys):
        lane_keys = [lane_key(key, lane) for lane in range(lanes[direction])] if native else [key]
        records = []
        for lane, lane_secret in enumerate(lane_keys):
            receiver = indices[1 - direction] + (lane if native else 0)
            plaintexts = [b"", bytes([direction, lane]) * 50]
            records.append(
                [
                    {"plaintext": text.hex(), "datagram": record(native, lane_secret, receiver, counter, text).hex()}
                    for counter, text in enumerate(plaintexts)
                ]
            )
        directions.append({"key": key.hex(), "lane_keys": [k.hex() for k in lane_keys], "records": records})

    return {
        "suite": name,
        "pattern": suite["pattern"],
        "prologue": suite["prologue"].decode(),
        "statics": [key.hex() for key in statics],
        "ephemerals": [key.hex() for key in ephemerals],
        "preshared_key": psk.hex() if psk else None,
        "cookie": cookie.hex() if cookie else None,
        "indices": indices,
        "lanes": lanes,
        "timestamp": TIMESTAMP.hex(),
        "initiation": initiation.hex(),
        "response": response.hex(),
        "directions": directions,
    }


def main():
    transcripts = [
        transcript(name, psk, cookie)
        for name in SUITES
        for psk, cookie in [(None, None), (secret("preshared key"), secret("cookie")[:16])]
    ]
    path = pathlib.Path(__file__).with_name("noise_transcripts.json")
    path.write_text(json.dumps(transcripts, indent=1) + "\n")


if __name__ == "__main__":
    main()
