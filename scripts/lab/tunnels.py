"""What joins the two ends of the lab: nothing but the veth, ringway, a WireGuard in user space, behind one interface."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import stat
import time
from collections.abc import Iterator

from lab import process
from lab.netns import INNER_V4, INNER_V6, UNDERLAY, UNDERLAY_V4, UNDERLAY_V6, Lab
from lab.process import Failed, Process

LISTEN_PORT = 51820
# What a tunnel adds to an IPv6 packet of its own: 40 (IPv6) + 8 (UDP) + 32 (header and tag of both suites).
OVERHEAD = 80


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a measurement asks of a tunnel beside carrying packets."""

    mtu: int | None = None  # of the inner interfaces; None: what the tunnel chooses
    idle_peers: int = 0  # further peers of both ends that never say a word


class Tunnel:
    """One way from a to b. `key` names it in reports, `label` in tables and pictures.

    Use it in a `with`: entering sets it up and waits until packets pass, leaving takes it down.
    """

    key = ""
    label = ""
    interfaces = ("", "")  # at a and at b
    v4 = INNER_V4
    v6 = INNER_V6

    def __init__(self, lab: Lab, logs: str, shape: Shape = Shape()):
        self.lab = lab
        self.logs = logs  # directory for the daemons' logs
        self.shape = shape
        self.daemons: list[Process] = []  # of a and of b
        self.ports: Iterator[int] | None = None  # where flows from a begin; None: as the kernel likes

    def __enter__(self) -> Tunnel:
        try:
            self._start()
            self._wait_until_packets_pass()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        for daemon in self.daemons:
            daemon.stop()
        self.daemons = []

    def _wait_until_packets_pass(self, timeout: float = 15) -> None:
        deadline = time.monotonic() + timeout
        for address in (self.v4[1], self.v6[1]) if self.lab.has_ipv6 else (self.v4[1],):
            while not self._ping(address):
                for daemon in self.daemons:
                    daemon.check_alive()
                if time.monotonic() > deadline:
                    logs = "\n".join(daemon.output() for daemon in self.daemons)
                    raise Failed(f"{self.label}: {address} does not answer within {timeout:g} s\n{logs}")

    def _wait_for_file(self, daemon: Process, path: str) -> None:
        """Waits for a control socket, the sign that a daemon listens."""

        def is_there() -> bool:
            daemon.check_alive()
            return os.path.exists(path)

        process.wait_until(is_there, 10, f"{self.label}: {path}")

    def _ping(self, address: str) -> bool:
        try:
            self.lab.a.run("ping", "-n", "-q", "-c", "1", "-W", "1", address)
        except Failed:
            return False
        return True

    def describe(self) -> dict:
        """What is known of it, for reports."""
        return {"key": self.key, "label": self.label, "detail": ""}

    def _log(self, end: str) -> str:
        path = f"{self.logs}/{self.key}.{end}.log"
        if os.path.exists(path):
            os.unlink(path)
        return path


class Bare(Tunnel):
    """No tunnel: the veth itself, the measure of what the machine can do."""

    key, label, v4, v6 = "bare", "bare veth", UNDERLAY_V4, UNDERLAY_V6
    interfaces = (UNDERLAY, UNDERLAY)

    def _start(self) -> None:
        pass


