"""The lab: two network namespaces and one veth between them.

    +-------- a --------+                             +-------- b --------+
    |  iperf3 client    |                             |    iperf3 server  |
    |      tunnel       |                             |      tunnel       |
    |  10.99.0.1        |                             |        10.99.0.2  |
    |  fd99::1          |                             |          fd99::2  |
    |       daemon      |         the underlay        |      daemon       |
    |          192.0.2.1| under0 ------------- under0 |192.0.2.2          |
    |       2001:db8::1 |          veth pair          | 2001:db8::2       |
    +-------------------+                             +-------------------+
"""

from __future__ import annotations

import contextlib
import os
import shutil

from lab import process
from lab.process import Process

UNDERLAY = "under0"
DEFAULT_MTU = 1500
UNDERLAY_V4 = ("192.0.2.1", "192.0.2.2")
UNDERLAY_V6 = ("2001:db8::1", "2001:db8::2")
INNER_V4 = ("10.99.0.1", "10.99.0.2")
INNER_V6 = ("fd99::1", "fd99::2")


class Namespace:
    """A network namespace known to `ip -n NAME`."""

    def __init__(self, name: str):
        self.name = name
        process.run(["ip", "netns", "add", name])
        self._fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        self.ip("link", "set", "lo", "up")

    def remove(self) -> None:
        """Takes it away; interfaces in it go with its last process."""
        os.close(self._fd)
        process.run(["ip", "netns", "del", self.name])

    def ip(self, *arguments: str) -> str:
        """`ip -n NAME arguments`."""
        return process.run(["ip", "-n", self.name, *arguments])

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 30) -> str:
        """A command inside, to its end; its standard output."""
        return process.run(list(argv), self._fd, stdin, timeout)

    def start(self, *argv: str, log: str = os.devnull, env: dict | None = None) -> Process:
        """A command inside that keeps running."""
        return Process(list(argv), self._fd, log, env)

    def tcp_counter(self, name: str) -> int:
        """A counter of /proc/net/netstat's TcpExt lines, such as TCPOFOQueue (segments that came out of order)."""
        lines = [line.split() for line in self.run("cat", "/proc/net/netstat").splitlines()]
        names, values = (line[1:] for line in lines if line[0] == "TcpExt:")
        return int(dict(zip(names, values))[name])


class Lab:
    """Namespaces a and b, joined; a directory for the run's sockets and keys. Use it in a `with`.

    Call isolate.enter() first: everything here is made in this process's private /run. Labs that stand at the same time have
    different `suffix`es, which end the names of their namespaces.
    """

    def __init__(self, mtu: int = DEFAULT_MTU, suffix: str = ""):
        self.directory = f"/run/lab{suffix}"  # on the private tmpfs: keys never touch a disk, socket paths stay short
        self.mtu = mtu
        self._suffix = suffix
        self._undo = contextlib.ExitStack()
        self._tunnels = 0

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._undo.close()

    def _build(self) -> None:
        os.makedirs(self.directory, mode=0o700)
        self._undo.callback(shutil.rmtree, self.directory)
        self.a, self.b = self._namespace(f"a{self._suffix}"), self._namespace(f"b{self._suffix}")
        self.ends = (self.a, self.b)
        process.run(
            ["ip", "link", "add", UNDERLAY, "mtu", str(self.mtu), "netns", self.a.name, "type", "veth"]
            + ["peer", "name", UNDERLAY, "mtu", str(self.mtu), "netns", self.b.name]
        )
        self.has_ipv6 = os.path.exists("/proc/sys/net/ipv6")
        for end, v4, v6 in zip(self.ends, UNDERLAY_V4, UNDERLAY_V6):
            end.ip("address", "add", f"{v4}/24", "dev", UNDERLAY)
            if self.has_ipv6:
                end.ip("address", "add", f"{v6}/64", "dev", UNDERLAY, "nodad")
            end.ip("link", "set", UNDERLAY, "up")
            # Ports are used again and again, see Tunnel.ports.
            end.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse")

    def _namespace(self, name: str) -> Namespace:
        namespace = Namespace(name)
        self._undo.callback(namespace.remove)
        return namespace

    def scratch(self, name: str) -> str:
        """A new private directory for one tunnel's files."""
        self._tunnels += 1
        path = f"{self.directory}/{self._tunnels}-{name}"
        os.makedirs(path, mode=0o700)
        return path
