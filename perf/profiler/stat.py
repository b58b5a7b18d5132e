"""`perf/stat`: what a packet costs each daemon: CPU time, cycles, instructions, cache misses, system calls, switches."""

from __future__ import annotations

import sys

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
        counts, window = common.perf_stat(bench, events)
    heading(f"Per packet. {bench.options.load}: {window.carried.describe()}")
    rows = []
    for event in events:
        totals = [counts[end].get(event) for end, _ in bench.daemons]
        scale = 1e6 if event == "task-clock" else 1  # perf counts it in milliseconds
        cells = ["-" if total is None else _number(window.per_packet(end, total * scale)) for end, total in enumerate(totals)]
        rows.append([_LABELS.get(event, event), *cells])
    terminal.table(["", "a", "b"], rows)
    if not hardware:
        say("  This machine counts no cycles, instructions and cache misses (a virtual machine?): times are the CPU clock's.")
    report = {"load": bench.options.load, **window.report(), "counts": counts}
    common.write_json(bench, "report.json", {**report, "hardware_counters": hardware})
    common.say_where(bench, "report.json")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else "< 0.001" if value else "0"


if __name__ == "__main__":
    sys.exit(main())
