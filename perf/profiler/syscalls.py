"""`perf/syscalls`: how often each daemon calls the kernel, by call and per packet; with io_uring, also what it asks for."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time

from lab import terminal
from lab.process import Failed, Process, wait_until
from lab.terminal import heading, say
from profiler import common

_ENTER = "syscalls:sys_enter_"
_RING = {
    "io_uring:io_uring_submit_req": "(io_uring request)",
    "io_uring:io_uring_complete": "(io_uring completion)",
    "io_uring:io_uring_cqe_overflow": "(io_uring overflow)",
}


def main() -> int:
    parser = common.parser("syscalls", "System calls per inner packet of each daemon, while a load runs.")
    common.add_load(parser)
    parser.add_argument("--strace", action="store_true", help="count by strace -c, which slows the daemons down a lot")
    return common.main(parser.parse_args(), _syscalls)


def _syscalls(bench: common.Bench) -> None:
    traced = not bench.options.strace and common.mount_tracefs() and os.path.isdir("/sys/kernel/tracing/events/syscalls")
    if not traced:
        say("Counting with strace -c, which stops the daemon at every call: counts per packet are higher than without it.")
    with bench.load(bench.options.load):
        counts, window = _by_trace_points(bench) if traced else _by_strace(bench)
    heading(f"System calls per 1,000 packets. {bench.options.load}: {window.carried.describe()}")
    ends = [end for end, _ in bench.daemons]
    names = sorted({name for end in ends for name in counts[end]}, key=lambda name: -max(counts[end].get(name, 0) for end in ends))

    def row(name: str, totals: list[float]) -> list[str]:
        return [name, *(f"{window.per_packet(end, total * 1e3):.3f}" for end, total in enumerate(totals))]

    rows = [row(name, [counts[end].get(name, 0) for end in ends]) for name in names]
    rows.append(row("all calls", [sum(count for name, count in counts[end].items() if not name.startswith("(")) for end in ends]))
    terminal.table(["", *ends], rows)
    report = {"load": bench.options.load, **window.report(), "by": "trace points" if traced else "strace"}
    common.write_json(bench, "report.json", {**report, "counts": counts})
    common.say_where(bench, "report.json")


def _by_trace_points(bench: common.Bench) -> tuple[dict[str, dict[str, float]], common.Window]:
    rings = [event for event in _RING if os.path.isdir(f"/sys/kernel/tracing/events/{event.replace(':', '/')}")]
    counted, window = common.perf_stat(bench, [f"{_ENTER}*", *rings])
    by_name = {
        end: {_RING.get(event, event.removeprefix(_ENTER)): count for event, count in events.items() if count}
        for end, events in counted.items()
    }
    return by_name, window


def _by_strace(bench: common.Bench) -> tuple[dict[str, dict[str, float]], common.Window]:
    """The daemons carry fewer packets while they are traced, so these are metered within that time alone."""
    logs = {end: f"/run/lab/strace.{end}" for end, _ in bench.daemons}
    started, seconds = [], []
    with contextlib.ExitStack() as stack:
        straces = []
        for end, daemon in bench.daemons:
            try:
                straces.append(Process(["strace", "-c", "-f", "-q", "-o", logs[end], "-p", str(daemon.pid)]))
            except FileNotFoundError as missing:
                raise Failed("strace is not installed") from missing
            stack.callback(straces[-1].stop)
            wait_until(lambda pid=daemon.pid: _is_traced(pid), 10, f"strace attaches to the daemon of {end}")
            started.append(time.monotonic())
        meter = common.Meter(bench, bench.options.load)
        time.sleep(bench.options.seconds)
        carried = meter.read()
        for strace, since in zip(straces, started):
            strace.check_alive()
            seconds.append(time.monotonic() - since)
            strace.stop()
    return {end: _parse_strace(log) for end, log in logs.items()}, common.Window(carried, seconds)


def _is_traced(pid: int) -> bool:
    """Every thread of it."""

    def tracer(task: str) -> str:
        with open(f"/proc/{pid}/task/{task}/status", encoding="utf-8") as file:
            return next(line.split()[1] for line in file if line.startswith("TracerPid:"))

    return all(tracer(task) != "0" for task in os.listdir(f"/proc/{pid}/task"))


def _parse_strace(path: str) -> dict[str, float]:
    """Lines of: % time, seconds, microseconds per call, calls, errors (may be missing), name."""
    row = re.compile(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$")
    with open(path, encoding="utf-8") as file:
        matches = (row.match(line) for line in file)
        return {match[2]: float(match[1]) for match in matches if match and match[2] != "total"}


if __name__ == "__main__":
    sys.exit(main())
