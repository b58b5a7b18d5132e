"""`scripts/compare`: one lab, one tunnel after the other, several rounds, and what comes of it next to each other.

All tunnels of a round are up at the same time, each in a lab of its own, and idle but for the one that is measured. Each
measurement goes through all of them, in every round beginning with another, so that the runs that are compared are seconds apart: a
machine that slows down for a minute slows all of them down.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import os
import signal
import sys

from lab import build, cases, compare_report, contenders, figures, isolate, machine, process, report, terminal, udpgen
from lab.cases import CASES, MEASUREMENTS, Case, Measurement
from lab.contenders import BASE, REFERENCE, Contender
from lab.process import Failed
from lab.terminal import heading, say
from lab.tunnels import Tunnel

_SELF = "native-uring-2"
_SELF_TOLERANCE = 0.05
_QUICK_TUNNELS = [BASE, "native-uring-2", "wireguard-uring-2", REFERENCE]
_TUNNEL_UP_S = 1.5  # about what starting and stopping a tunnel takes


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run, in this order, in every round."""

    steps: list[tuple[Case, list[Contender], list[Measurement]]]
    rounds: int
    seconds: int
    flows: int

    def duration_s(self) -> float:
        """About how long all of it takes."""
        return self.rounds * sum(
            len(tunnels) * (_TUNNEL_UP_S + sum(m.duration_s(self.seconds) for m in measurements))
            for _, tunnels, measurements in self.steps
        )


def main() -> int:
    options = _parse_arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        programs = _programs(options)
        directory = contenders.Directory(programs["ringway"], options.peers)
        plan = _plan(options, directory)
        os.makedirs(options.output, exist_ok=True)
        fingerprint = machine.fingerprint(build.REPOSITORY)
        result = _empty_result(plan, options, fingerprint, isolate.enter())
        _announce(plan, result)
        interrupted = _run(plan, programs, options.output, result)
        result["figures"] = [f.as_dict() for f in figures.summarise(result["runs"], REFERENCE, BASE)]
        _write(result, options)
        if options.self and not interrupted:
            return 0 if compare_report.print_self(result, _SELF_TOLERANCE) else 1
        compare_report.print_tables(result)
        if interrupted:
            return 130
        return 1 if any("error" in run for run in result["runs"]) else 0
    except KeyboardInterrupt:
        say("\ninterrupted; the lab is gone")
        return 130
    except (Failed, isolate.CannotIsolate, contenders.Unknown) as error:
        print(f"\nscripts/compare: {error}", file=sys.stderr)
        return 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/compare",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares tunnels: throughput, packets per second, latency, CPU and memory, in interleaved rounds.",
        epilog=f"tunnels:\n{_indented_table(contenders.__doc__ or '')}\n\n"
        f"cases: {', '.join(f'{c.key} ({c.label})' for c in CASES)}\n"
        f"measurements: {', '.join(m.key for m in MEASUREMENTS)}\n",
    )
    add = parser.add_argument
    add("--tunnels", nargs="+", metavar="NAME", help="what to compare (default: everything that is installed)")
    add("--cases", nargs="+", choices=[c.key for c in CASES], metavar="CASE", help="(default: all)")
    add("--measurements", nargs="+", choices=[m.key for m in MEASUREMENTS], metavar="NAME", help="(default: each case's)")
    add("--seconds", type=int, metavar="N", help="per measurement (default: 5)")
    add("--rounds", type=int, metavar="N", help="(default: 5)")
    add("--flows", type=int, default=1, metavar="N", help="of the UDP generator (default: 1)")
    add("--quick", action="store_true", help="few tunnels, MTU 1500 only, 2 s, 1 round, unless told otherwise: a first look")
    add("--self", action="store_true", help=f"{_SELF} (or the tunnel given) against itself: how far figures can be trusted")
    add("--json", metavar="FILE", help="write the report there too")
    add("--binary", metavar="FILE", help="a ringway to measure instead of building one")
    add("--udpgen", metavar="FILE", help="the generator to use instead of building it")
    add("--floodgen", metavar="FILE", help="the generator of floods to use instead of building it")
    add("--peers", metavar="DIRECTORY", default="/opt/peers/bin", help="where others' programs are, before PATH (default: %(default)s)")
    add("--output", metavar="DIRECTORY", default=f"{build.REPOSITORY}/target/compare", help="(default: target/compare)")
    options = parser.parse_args()
    options.seconds = options.seconds or (2 if options.quick else 5)
    options.rounds = options.rounds or (1 if options.quick else 5)
    if min(options.seconds, options.rounds, options.flows) < 1:
        parser.error("seconds, rounds and flows are at least 1")
    if options.self and options.tunnels and len(options.tunnels) != 1:
        parser.error("--self takes one tunnel")
    return options


