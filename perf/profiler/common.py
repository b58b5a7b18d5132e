"""What every tool here does first: read the options, build, isolate itself, draw the lab, start a tunnel and its load."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

from lab import build, contenders, isolate, machine, measure, netns, process, tunnels, udpgen
from lab.process import Failed, Process
from lab.terminal import heading, say

# Beyond this no load runs: every tool stops it long before.
_LONGEST_S = 3600
_IPERF3 = {
    "tcp_1": measure.TCP_1.arguments,
    "tcp_4": measure.TCP_4.arguments,
    "tcp_reverse": measure.TCP_REVERSE.arguments,
    "tcp_both_ways": measure.TCP_BOTH_WAYS.arguments,
}
_UDPGEN = {"udp_64": (64, False), "udp_1300": (1300, False), "udp_64_gso": (64, True), "udp_1300_gso": (1300, True)}
LOADS = (*_IPERF3, *_UDPGEN)
_RAMP_UP_S = 1.0
# How long perf may take to attach to every thread with every event; then it answers at once.
_ANSWER_S = 30.0
_UDP_HEADERS = 28  # IPv4 and UDP


@dataclasses.dataclass
class Bench:
    """A tunnel that is up, at both ends of a lab."""

    options: argparse.Namespace
    tunnel: tunnels.Tunnel
    generator: str
    machine: dict

    @property
    def daemons(self) -> list[tuple[str, Process]]:
        """The ends' names and their daemons."""
        return list(zip("ab", self.tunnel.daemons))

    @contextlib.contextmanager
    def load(self, key: str, bits_per_second: float | None = None):
        """Runs a load meanwhile, which has found its rate when the body begins; TCP may be limited to a rate."""
        with _load(self, key, bits_per_second):
            time.sleep(_RAMP_UP_S)
            yield

    def packets(self, load: str) -> tuple[list[float], bool]:
        """Inner packets that each daemon has carried so far, both directions together, and whether they were counted.

        ringway counts them; for others they are taken from the interface's bytes and the size of the load's packets.
        """
        if isinstance(self.tunnel, tunnels.Ringway):
            reports = (self.tunnel.status(end)["workers"] for end in (0, 1))
            return [sum(worker[way]["packets"] for worker in workers for way in ("tx", "rx")) for workers in reports], True
        size = _UDPGEN[load][0] + _UDP_HEADERS if load in _UDPGEN else netns.DEFAULT_MTU - tunnels.OVERHEAD
        return [self.bytes(end) / size for end in (0, 1)], False

    def bytes(self, end: int) -> int:
        """Bytes through the tunnel's interface at an end, both directions together."""
        total = measure.interface_bytes(self.tunnel.daemons[end].pid, self.tunnel.interfaces[end])
        if total is None:
            raise Failed(f"{self.tunnel.interfaces[end]} is gone")
        return total


@dataclasses.dataclass
class Carried:
    """What the daemons have carried between two moments."""

    seconds: float
    packets: list[float]  # by a, by b
    counted: bool
    bits_per_second: float

    def describe(self) -> str:
        """A line for people."""
        rates = " and ".join(f"{count / self.seconds / 1e3:,.0f}" for count in self.packets)
        about = "" if self.counted else " (by its size)"
        return f"{self.bits_per_second / 1e9:.2f} Gbit/s, {rates} kpacket/s{about} at a and b"


@dataclasses.dataclass
class Window:
    """What the daemons carried while something counted in them, and for how long each was counted.

    The times differ a little: counting begins and ends around the two readings of what is carried, which take a while.
    """

    carried: Carried
    seconds: list[float]  # of a, of b

    def per_packet(self, end: int, total: float) -> float:
        """A total counted at an end, per packet that it carried: events per counted second over packets per metered second."""
        return (total / self.seconds[end]) / (self.carried.packets[end] / self.carried.seconds)

    def report(self) -> dict:
        """For a tool's JSON."""
        return {"carried": dataclasses.asdict(self.carried), "counted_seconds": self.seconds}