class Ringway(Tunnel):
    """Two `ringway run` daemons. io: auto, uring or syscall; workers: auto or a number; suite: native or wireguard."""

    interfaces = ("rw0", "rw0")

    def __init__(
        self,
        lab: Lab,
        logs: str,
        binary: str,
        suite: str = "native",
        io: str = "auto",
        workers: str = "auto",
        shape: Shape = Shape(),
        settings: dict[str, str] | None = None,
    ):
        super().__init__(lab, logs, shape)
        self.binary, self.suite, self.io, self.workers = binary, suite, io, workers
        self.settings = settings or {}  # further keys of [interface], as TOML values
        self.key = "-".join(("ringway", suite, *(word for word in (io, workers) if word != "auto")))
        self.label = "ringway"
        self._sockets = ["", ""]

    def _start(self) -> None:
        keys = key_pairs(self.binary)
        for me in (0, 1):
            self.start_end(me, keys[me][0], keys[1 - me][1])

    def start_end(self, me: int, private_key: str, other_public_key: str) -> None:
        """Starts the daemon of end 0 (a) or 1 (b) alone; what the other end runs must know the matching keys."""
        end = self.lab.ends[me]
        directory = self.lab.scratch(f"{self.key}.{end.name}")
        config, key_file, control = f"{directory}/config.toml", f"{directory}/key", f"{directory}/control.sock"
        _write_private(key_file, private_key)
        _write_private(config, self._config(me, 1 - me, key_file, control, other_public_key))
        self._sockets[me] = control
        self.daemons.append(end.start(self.binary, "run", config, log=self._log(end.name)))
        # A handshake with an end that does not listen yet is tried again only 5 s later: nothing is sent before that.
        self._wait_for_file(self.daemons[-1], control)

    def _config(self, me: int, other: int, key_file: str, control: str, public_key: str) -> str:
        number = self.workers if self.workers.isdigit() else f'"{self.workers}"'
        settings = {**({"mtu": str(self.shape.mtu)} if self.shape.mtu else {}), **self.settings}
        further = "".join(f"{key} = {value}\n" for key, value in settings.items())
        idle = "".join(
            f'\n[[peer]]\npublic_key = "{key}"\nallowed_ips = ["{address}"]\n'
            for key, address in idle_peers(self.shape.idle_peers)
        )
        return f"""[interface]
name = "{self.interfaces[me]}"
private_key_file = "{key_file}"
listen_port = {LISTEN_PORT}
addresses = ["{self.v4[me]}/24", "{self.v6[me]}/64"]
workers = {number}
io = "{self.io}"
control_socket = "{control}"
state_dir = "{control}.state"
{further}
[[peer]]
name = "{"ab"[other]}"
public_key = "{public_key}"
endpoint = "{UNDERLAY_V4[other]}:{LISTEN_PORT}"
allowed_ips = ["{self.v4[other]}/32", "{self.v6[other]}/128"]
suite = "{self.suite}"
{idle}"""

    def _tool(self, *arguments: str, stdin: str | None = None) -> str:
        return process.run([self.binary, *arguments], stdin=stdin)

    def status(self, end: int) -> dict:
        """What `ringway status --json` of end 0 (a) or 1 (b) says."""
        return json.loads(self._tool("status", self._sockets[end], "--json"))

    def public_key(self, end: int) -> str:
        """Of end 0 (a) or 1 (b)."""
        return self.status(end)["public_key"]

    def reset_latency(self) -> None:
        """Begins a new interval in both daemons' histograms."""
        for control in self._sockets:
            self._tool("latency", control, "--json", "--reset")

    def latency(self, end: int, hlog: str) -> list[dict]:
        """The stages of end 0 (a) or 1 (b) since the last reset, also written to `hlog` as an HdrHistogram log."""
        return json.loads(self._tool("latency", self._sockets[end], "--json", "--hlog", hlog))["stages"]

    def describe(self) -> dict:
        status = self.status(0)
        workers = status["workers"]
        detail = f"{self.suite} suite, {workers[0]['io']} engine, {len(workers)} worker{'s' if len(workers) > 1 else ''}"
        return {**super().describe(), "detail": detail, "suite": self.suite, "status": [status, self.status(1)]}


