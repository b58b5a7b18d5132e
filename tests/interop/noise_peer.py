#!/usr/bin/env python3
"""The other end of a tunnel that shares nothing with ringway: PyPI noiseprotocol, cryptography and a plain UDP socket.

    noise_peer.py initiate SETUP    shakes hands, sends sealed pings of several sizes and checks the sealed answers
    noise_peer.py respond SETUP     answers handshakes and sealed pings until it is killed

SETUP is JSON: suite, private, remote_public, psk (hex), outer and inner (pairs of addresses: ours and the other end's),
port and remote_port. Every step is checked and told in a line; the first wrong byte ends it with a traceback.
"""

import json
import os
import pathlib
import socket
import struct
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "vectors"))

import make_noise_transcripts as spec  # noqa: E402
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305  # noqa: E402

LANES = 1
PING_SIZES = [0, 1, 56, 1300]
PATIENCE_S = 10
ECHO_REPLY, ECHO_REQUEST = 0, 8


class Session:
    """The keys of a handshake that is done, both directions."""

    def __init__(self, peer, protocol, index, remote_index, remote_lanes):
        self.peer, self.index, self.remote_index, self.remote_lanes = peer, index, remote_index, remote_lanes
        self._seal_key = bytes(protocol.cipher_state_encrypt.k)
        self._open_key = bytes(protocol.cipher_state_decrypt.k)
        self._sent = 0

    def seal(self, plaintext):
        """A data message, on our only lane."""
        key = spec.lane_key(self._seal_key, 0) if self.peer.native else self._seal_key
        self._sent += 1
        return spec.record(self.peer.native, key, self.remote_index, self._sent - 1, plaintext)

    def owns(self, receiver):
        """Whether the receiver index of a data message is this session's."""
        return receiver & self.peer.index_mask == self.index

    def open(self, datagram):
        """The plaintext of a data message, on whichever of the other end's lanes it came."""
        header, sealed = datagram[:16], datagram[16:]
        receiver, counter = struct.unpack("<IQ", header[4:])
        low = receiver - self.index
        if not self.peer.native:
            return ChaCha20Poly1305(self._open_key).decrypt(bytes(4) + struct.pack("<Q", counter), sealed, None)
        assert low < self.remote_lanes, f"lane {low} of {self.remote_lanes}"
        key = spec.lane_key(self._open_key, low)
        return AESGCM(key).decrypt(bytes(4) + struct.pack(">Q", counter), sealed, header)


