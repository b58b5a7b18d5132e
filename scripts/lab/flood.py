"""Throughput from a to b while perf/floodgen sends bogus handshakes to b from many forged sources.

The generator shares the machine with the tunnel. What a flood costs is therefore compared with the same flood to a port that
nobody listens on, which takes as much of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os

from lab import measure
from lab.netns import UNDERLAY_V4
from lab.process import Failed
from lab.tunnels import LISTEN_PORT, Ringway, Tunnel, Wireguard

RATE = 50_000  # datagrams per second
KINDS = {"no_mac1": "no-mac1", "mac1": "mac1", "unknown_key": "unknown-key"}  # metric -> floodgen's name
_SOURCES = "198.18.0.0/15"  # RFC 2544: benchmarks
_SENT_MIN = 0.95  # of RATE; a generator that was starved says nothing about the tunnel


def prepare(lab) -> None:
    """Answers to forged sources leave b as they would in a network: through its underlay."""
    lab.b.ip("route", "add", _SOURCES, "via", UNDERLAY_V4[0])


def run(tunnel: Tunnel, generator: str, seconds: int, progress) -> tuple[dict[str, float], dict]:
    """bit/s beside each flood and under it, and how many percent of the former the latter is; what was sent."""
    if not isinstance(tunnel, (Ringway, Wireguard)):
        raise Failed("a flood of handshakes needs a tunnel that shakes hands")
    key, suite = tunnel.public_key(1), "native" if tunnel.describe().get("suite") == "native" else "wireguard"
    metrics, detail = {}, {}
    for metric, kind in KINDS.items():
        rates = []
        for place, port in (("beside", LISTEN_PORT + 1), ("under", LISTEN_PORT)):
            arguments = [f"{UNDERLAY_V4[1]}:{port}", f"--kind={kind}", f"--suite={suite}", f"--public-key={key}"]
            arguments += [f"--rate={RATE}", f"--from={_SOURCES}", f"--seconds={seconds + 1}"]
            with _flood(tunnel, generator, arguments) as finish:
                rates.append(measure.run(tunnel, measure.TCP_1, seconds, progress).rate)
                sent = finish(seconds + 20)
            if sent["sent_pps"] < _SENT_MIN * RATE:
                raise Failed(f"floodgen sent {sent['sent_pps']:.0f} datagrams per second instead of {RATE}")
            detail[f"{metric}_{place}"] = {"bits_per_second": rates[-1], **sent}
        metrics[f"flood_{metric}"] = rates[1]
        metrics[f"flood_{metric}_kept"] = 100 * rates[1] / rates[0]
    return metrics, detail


@contextlib.contextmanager
def _flood(tunnel: Tunnel, generator: str, arguments: list[str]):
    output = f"{tunnel.lab.directory}/floodgen"
    process = tunnel.lab.a.start(generator, *arguments, log=output)
    try:

        def finish(timeout: float) -> dict:
            status = process.wait(timeout)
            if status != 0:
                raise Failed(f"floodgen: exit status {status}\n{process.output()}")
            return json.loads(process.output().splitlines()[-1])

        yield finish
    finally:
        process.stop()
        os.unlink(output)