class Meter:
    """Begins to note what is carried."""

    def __init__(self, bench: Bench, load: str):
        self._bench, self._load = bench, load
        self._packets, _ = bench.packets(load)
        self._bytes, self._started = bench.bytes(1), time.monotonic()

    def read(self) -> Carried:
        """What was carried since."""
        packets, counted = self._bench.packets(self._load)
        seconds = time.monotonic() - self._started
        differences = [max(late - early, 1) for early, late in zip(self._packets, packets)]
        return Carried(seconds, differences, counted, (self._bench.bytes(1) - self._bytes) * 8 / seconds)


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """With the options that all tools share."""
    made = argparse.ArgumentParser(prog=f"perf/{name}", description=description)
    add = made.add_argument
    add("--tunnel", default="native-uring-1", metavar="NAME", help="as scripts/compare names them (default: %(default)s)")
    add("--seconds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add("--binary", metavar="FILE", help="a ringway to look into instead of building one with frame pointers")
    add("--udpgen", metavar="FILE", help="the generator to use instead of building it")
    add("--peers", metavar="DIRECTORY", default="/opt/peers/bin", help="where others' programs are, before PATH (default: %(default)s)")
    add("--output", metavar="DIRECTORY", default=f"{build.REPOSITORY}/target/perf/{name}", help=f"(default: target/perf/{name})")
    return made


def add_load(made: argparse.ArgumentParser) -> None:
    """The option of tools that put one load on the tunnel."""
    made.add_argument("--load", choices=LOADS, default="tcp_1", metavar="NAME", help=f"{', '.join(LOADS)} (default: tcp_1)")


def main(options: argparse.Namespace, tool) -> int:
    """Calls `tool(bench)` with a tunnel that is up, and turns what goes wrong into a message and a status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        programs = _programs(options)
        contender = contenders.Directory(programs["ringway"], options.peers).contender(options.tunnel)
        os.makedirs(options.output, exist_ok=True)
        fingerprint = machine.fingerprint(build.REPOSITORY)
        isolate.enter()
        with netns.Lab() as lab, contender.tunnel(lab, options.output, tunnels.Shape()) as tunnel:
            if not tunnel.daemons:
                raise Failed(f"{contender.label} has no daemon to look into")
            heading(f"{contender.label}, {options.seconds} s. {machine.summary(fingerprint)}")
            tool(Bench(options, tunnel, programs["udpgen"], fingerprint))
    except KeyboardInterrupt:
        say("\ninterrupted; the lab is gone")
        return 130
    except (Failed, isolate.CannotIsolate, contenders.Unknown) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def write_json(bench: Bench, name: str, report: dict) -> None:
    """A tool's report, with what it was measured on."""
    report = {"version": 1, "tunnel": bench.options.tunnel, "machine": bench.machine, **report}
    with open(f"{bench.options.output}/{name}", "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")


def say_where(bench: Bench, files: str) -> None:
    """The last line of a tool."""
    output = bench.options.output
    say(f"\n{os.path.relpath(output) if output.startswith(build.REPOSITORY) else output}/{files}")


def counts_in_hardware() -> bool:
    """Whether this machine lets perf count cycles; many virtual machines don't."""
    argv = ["perf", "stat", "-x,", "-e", "cycles", "true"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise Failed("perf is not installed (Debian: linux-perf)") from missing
    return done.returncode == 0 and "<not" not in done.stderr


def mount_tracefs() -> bool:
    """Makes the kernel's trace points visible, to this process's mount namespace only; false where they are not to be had."""
    if os.path.exists("/sys/kernel/tracing/events"):
        return True
    try:
        process.run(["mount", "-t", "tracefs", "none", "/sys/kernel/tracing"])
    except Failed:
        return False
    return True


class Perf:
    """A perf that is attached, and counts from `enable` to `disable`.

    Attaching may take a second, in which packets are carried and nothing is counted.
    """

    def __init__(self, command: str, arguments: list[str], at: str):
        """`perf command arguments`; files begin with the path `at`."""
        self._fifos = [f"{at}.control", f"{at}.ack"]
        for fifo in self._fifos:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fifo)
            os.mkfifo(fifo)
        # For both ways, so that nobody waits for the other to open them.
        self._control, self._ack = (os.open(fifo, os.O_RDWR | os.O_CLOEXEC) for fifo in self._fifos)
        self._enabled_at, self.seconds = 0.0, 0.0
        # Disabled to begin with.
        argv = ["perf", command, "-D", "-1", "--control", f"fifo:{','.join(self._fifos)}", *arguments]
        self._process = Process(argv, log=f"{at}.log")

    def enable(self) -> None:
        """Returns when it counts."""
        self._tell("enable")
        self._enabled_at = time.monotonic()

    def disable(self) -> None:
        """Returns when it has stopped counting; `seconds` says for how long it did."""
        self._tell("disable")
        self.seconds = time.monotonic() - self._enabled_at

    def finish(self) -> None:
        """Makes it write down what it has counted."""
        os.kill(self._process.pid, signal.SIGINT)
        # It reports what it has, then ends by the signal.
        if self._process.wait(60) not in (0, -signal.SIGINT, 128 + signal.SIGINT):
            raise Failed(f"perf: {self._process.output()}")

    def close(self) -> None:
        """Ends it, however far it has come."""
        self._process.stop()
        os.close(self._control)
        os.close(self._ack)

    def _tell(self, order: str) -> None:
        os.write(self._control, f"{order}\n".encode())
        deadline = time.monotonic() + _ANSWER_S
        while not select.select([self._ack], [], [], 0.1)[0]:
            self._process.check_alive()
            if time.monotonic() > deadline:
                raise Failed(f"perf does not {order}: {self._process.output()}")
        os.read(self._ack, 64)


def count(bench: Bench, perfs: list[Perf]) -> Window:
    """Lets every end's perf count for the seconds that were asked for, and notes what is carried meanwhile."""
    for perf in perfs:
        perf.enable()
    meter = Meter(bench, bench.options.load)
    time.sleep(bench.options.seconds)
    carried = meter.read()
    for perf in perfs:
        perf.disable()
    for perf in perfs:
        perf.finish()
    return Window(carried, [perf.seconds for perf in perfs])


def perf_stat(bench: Bench, events: list[str]) -> tuple[dict[str, dict[str, float | None]], Window]:
    """Counts `events` in every daemon at the same time: end -> event -> count; None: not counted by this machine."""
    logs = {end: f"/run/lab/perf-stat.{end}" for end, _ in bench.daemons}
    with contextlib.ExitStack() as stack:
        perfs = []
        for end, daemon in bench.daemons:
            arguments = ["-j", "-o", logs[end], "-e", ",".join(events), "-p", str(daemon.pid)]
            perfs.append(Perf("stat", arguments, logs[end]))
            stack.callback(perfs[-1].close)
        window = count(bench, perfs)
    counts = {}
    for end, log in logs.items():
        with open(log, encoding="utf-8") as file:
            counts[end] = parse_stat(file)
    return counts, window


def parse_stat(lines: Iterable[str]) -> dict[str, float | None]:
    """What `perf stat -j` writes: event -> count; None: not counted by this machine."""
    counts: dict[str, float | None] = {}
    for line in lines:
        if not line.startswith("{"):
            continue
        entry = json.loads(line)
        try:
            counts[entry["event"]] = float(entry["counter-value"])
        except ValueError:  # "<not supported>", "<not counted>"
            counts[entry["event"]] = None
    return counts


def _programs(options: argparse.Namespace) -> dict[str, str]:
    """Frame pointers make stacks whole; a build directory of its own keeps other builds warm."""
    given = {name: os.path.abspath(path) for name, path in (("ringway", options.binary), ("udpgen", options.udpgen)) if path}
    targets = {"ringway": "--bins", "udpgen": "--example=udpgen"}
    missing = [target for name, target in targets.items() if name not in given]
    if missing:
        heading("Building (profiling)")
        os.environ["CFLAGS"] = f"{os.environ.get('CFLAGS', '')} -fno-omit-frame-pointer".strip()
        directory = f"{build.REPOSITORY}/target/profiling-build"
        flags = "-C force-frame-pointers=yes"
        given.update(build.build(*missing, profile="profiling", rustflags=flags, target_directory=directory))
    return given


@contextlib.contextmanager
def _load(bench: Bench, key: str, bits_per_second: float | None):
    tunnel = bench.tunnel
    if key in _UDPGEN:
        size, gso = _UDPGEN[key]
        with udpgen.Server(tunnel, bench.generator) as server:
            with server.blast_meanwhile(size, _LONGEST_S, gso):
                yield
        return
    limit = ["-b", str(round(bits_per_second))] if bits_per_second else []
    with measure.iperf3_meanwhile(tunnel, [*_IPERF3[key], *limit], _LONGEST_S):
        yield
