"""`perf/stat`: what a packet costs each daemon: CPU time, cycles, instructions, cache misses, system calls, switches."""

from __future__ import annotations

import sys
import time

from lab import terminal
from lab.terminal import heading, say
from profiler import common

_SOFTWARE = ("task-clock", "context-switches", "cpu-migrations", "page-faults")
_HARDWARE = ("cycles", "instructions", "cache-misses", "L1-dcache-load-misses", "branch-misses")
_SYSTEM_CALLS = "raw_syscalls:sys_enter"
_LABELS = {"task-clock": "CPU time, ns", _SYSTEM_CALLS: "system calls"}


def main() -> int:
    parser = common.parser("stat", "What one inner packet costs each daemon, by perf stat while a load runs.")
    common.add_load(parser)
    return common.main(parser.parse_args(), _stat)


def _stat(bench: common.Bench) -> None:
    hardware = common.counts_in_hardware()
    events = list(_SOFTWARE) + (list(_HARDWARE) if hardware else [])
    if common.mount_tracefs():
        events.append(_SYSTEM_CALLS)
    else:
        say("The kernel's trace points are out of reach: system calls are not counted.")
    with bench.load(bench.options.load):
        before, bytes_before, started = bench.packets(), bench.bytes(), time.monotonic()
        counts = common.perf_stat(bench.daemons, events, bench.options.seconds)
        seconds = time.monotonic() - started
        after, carried = bench.packets(), bench.bytes() - bytes_before
    if before is None or after is None:
        per, units = "per MB", [carried / 1e6] * 2
    else:
        per, units = "per packet", [late - early for early, late in zip(before, after)]
        say(f"{units[0] / seconds / 1e3:,.0f} kpacket/s at a, {units[1] / seconds / 1e3:,.0f} at b")
    say(f"{carried * 8 / seconds / 1e9:.2f} Gbit/s through the tunnel ({bench.options.load})")
    heading(per[0].upper() + per[1:])
    rows = []
    for event in events:
        totals = [counts[end].get(event) for end, _ in bench.daemons]
        scale = 1e6 if event == "task-clock" else 1  # perf counts it in milliseconds
        cells = ["-" if total is None else _number(total * scale / max(unit, 1)) for total, unit in zip(totals, units)]
        rows.append([_LABELS.get(event, event), *cells])
    terminal.table(["", "a", "b"], rows)
    if not hardware:
        say("  This machine counts no cycles, instructions and cache misses (a virtual machine?): times are the CPU clock's.")
    report = {"load": bench.options.load, "seconds": seconds, "bytes": carried, "unit": per, "units": units, "counts": counts}
    common.write_json(bench, "report.json", {**report, "hardware_counters": hardware})
    common.say_where(bench, "report.json")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
