"""A stand-in for systemd-resolved: resolve1.py BUS-SOCKET LOG

Takes the name org.freedesktop.resolve1 on the message bus at BUS-SOCKET and writes one line to LOG per call, as
"Method index arguments". Speaks D-Bus by itself, apart from the code under test."""

import ipaddress
import os
import socket
import struct
import sys


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def align(self, n):
        self.at = -(-self.at // n) * n

    def number(self, form="<I"):
        self.align(struct.calcsize(form))
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self, form="<I"):
        length = self.number(form)
        value = self.data[self.at : self.at + length].decode()
        self.at += length + 1
        return value

    def structs(self, read):
        length = self.number()
        self.align(8)
        end, items = self.at + length, []
        while self.at < end:
            self.align(8)
            items.append(read(self))
        return "[" + ", ".join(items) + "]"


def address(reader):
    family = reader.number("<i")
    length = reader.number()
    octets = reader.data[reader.at : reader.at + length]
    reader.at += length
    return f"{family} {ipaddress.ip_address(octets)}"


def domain(reader):
    name = reader.text()
    return f"{name} {bool(reader.number())}"


ARGUMENTS = {
    "SetLinkDNS": lambda reader: " " + reader.structs(address),
    "SetLinkDomains": lambda reader: " " + reader.structs(domain),
    "SetLinkDefaultRoute": lambda reader: f" {bool(reader.number())}",
    "RevertLink": lambda reader: "",
}


def pad(data, n=8):
    return data + bytes(-len(data) % n)


def text(value):
    return struct.pack("<I", len(value)) + value.encode() + b"\0"


def message(kind, serial, fields, signature="", body=b""):
    if signature:
        fields = fields + [(8, "g", signature)]
    head = b""
    for code, form, value in fields:
        head = pad(head) + bytes([code, 1]) + form.encode() + b"\0"
        if form == "g":
            head += bytes([len(value)]) + value.encode() + b"\0"
        elif form == "u":
            head += struct.pack("<I", value)
        else:
            head += text(value)
    return pad(struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), serial, len(head)) + head) + body


def receive(stream):
    head = stream.read(16)
    if len(head) < 16:
        sys.exit()
    body_len, serial, fields_len = struct.unpack("<4xIII", head)
    fields = stream.read(-(-fields_len // 8) * 8)[:fields_len]
    body = stream.read(body_len)
    reader, found = Reader(fields), {}
    while reader.at < len(fields):
        reader.align(8)
        code = reader.number("<B")
        form = reader.text("<B")
        found[code] = reader.text("<B") if form == "g" else reader.number() if form == "u" else reader.text()
    return head[1], serial, found, body


def main(path, log):
    bus = socket.socket(socket.AF_UNIX)
    bus.connect(path)
    stream = bus.makefile("rb")
    bus.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
    assert stream.readline().startswith(b"OK ")
    bus.sendall(b"BEGIN\r\n")
    to_bus = [(1, "o", "/org/freedesktop/DBus"), (2, "s", "org.freedesktop.DBus"), (6, "s", "org.freedesktop.DBus")]
    bus.sendall(message(1, 1, to_bus + [(3, "s", "Hello")]))
    name = text("org.freedesktop.resolve1")
    bus.sendall(message(1, 2, to_bus + [(3, "s", "RequestName")], "su", pad(name, 4) + struct.pack("<I", 0)))
    while receive(stream)[2].get(5) != 2:
        pass
    serial = 2
    # The log appears once the name is ours.
    with open(log, "a", buffering=1) as calls:
        while True:
            kind, number, fields, body = receive(stream)
            if kind != 1:
                continue
            reader = Reader(body)
            index = reader.number("<i")
            calls.write(f"{fields[3]} {index}{ARGUMENTS[fields[3]](reader)}\n")
            serial += 1
            bus.sendall(message(2, serial, [(5, "u", number), (6, "s", fields[7])]))


main(*sys.argv[1:])