class Wireguard(Tunnel):
    """Two daemons of a WireGuard in user space, set up through `wg`."""

    def __init__(self, lab: Lab, logs: str, argv: list[str], shape: Shape = Shape()):
        super().__init__(lab, logs, shape)
        # All control sockets lie in /run/wireguard, so the names must differ.
        self.interfaces = (f"wg{lab.a.name}", f"wg{lab.b.name}")
        self.argv = argv  # followed by the interface's name
        self.key = self.label = os.path.basename(argv[0]).removesuffix("-cli")

    def _start(self) -> None:
        keys = key_pairs("wg")
        for me in (0, 1):
            self.start_end(me, keys[me][0], keys[1 - me][1])

    def start_end(self, me: int, private_key: str, other_public_key: str) -> None:
        """Starts the daemon of end 0 (a) or 1 (b) alone; what the other end runs must know the matching keys."""
        end, name, other = self.lab.ends[me], self.interfaces[me], 1 - me
        config = f"{self.lab.scratch(f'{self.key}.{end.name}')}/wg.conf"
        peers = [(other_public_key, f"{self.v4[other]}/32,{self.v6[other]}/128", f"{UNDERLAY_V4[other]}:{LISTEN_PORT}")]
        peers += [(key, address, None) for key, address in idle_peers(self.shape.idle_peers)]
        text = f"[Interface]\nPrivateKey = {private_key}\nListenPort = {LISTEN_PORT}\n"
        for key, allowed, endpoint in peers:
            text += f"[Peer]\nPublicKey = {key}\nAllowedIPs = {allowed}\n"
            text += f"Endpoint = {endpoint}\n" if endpoint else ""
        _write_private(config, text)
        os.makedirs("/run/wireguard", exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_wireguard_socket(name))  # of a daemon that did not tidy up
        self.daemons.append(end.start(*self.argv, name, log=self._log(end.name)))
        self._wait_for_file(self.daemons[-1], _wireguard_socket(name))
        end.run("wg", "setconf", name, config)
        end.ip("address", "add", f"{self.v4[me]}/24", "dev", name)
        if self.lab.has_ipv6:
            end.ip("address", "add", f"{self.v6[me]}/64", "dev", name, "nodad")
        # Not every daemon chooses an MTU that its packets fit the underlay with; wg-quick does.
        end.ip("link", "set", name, "mtu", str(self.shape.mtu or self.lab.mtu - OVERHEAD), "up")

    def public_key(self, end: int) -> str:
        """Of end 0 (a) or 1 (b)."""
        return process.run(["wg", "show", self.interfaces[end], "public-key"]).strip()


class Mixed(Tunnel):
    """One daemon of each of two tunnels that speak the same protocol."""

    def __init__(self, near: Ringway | Wireguard, far: Ringway | Wireguard):
        super().__init__(near.lab, near.logs, near.shape)
        self._near, self._far = near, far
        self.key = f"{near.key}+{far.key}"
        self.label = f"{near.label} ↔ {far.label}"
        self.interfaces = (near.interfaces[0], far.interfaces[1])

    def _start(self) -> None:
        keys = key_pairs("wg")
        self._near.start_end(0, keys[0][0], keys[1][1])
        self._far.start_end(1, keys[1][0], keys[0][1])
        self.daemons = self._near.daemons + self._far.daemons

    def _stop(self) -> None:
        self._near._stop()
        self._far._stop()


def key_pairs(tool: str) -> list[tuple[str, str]]:
    """(private, public) keys of a and of b, by `tool genkey` and `tool pubkey`."""
    private = [process.run([tool, "genkey"]).strip() for _ in "ab"]
    return [(key, process.run([tool, "pubkey"], stdin=key + "\n").strip()) for key in private]


def idle_peers(count: int) -> list[tuple[str, str]]:
    """Public keys that nobody has the private ones of, and an address for each."""
    addresses = (f"10.100.{index // 250}.{index % 250 + 1}/32" for index in range(count))
    return [(base64.b64encode(os.urandom(32)).decode(), address) for address in addresses]


def _wireguard_socket(interface: str) -> str:
    return f"/run/wireguard/{interface}.sock"


def _write_private(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR), "w", encoding="ascii") as file:
        file.write(text)
