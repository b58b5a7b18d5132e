"""`perf/record`: samples both daemons under load; a flame graph for each, and a table of where the time goes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections import Counter

from lab import terminal
from lab.terminal import heading, say
from profiler import common, flamegraph, groups, samples

_FREQUENCY = 1999  # per second and thread; odd, so that it does not march in step with the kernel's timers
_TOP = 12


def main() -> int:
    parser = common.parser("record", "Where each daemon spends its time while a load runs: flame graphs and a table by kind of work.")
    common.add_load(parser)
    return common.main(parser.parse_args(), _record)


def _record(bench: common.Bench) -> None:
    hardware = common.counts_in_hardware()
    event = "cycles" if hardware else "cpu-clock"
    data = f"{bench.options.output}/perf.data"
    pids = ",".join(str(daemon.pid) for _, daemon in bench.daemons)
    with bench.load(bench.options.load):
        arguments = ["-q", "-e", event, "-F", str(_FREQUENCY), "--call-graph", "fp", "-p", pids, "-o", data]
        with contextlib.closing(common.Perf("record", arguments, "/run/lab/perf-record")) as perf:
            window = common.count(bench, [perf])
    # It counts both ends.
    window.seconds = [perf.seconds for _ in bench.daemons]
    programs = {daemon.pid: os.readlink(f"/proc/{daemon.pid}/exe") for _, daemon in bench.daemons}
    profiles = _read(data, programs)
    in_order = [profiles[daemon.pid] for _, daemon in bench.daemons]
    _print_groups(bench, in_order, window)
    for (end, _), profile in zip(bench.daemons, in_order):
        rate = f"{window.carried.bits_per_second / 1e9:.1f} Gbit/s"
        title = f"{bench.tunnel.label}, end {end}, {bench.options.load}, {rate}: {profile.samples:,} samples of {event}"
        with open(f"{bench.options.output}/{end}.svg", "w", encoding="utf-8") as file:
            file.write(flamegraph.draw(title, profile.stacks, groups.NAMES))
        heading(f"Functions of {end}, by themselves")
        terminal.table(["", "", "share"], [[_short(name), group, f"{100 * share:.1f} %"] for name, group, share in profile.top(_TOP)])
    if not hardware:
        say("  This machine counts no cycles: samples are the CPU clock's, and work done with interrupts off shows where they go on again.")
    ends = {
        end: {"samples": profile.samples, "groups": profile.groups, "functions": profile.top(50)}
        for (end, _), profile in zip(bench.daemons, in_order)
    }
    report = {"load": bench.options.load, "event": event, "frequency": _FREQUENCY, **window.report(), "ends": ends}
    common.write_json(bench, "report.json", report)
    common.say_where(bench, "a.svg, b.svg (flame graphs: open in a browser), report.json, perf.data")


@dataclasses.dataclass
class Profile:
    """What one daemon was seen doing: counts of samples."""

    stacks: Counter = dataclasses.field(default_factory=Counter)  # by ((function, group), ...) from the thread inwards
    groups: Counter = dataclasses.field(default_factory=Counter)
    functions: Counter = dataclasses.field(default_factory=Counter)  # by innermost (function, group)
    samples: int = 0

    def add(self, sample: samples.Sample, program: str) -> None:
        """Counts a sample of a daemon that runs `program`."""
        stack = sample.stack or [groups.Frame("?", "?")]
        # A frame's group is what it would be if it were the innermost: callers keep their own colour.
        named = [(frame.name, groups.group_of(stack[at:], program)) for at, frame in enumerate(stack)]
        self.stacks[((sample.thread, ""), *reversed(named))] += 1
        self.groups[named[0][1]] += 1
        self.functions[named[0]] += 1
        self.samples += 1

    def top(self, count: int) -> list[tuple[str, str, float]]:
        """The functions in which most time went by: (name, group, share)."""
        return [(*function, seen / self.samples) for function, seen in self.functions.most_common(count)]


def _read(data: str, programs: dict[int, str]) -> dict[int, Profile]:
    """A profile for every process in `programs`."""
    profiles = {pid: Profile() for pid in programs}
    for sample in samples.read(data):
        if sample.pid in profiles:
            profiles[sample.pid].add(sample, programs[sample.pid])
    return profiles


def _print_groups(bench: common.Bench, profiles: list[Profile], window: common.Window) -> None:
    """Shares of each daemon's time, and what each kind of work costs per packet."""
    heading(f"Where the time goes. {bench.options.load}: {window.carried.describe()}")

    def cells(counts: list[int]) -> list[str]:
        made = []
        for end, (count, profile) in enumerate(zip(counts, profiles)):
            share = 100 * count / max(profile.samples, 1)
            made += [f"{share:.1f} %", f"{window.per_packet(end, count / _FREQUENCY * 1e9):.0f} ns"]
        return made

    rows = [[name, *cells([profile.groups[name] for profile in profiles])] for name in groups.NAMES]
    rows.append(["all", *cells([profile.samples for profile in profiles])])
    terminal.table(["", "a", "a, per packet", "b", "b, per packet"], rows)


def _short(name: str) -> str:
    return name if len(name) <= 90 else f"{name[:89]}…"


if __name__ == "__main__":
    sys.exit(main())
