"""`scripts/demo`: builds ringway, draws a lab, measures bare veth and the tunnel in one run, and reports.

The steps are those of main(), in order; everything that needs the network (the build) comes before the lab cuts us off from it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys

from lab import build, isolate, machine, measure, netns, report, terminal, tunnels
from lab.process import Failed
from lab.terminal import heading, say

_CURVES_UNDER = [measure.TCP_1.key, measure.TCP_BOTH_WAYS.key]


def main() -> int:
    options = _parse_arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        binary = os.path.abspath(options.binary) if options.binary else _build()
        os.makedirs(options.output, exist_ok=True)
        fingerprint = machine.fingerprint(build.REPOSITORY)
        mode = isolate.enter()
        say(f"\nRunning {'as root' if mode == 'root' else 'without root, in a user namespace'}, in namespaces of our own.")
        result = _measure(options, binary, mode, fingerprint)
        _write(result, options)
        _print(result, options)
    except KeyboardInterrupt:
        say("\ninterrupted; the lab is gone")
        return 130
    except (Failed, isolate.CannotIsolate, ValueError) as error:
        print(f"\nscripts/demo: {error}", file=sys.stderr)
        return 1
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Two network namespaces, one veth, two ringway daemons: what the tunnel carries, next to the bare veth.",
    )
    parser.add_argument("--seconds", type=_positive, default=3, metavar="N", help="per measurement (default: 3, about a minute in all)")
    parser.add_argument("--workers", type=_workers, default="auto", metavar="N", help="per daemon (default: auto, one per core)")
    parser.add_argument("--io", choices=("auto", "uring", "syscall"), default="auto", help="the engine (default: auto)")
    parser.add_argument("--suite", choices=("native", "wireguard"), default="native", help="(default: native)")
    parser.add_argument("--json", metavar="FILE", help="write the report there too")
    parser.add_argument("--picture", metavar="FILE", help="write the throughput bars there too, as SVG")
    parser.add_argument("--binary", metavar="FILE", help="a ringway to measure instead of building one")
    parser.add_argument("--output", metavar="DIRECTORY", default=f"{build.REPOSITORY}/target/demo", help="(default: target/demo)")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _workers(text: str) -> str:
    return text if text == "auto" else str(_positive(text))


def _build() -> str:
    heading("Building (release)")
    return build.build("--bin=ringway")["ringway"]


def _measure(options: argparse.Namespace, binary: str, mode: str, fingerprint: dict) -> dict:
    with netns.Lab() as lab:
        heading("The lab")
        say(_drawing())
        bare = tunnels.Bare(lab, options.output)
        ringway = tunnels.Ringway(lab, options.output, binary, options.suite, options.io, options.workers)
        measurements = [m for m in measure.ALL if lab.has_ipv6 or not m.ipv6]
        result = {
            "version": 1,
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "mode": mode,
            "seconds": options.seconds,
            "machine": fingerprint,
            "base": bare.key,
            "measurements": [{"key": m.key, "label": m.label, "unit": m.unit} for m in measurements],
            "tunnels": [],
            "results": [],
            "ping_ms": {},
            "latency": [],
        }
        for tunnel in (bare, ringway):
            heading(tunnel.label)
            progress = terminal.Progress("link" if tunnel is bare else "handshake")
            progress.update(0, 0)
            with tunnel:
                described = tunnel.describe()
                progress.done(f"up: {described['detail']}" if described["detail"] else "up")
                result["tunnels"].append(described)
                result["ping_ms"][tunnel.key] = measure.ping_average_ms(tunnel)
                for measurement in measurements:
                    _measure_one(tunnel, measurement, options, result)
        return result


def _measure_one(tunnel: tunnels.Tunnel, measurement: measure.Measurement, options: argparse.Namespace, result: dict) -> None:
    progress = terminal.Progress(measurement.label)
    if isinstance(tunnel, tunnels.Ringway):
        tunnel.reset_latency()
    measured = measure.run(tunnel, measurement, options.seconds, progress.update)
    progress.done(terminal.rate(measured.rate, measured.unit))
    result["results"].append(measured.as_dict())
    if isinstance(tunnel, tunnels.Ringway):
        for end, name in enumerate("ab"):
            stages = tunnel.latency(end, f"{options.output}/{measurement.key}.{name}.hlog")
            entry = {"tunnel": tunnel.key, "measurement": measurement.key, "end": name}
            result["latency"] += [{**entry, "stage": stage} for stage in stages]


def _drawing() -> str:
    """The picture in netns.py's documentation."""
    return "\n".join(line for line in (netns.__doc__ or "").splitlines() if line.startswith("    "))


def _write(result: dict, options: argparse.Namespace) -> None:
    for path in filter(None, (options.json, options.picture)):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    for path in filter(None, (f"{options.output}/report.json", options.json)):
        report.write_json(result, path)
    for path in filter(None, (f"{options.output}/throughput.svg", options.picture)):
        with open(path, "w", encoding="utf-8") as file:
            file.write(report.bars(result, standalone=True) + "\n")
    report.write_html(result, f"{options.output}/report.html", _CURVES_UNDER)


def _print(result: dict, options: argparse.Namespace) -> None:
    heading(f"Measured: {machine.summary(result['machine'])}")
    header, rows = report.throughput_rows(result)
    terminal.table(header, rows)
    say("  of bare: share of the bare veth's rate.  CPU s/GB: seconds of each daemon per 10^9 bytes of payload received.")
    for key in _CURVES_UNDER:
        rows = report.latency_rows(result, key)
        if rows:
            label = next(m["label"] for m in result["measurements"] if m["key"] == key)
            heading(f"Latency in µs under: {label}")
            terminal.table(["", "samples", *(label for _, label in report.PERCENTILES)], rows)
    output = os.path.relpath(options.output) if options.output.startswith(build.REPOSITORY) else options.output
    say(f"\n{output}/report.html, report.json, *.hlog (HdrHistogram), *.log (the daemons')")


if __name__ == "__main__":
    sys.exit(main())
