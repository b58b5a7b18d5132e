"""What joins the two ends of the lab: nothing but the veth, ringway, or wireguard-go, behind one interface."""

from __future__ import annotations

import json
import os
import stat
import time

from lab import process
from lab.netns import INNER_V4, INNER_V6, UNDERLAY, UNDERLAY_V4, UNDERLAY_V6, Lab
from lab.process import Failed, Process

LISTEN_PORT = 51820


class Tunnel:
    """One way from a to b. `key` names it in reports, `label` in tables and pictures.

    Use it in a `with`: entering sets it up and waits until packets pass, leaving takes it down.
    """

    key = ""
    label = ""
    interfaces = ("", "")  # at a and at b
    v4 = INNER_V4
    v6 = INNER_V6

    def __init__(self, lab: Lab, logs: str):
        self.lab = lab
        self.logs = logs  # directory for the daemons' logs
        self.daemons: list[Process] = []  # of a and of b

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

    def __init__(self, lab: Lab, logs: str, binary: str, suite: str = "native", io: str = "auto", workers: str = "auto"):
        super().__init__(lab, logs)
        self.binary, self.suite, self.io, self.workers = binary, suite, io, workers
        self.key = "-".join(("ringway", suite, *(word for word in (io, workers) if word != "auto")))
        self.label = "ringway"
        self._sockets: list[str] = []

    def _start(self) -> None:
        directory = self.lab.scratch(self.key)
        private = [self._tool("genkey") for _ in "ab"]
        public = [self._tool("pubkey", stdin=key) for key in private]
        self.daemons, self._sockets = [], []
        for me, other, end in ((0, 1, self.lab.a), (1, 0, self.lab.b)):
            config, key_file = f"{directory}/{end.name}.toml", f"{directory}/{end.name}.key"
            control = f"{directory}/{end.name}.sock"
            _write_private(key_file, private[me])
            _write_private(config, self._config(me, other, key_file, control, public[other]))
            self._sockets.append(control)
            self.daemons.append(end.start(self.binary, "run", config, log=self._log(end.name)))
        for daemon, control in zip(self.daemons, self._sockets):
            # A handshake with an end that does not listen yet is tried again only 5 s later.
            self._wait_for_file(daemon, control)

    def _config(self, me: int, other: int, key_file: str, control: str, public_key: str) -> str:
        number = self.workers if self.workers.isdigit() else f'"{self.workers}"'
        return f"""[interface]
name = "{self.interfaces[me]}"
private_key_file = "{key_file}"
listen_port = {LISTEN_PORT}
addresses = ["{self.v4[me]}/24", "{self.v6[me]}/64"]
workers = {number}
io = "{self.io}"
control_socket = "{control}"

[[peer]]
name = "{"ab"[other]}"
public_key = "{public_key.strip()}"
endpoint = "{UNDERLAY_V4[other]}:{LISTEN_PORT}"
allowed_ips = ["{self.v4[other]}/32", "{self.v6[other]}/128"]
suite = "{self.suite}"
"""

    def _tool(self, *arguments: str, stdin: str | None = None) -> str:
        return process.run([self.binary, *arguments], stdin=stdin)

    def status(self, end: int) -> dict:
        """What `ringway status --json` of end 0 (a) or 1 (b) says."""
        return json.loads(self._tool("status", self._sockets[end], "--json"))

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


class WireguardGo(Tunnel):
    """Two wireguard-go daemons, set up through `wg`."""

    key, label = "wireguard-go", "wireguard-go"
    interfaces = ("wga", "wgb")  # both control sockets lie in /run/wireguard, so the names must differ

    def __init__(self, lab: Lab, logs: str, binary: str = "wireguard-go"):
        super().__init__(lab, logs)
        self.binary = binary

    def _start(self) -> None:
        directory = self.lab.scratch(self.key)
        os.makedirs("/run/wireguard", exist_ok=True)
        private = [process.run(["wg", "genkey"]) for _ in "ab"]
        public = [process.run(["wg", "pubkey"], stdin=key).strip() for key in private]
        self.daemons = []
        for name, end in zip(self.interfaces, self.lab.ends):
            self.daemons.append(end.start(self.binary, "-f", name, log=self._log(end.name)))
        for me, other, end in ((0, 1, self.lab.a), (1, 0, self.lab.b)):
            name = self.interfaces[me]
            self._wait_for_file(self.daemons[me], f"/run/wireguard/{name}.sock")
            key_file = f"{directory}/{name}.key"
            _write_private(key_file, private[me])
            end.run("wg", "set", name, "listen-port", str(LISTEN_PORT), "private-key", key_file)
            allowed = f"{self.v4[other]}/32,{self.v6[other]}/128"
            endpoint = f"{UNDERLAY_V4[other]}:{LISTEN_PORT}"
            end.run("wg", "set", name, "peer", public[other], "allowed-ips", allowed, "endpoint", endpoint)
            end.ip("address", "add", f"{self.v4[me]}/24", "dev", name)
            if self.lab.has_ipv6:
                end.ip("address", "add", f"{self.v6[me]}/64", "dev", name, "nodad")
            end.ip("link", "set", name, "up")


def _write_private(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR), "w", encoding="ascii") as file:
        file.write(text)