def _indented_table(text: str) -> str:
    return "\n".join(line[2:] for line in text.splitlines() if line.startswith("    "))


def _programs(options: argparse.Namespace) -> dict[str, str]:
    given = {name: os.path.abspath(path) for name, path in (("ringway", options.binary), ("udpgen", options.udpgen), ("floodgen", options.floodgen)) if path}
    targets = {"ringway": "--bins", "udpgen": "--example=udpgen", "floodgen": "--example=floodgen"}
    missing = [target for name, target in targets.items() if name not in given]
    if missing:
        heading("Building (release)")
        given.update(build.build(*missing))
    return given


def _plan(options: argparse.Namespace, directory: contenders.Directory) -> Plan:
    if options.self:
        one = directory.contender((options.tunnels or [_SELF])[0])
        chosen = [one, dataclasses.replace(one, name=f"{one.name}#2", label=f"{one.label}, again")]
    else:
        names = options.tunnels or (_QUICK_TUNNELS if options.quick else directory.all_names())
        chosen = [directory.contender(name) for name in dict.fromkeys(names)]
    wanted = options.cases or (["plain"] if options.quick or options.self else [c.key for c in CASES])
    steps = []
    for case in (c for c in CASES if c.key in wanted):
        fixed = options.tunnels or options.quick or options.self or case.tunnels is None
        tunnels = [c for c in chosen if fixed or c.name in case.tunnels]
        keys = options.measurements or case.measurements or [m.key for m in MEASUREMENTS if m.everywhere]
        steps.append((case, tunnels, [m for m in MEASUREMENTS if m.key in keys]))
    return Plan(steps, options.rounds, options.seconds, options.flows)


def _empty_result(plan: Plan, options: argparse.Namespace, fingerprint: dict, mode: str) -> dict:
    everyone = {c.name: c for _, tunnels, _ in plan.steps for c in tunnels}
    return {
        "version": 1,
        "kind": "compare",
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": ["scripts/compare", *sys.argv[1:]],
        "mode": mode,
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "flows": plan.flows,
        "machine": fingerprint,
        "load_average_before": os.getloadavg()[0],
        "base": BASE,
        "reference": REFERENCE,
        "cases": [{"key": c.key, "label": c.label, "mtu": c.mtu, "uso": c.uso, "idle_peers": c.idle_peers} for c, _, _ in plan.steps],
        "metrics": [dataclasses.asdict(metric) for metric in cases.METRICS],
        "tunnels": [{"key": c.name, "label": c.label, "family": c.family, "version": c.version()} for c in everyone.values()],
        "offloads": {},
        "described": {},
        "runs": [],
    }


def _announce(plan: Plan, result: dict) -> None:
    say(f"\n{machine.summary(result['machine'])}")
    for case, tunnels, measurements in plan.steps:
        say(f"  {case.label}: {len(tunnels)} tunnels, {len(measurements)} measurements")
    minutes = plan.duration_s() / 60
    say(f"  {plan.rounds} rounds, {plan.seconds} s each: about {minutes:.0f} minute{'s' if round(minutes) != 1 else ''}")
    if result["load_average_before"] > 0.3 * result["machine"]["cores"]:
        say(f"  Other programs are busy here (load average {result['load_average_before']:.1f}): figures will be low and spread.")


def _run(plan: Plan, programs: dict[str, str], output: str, result: dict) -> bool:
    """Fills `result`; true when Ctrl-C ended it early (what was measured until then stays)."""
    try:
        for turn in range(plan.rounds):
            for case, tunnels, measurements in plan.steps:
                heading(f"Round {turn + 1} of {plan.rounds}: {case.label}")
                first = turn % len(tunnels)
                with contextlib.ExitStack() as labs:
                    _Round(plan, case, turn, programs, result).run(
                        labs, tunnels[first:] + tunnels[:first], measurements, output
                    )
    except KeyboardInterrupt:
        say("\ninterrupted; the lab is gone")
        return True
    return False


@dataclasses.dataclass(frozen=True)
class _Running:
    """A tunnel that is up."""

    contender: Contender
    tunnel: Tunnel
    server: udpgen.Server
    lab: contextlib.ExitStack  # takes all of it down


