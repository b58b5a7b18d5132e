"""`perf/syscalls`: how often each daemon calls the kernel, by call and per packet; with io_uring, also what it asks for."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time

from lab import terminal
from lab.process import Failed, Process
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
        meter = common.Meter(bench, bench.options.load)
        counts = _by_trace_points(bench) if traced else _by_strace(bench)
        carried = meter.read()
    heading(f"System calls per 1,000 packets. {bench.options.load}: {carried.describe()}")
    ends = [end for end, _ in bench.daemons]
    names = sorted({name for end in ends for name in counts[end]}, key=lambda name: -max(counts[end].get(name, 0) for end in ends))
    thousands = [count / 1e3 for count in carried.packets]

    def row(name: str, totals: list[float]) -> list[str]:
        return [name, *(f"{total / unit:.3f}" for total, unit in zip(totals, thousands))]

    rows = [row(name, [counts[end].get(name, 0) for end in ends]) for name in names]
    rows.append(row("all calls", [sum(count for name, count in counts[end].items() if not name.startswith("(")) for end in ends]))
    terminal.table(["", *ends], rows)
    report = {"load": bench.options.load, "carried": dataclasses.asdict(carried), "by": "trace points" if traced else "strace"}
    common.write_json(bench, "report.json", {**report, "counts": counts})
    common.say_where(bench, "report.json")


def _by_trace_points(bench: common.Bench) -> dict[str, dict[str, float]]:
    rings = [event for event in _RING if os.path.isdir(f"/sys/kernel/tracing/events/{event.replace(':', '/')}")]
    counted = common.perf_stat(bench.daemons, [f"{_ENTER}*", *rings], bench.options.seconds)
    return {
        end: {_RING.get(event, event.removeprefix(_ENTER)): count for event, count in events.items() if count}
        for end, events in counted.items()
    }


def _by_strace(bench: common.Bench) -> dict[str, dict[str, float]]:
    running = []
    try:
        for end, daemon in bench.daemons:
            log = f"/run/lab/strace.{end}"
            running.append((end, log, Process(["strace", "-c", "-f", "-q", "-o", log, "-p", str(daemon.pid)])))
        time.sleep(bench.options.seconds)
    except FileNotFoundError as missing:
        raise Failed("strace is not installed") from missing
    finally:
        for _, _, strace in running:
            strace.stop()
    return {end: _parse_strace(log) for end, log, _ in running}


def _parse_strace(path: str) -> dict[str, float]:
    """Lines of: % time, seconds, microseconds per call, calls, errors (may be missing), name."""
    row = re.compile(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$")
    with open(path, encoding="utf-8") as file:
        matches = (row.match(line) for line in file)
        return {match[2]: float(match[1]) for match in matches if match and match[2] != "total"}


if __name__ == "__main__":
    sys.exit(main())
