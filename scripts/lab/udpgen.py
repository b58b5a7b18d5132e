"""Runs perf/udpgen through a tunnel: datagrams per second that arrive, and round trips."""

from __future__ import annotations

import contextlib
import json
import os
import time

from lab import measure, process
from lab.process import Failed, Process
from lab.tunnels import Tunnel

_PORT = 5300


class Server:
    """`udpgen serve` at end b of a tunnel. Use it in a `with`."""

    def __init__(self, tunnel: Tunnel, binary: str, threads: int = 1):
        self.tunnel, self.binary, self.threads = tunnel, binary, threads
        self.address = f"{tunnel.v4[1]}:{_PORT}"

    def __enter__(self) -> Server:
        lab = self.tunnel.lab
        self._log = f"{lab.directory}/udpgen.serve.log"
        self._server = lab.b.start(self.binary, "serve", self.address, f"--threads={self.threads}", log=self._log)
        try:
            process.wait_until(lambda: measure.listens(self._server, _PORT), 5, "udpgen serve")
        except BaseException:
            self._server.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._server.stop()

    def blast(self, size: int, seconds: float, gso: bool = False, flows: int = 1, rate: float | None = None) -> dict:
        """Datagrams of `size` bytes from a to b, as fast as possible or at `rate` per second; udpgen's report."""
        arguments = [f"--size={size}", f"--seconds={seconds}", f"--flows={flows}"]
        arguments += ["--gso"] * gso + ([f"--rate={rate}"] if rate else [])
        with self._start("blast", *arguments) as client:
            return self._finish(client, seconds + 40)

    @contextlib.contextmanager
    def rtt_meanwhile(self, seconds: float, rate: float = 1000, delay: float = 0):
        """Begins to measure round trips from a; the function that it yields waits for udpgen's report.

        Its fields are those of a stage of `ringway latency --json`.
        """
        arguments = [f"--seconds={seconds}", f"--rate={rate}", f"--delay={delay}"]
        with self._start("rtt", *arguments) as client:
            yield lambda: self._finish(client, delay + seconds + 20)

    @contextlib.contextmanager
    def blast_meanwhile(self, size: int, seconds: float, gso: bool = False):
        """Sends without waiting for it; it ends on leaving, without a report."""
        with self._start("blast", f"--size={size}", f"--seconds={seconds}", *(["--gso"] * gso)) as client:
            yield
            client.check_alive()

    @contextlib.contextmanager
    def _start(self, mode: str, *arguments: str):
        output = f"{self.tunnel.lab.directory}/udpgen.{mode}.{time.monotonic_ns()}"
        if self.tunnel.ports:
            arguments += (f"--source-port={next(self.tunnel.ports)}",)
        client = self.tunnel.lab.a.start(self.binary, mode, self.address, *arguments, log=output)
        try:
            yield client
        finally:
            client.stop()
            os.unlink(client.log)

    def _finish(self, client: Process, timeout: float) -> dict:
        status = client.wait(timeout)
        self._server.check_alive()
        lines = client.output().splitlines()
        if status != 0 or not lines:
            raise Failed("\n".join([f"udpgen: exit status {status}", *lines]))
        return json.loads(lines[-1])