class Peer:
    """This end and its socket."""

    def __init__(self, setup):
        self.suite, self.native = spec.SUITES[setup["suite"]], setup["suite"] == "native"
        self.private, self.remote_public, self.psk = (bytes.fromhex(setup[k]) for k in ("private", "remote_public", "psk"))
        self.public = spec.public(self.private)
        # The low byte of a native index is the lane's place.
        self.index_mask = 0xFFFFFF00 if self.native else 0xFFFFFFFF
        # The newest last. Until the other end has heard of a new one it may use the one before.
        self.sessions = []
        self.inner = [socket.inet_aton(address) for address in setup["inner"]]
        self.remote = (setup["outer"][1], setup["remote_port"])
        self._socket = socket.socket(socket.AF_INET6 if ":" in self.remote[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((setup["outer"][0], setup["port"]))
        self._socket.settimeout(PATIENCE_S)

    def kind(self, number):
        return self.suite["bit"] | number

    def initiate(self):
        noise, index = self._noise(initiator=True), self._index()
        now = time.time()
        timestamp = struct.pack(">QI", (1 << 62) + 10 + int(now), int(now % 1 * 1e9))
        message = bytes(noise.write_message(timestamp + self._announcement()))
        head = bytes([self.kind(1), 0, 0, 0]) + spec.little(index)
        self._socket.sendto(spec.with_macs(head + message, self.remote_public, None), self.remote)
        response = self._receive({self.kind(2)})
        sender, receiver = struct.unpack("<II", response[4:12])
        assert receiver == index
        self._check_mac1(response)
        lanes = self._lanes(bytes(noise.read_message(response[12:-32])))
        self.sessions = [*self.sessions[-1:], Session(self, noise.noise_protocol, index, sender, lanes)]
        tell(f"the handshake is done: {lanes} lanes there")

    def answer(self, initiation):
        noise, index = self._noise(initiator=False), self._index()
        self._check_mac1(initiation)
        (sender,) = struct.unpack("<I", initiation[4:8])
        payload = bytes(noise.read_message(initiation[8:-32]))
        assert bytes(noise.noise_protocol.handshake_state.rs.public_bytes) == self.remote_public
        seconds = struct.unpack(">Q", payload[:8])[0] - (1 << 62) - 10
        assert abs(seconds - time.time()) < 600, seconds
        lanes = self._lanes(payload[12:])
        message = bytes(noise.write_message(self._announcement()))
        head = bytes([self.kind(2), 0, 0, 0]) + spec.little(index) + spec.little(sender)
        self.sessions = [*self.sessions[-1:], Session(self, noise.noise_protocol, index, sender, lanes)]
        self._socket.sendto(spec.with_macs(head + message, self.remote_public, None), self.remote)
        tell("a handshake is answered")

    def ping(self, sequence, size):
        """Sends one ping and waits for its answer."""
        payload = os.urandom(size)
        echo = struct.pack(">BBHHH", ECHO_REQUEST, 0, 0, 0x5258, sequence) + payload
        self.send(self._ipv4(*self.inner, with_checksum(echo, 2)))
        while True:
            packet = self._ip_packet(self._open(self._receive({self.kind(4)})))
            if packet is not None and packet[20] == ECHO_REPLY:
                assert packet[12:20] == self.inner[1] + self.inner[0], packet.hex()
                assert checksum(packet[:20]) == 0 and checksum(packet[20:]) == 0, packet.hex()
                assert packet[24:] == echo[4:], "another payload than was sent"
                tell(f"a ping of {size} bytes is answered")
                return

    def serve(self):
        """Answers until killed."""
        self._socket.settimeout(None)
        while True:
            datagram = self._receive({self.kind(1), self.kind(4)})
            if datagram[0] == self.kind(1):
                self.answer(datagram)
                continue
            packet = self._ip_packet(self._open(datagram))
            if packet is None or packet[20] != ECHO_REQUEST:
                continue
            assert checksum(packet[:20]) == 0 and checksum(packet[20:]) == 0, packet.hex()
            echo = bytes([ECHO_REPLY, 0, 0, 0]) + packet[24:]
            self.send(self._ipv4(*self.inner, with_checksum(echo, 2)))
            tell(f"a ping of {len(packet) - 28} bytes is answered")

    def send(self, plaintext):
        self._socket.sendto(self.sessions[-1].seal(plaintext), self.remote)

    def _open(self, datagram):
        (receiver,) = struct.unpack("<I", datagram[4:8])
        return next(session for session in self.sessions if session.owns(receiver)).open(datagram)

    def _index(self):
        return int.from_bytes(os.urandom(4), "little") & self.index_mask

    def _receive(self, kinds):
        while True:
            datagram = self._socket.recvfrom(65536)[0]
            assert datagram[1:4] == bytes(3) or self.native and datagram[0] == self.kind(4), datagram[:16].hex()
            if datagram[0] in kinds:
                return datagram

    def _noise(self, initiator):
        ephemeral, responder_public = os.urandom(32), self.remote_public if initiator else None
        return spec.noise(self.suite, initiator, self.private, ephemeral, self.psk, responder_public)

    def _announcement(self):
        return spec.announcement(LANES) if self.native else b""

    def _lanes(self, announcement):
        if not self.native:
            assert announcement == b"", announcement.hex()
            return 1
        version, features, lanes = struct.unpack("<BIB", announcement)
        assert (version, features) == (1, 0) and lanes > 0, announcement.hex()
        return lanes

    def _check_mac1(self, message):
        wanted = spec.with_macs(message[:-32], self.public, None)
        assert message[-32:-16] == wanted[-32:-16], "mac1 is not ours"

    def _ip_packet(self, plaintext):
        """Without padding; None for a keepalive and for what daemons tell each other."""
        if not plaintext or plaintext[0] >> 4 == 0:
            return None
        assert plaintext[0] == 0x45 and plaintext[9] == 1, plaintext.hex()
        return plaintext[: int.from_bytes(plaintext[2:4], "big")]

    @staticmethod
    def _ipv4(source, destination, payload):
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, 1, 0) + source + destination
        return with_checksum(header, 10) + payload


def checksum(data):
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def with_checksum(data, at):
    """`data`, whose checksum field at `at` is zero, with the checksum in it."""
    return data[:at] + struct.pack(">H", checksum(data)) + data[at + 2 :]


def tell(line):
    print(line, flush=True)


def main():
    peer = Peer(json.loads(sys.argv[2]))
    if sys.argv[1] == "respond":
        tell("listening")
        peer.serve()
    # The second handshake takes the place of the first; no end answers more than 50 initiations a second.
    for _ in range(2):
        time.sleep(0.1)
        peer.initiate()
        # A keepalive confirms the session as well as data does.
        peer.send(b"")
        for sequence, size in enumerate(PING_SIZES):
            peer.ping(sequence, size)


if __name__ == "__main__":
    main()