@dataclasses.dataclass(frozen=True)
class _Round:
    """One case of one round. What fails is noted and does not end the comparison."""

    plan: Plan
    case: Case
    turn: int
    programs: dict[str, str]
    result: dict

    def run(self, labs: contextlib.ExitStack, tunnels: list[Contender], measurements: list[Measurement], output: str) -> None:
        """Everything is up until `labs` is closed, but for what fails: that is taken down at once, for a daemon that has lost its
        other end may go on taking CPU from the others.
        """
        running = [one for number, c in enumerate(tunnels) if (one := self._start(labs, c, number, output))]
        for measurement in measurements:
            say(f"  {measurement.label}")
            running = [one for one in running if self._measure(one, measurement) or self._take_down(one)]
        for one in filter(self._is_alive, running):
            memory = cases.rss(one.tunnel)
            self._note(one.contender, cases.RSS.key, metrics=memory.metrics, detail=memory.detail)

    def _start(self, labs: contextlib.ExitStack, contender: Contender, number: int, output: str) -> _Running | None:
        try:
            with contextlib.ExitStack() as own:
                lab = own.enter_context(self.case.lab(str(number)))
                self.case.prepare(lab)
                self.result["offloads"].setdefault(self.case.key, cases.offloads(lab))
                tunnel = own.enter_context(contender.tunnel(lab, output, self.case.shape()))
                # The same flows through every tunnel of a round, because queues, and with them cores, go by a hash of the ports.
                tunnel.ports = itertools.count(20_000 + 1_000 * self.turn, 10)
                server = own.enter_context(udpgen.Server(tunnel, self.programs["udpgen"], self.plan.flows))
                self.result["described"].setdefault(contender.name, tunnel.describe())
                return _Running(contender, tunnel, server, labs.enter_context(own.pop_all()))
        except Failed as error:
            self._failed(contender, error)
            return None

    def _take_down(self, one: _Running) -> None:
        try:
            one.lab.close()
        except Failed as error:
            self._failed(one.contender, error)

    def _measure(self, one: _Running, measurement: Measurement) -> bool:
        """Whether the tunnel is there afterwards."""
        progress = terminal.Progress(f"  {one.contender.label}")
        progress.update(0, 0)
        before = _cpu_ticks()
        try:
            outcome = cases.run(
                *(measurement.key, one.tunnel, one.server, self.programs["floodgen"]),
                *(self.plan.seconds, self.plan.flows, progress.update),
            )
        except Failed as error:
            progress.done(f"failed: {str(error).splitlines()[0]}")
            self._note(one.contender, measurement.key, error=str(error))
            return self._is_alive(one)
        progress.done(_headline(measurement, outcome))
        shares = _shares(before, _cpu_ticks())
        self._note(one.contender, measurement.key, metrics=outcome.metrics, detail=outcome.detail, machine_cpu=shares)
        return True

    def _is_alive(self, one: _Running) -> bool:
        try:
            for daemon in one.tunnel.daemons:
                daemon.check_alive()
        except Failed as error:
            self._failed(one.contender, error)
            return False
        return True

    def _failed(self, contender: Contender, error: Failed) -> None:
        say(f"  {contender.label} failed: {str(error).splitlines()[0]}")
        self._note(contender, "tunnel", error=str(error))

    def _note(self, contender: Contender, measurement: str, **rest) -> None:
        about = {"case": self.case.key, "tunnel": contender.name, "round": self.turn, "measurement": measurement}
        self.result["runs"].append({**about, **rest})


def _headline(measurement: Measurement, outcome: cases.Outcome) -> str:
    parts = [
        compare_report.value_text(outcome.metrics[metric.key], metric.unit)
        for metric in measurement.metrics
        if metric.key in outcome.metrics
    ]
    loss = outcome.detail.get("loss_percent")
    return ", ".join(parts) + (f", {loss:.1f} % lost" if loss is not None else "")


def _cpu_ticks() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal of the whole machine (proc_stat(5))."""
    with open("/proc/stat", encoding="ascii") as file:
        return [int(field) for field in file.readline().split()[1:9]]


def _shares(before: list[int], after: list[int]) -> dict[str, float]:
    """How the machine spent its time: what others took of it (steal) explains outliers."""
    spent = [late - early for early, late in zip(before, after)]
    total = sum(spent) or 1
    return {"idle": (spent[3] + spent[4]) / total, "steal": spent[7] / total}


def _write(result: dict, options: argparse.Namespace) -> None:
    for path in filter(None, (f"{options.output}/report.json", options.json)):
        report.write_json(result, path)
    compare_report.write_html(result, f"{options.output}/report.html")
    with open(f"{options.output}/table.md", "w", encoding="utf-8") as file:
        file.write(compare_report.markdown(result))
    output = os.path.relpath(options.output) if options.output.startswith(build.REPOSITORY) else options.output
    say(f"\n{output}/report.html, report.json, table.md, *.log (the daemons')")


if __name__ == "__main__":
    sys.exit(main())
