"""`perf/latency`: round trips through a tunnel as the load on it grows, and where in the daemons their time goes."""

from __future__ import annotations

import sys

from lab import chart, hlog, machine, report, terminal, tunnels, udpgen
from lab.terminal import heading
from profiler import common

_PERCENTILES = report.PERCENTILES
_UNLIMITED = "max"


def main() -> int:
    parser = common.parser("latency", "Percentiles of round trips while one TCP stream runs at each of several rates.")
    loads = ["0", "1", "2", "4", _UNLIMITED]
    parser.add_argument("--loads", nargs="+", type=_load, default=loads, metavar="GBIT", help=f"Gbit/s, 0 and {_UNLIMITED} included (default: {' '.join(loads)})")
    parser.add_argument("--rate", type=float, default=1000, metavar="N", help="round trips per second (default: 1000)")
    return common.main(parser.parse_args(), _latency)


def _load(text: str) -> str:
    if text != _UNLIMITED and float(text) < 0:
        raise ValueError(text)
    return text


def _latency(bench: common.Bench) -> None:
    points = []
    with udpgen.Server(bench.tunnel, bench.generator) as server:
        for load in bench.options.loads:
            progress = terminal.Progress(_label(load))
            progress.update(0, 0)
            points.append(_measure(bench, server, load))
            rtt = points[-1]["rtt"]
            progress.done(f"p50 {_us(rtt['p50'])}, p99 {_us(rtt['p99'])}, p99.9 {_us(rtt['p99_9'])}, {rtt['lost']} lost")
    _print(points)
    common.write_json(bench, "report.json", {"seconds": bench.options.seconds, "rate": bench.options.rate, "points": points})
    _write_html(bench, points)
    common.say_where(bench, "report.html, report.json")


def _measure(bench: common.Bench, server: udpgen.Server, load: str) -> dict:
    """One point of the sweep."""
    if float("inf" if load == _UNLIMITED else load) == 0:
        return _measure_now(bench, server, load)
    limit = None if load == _UNLIMITED else float(load) * 1e9
    with bench.load("tcp_1", limit):
        return _measure_now(bench, server, load)


def _measure_now(bench: common.Bench, server: udpgen.Server, load: str) -> dict:
    is_ringway = isinstance(bench.tunnel, tunnels.Ringway)
    if is_ringway:
        bench.tunnel.reset_latency()
    meter = common.Meter(bench, "tcp_1")
    with server.rtt_meanwhile(bench.options.seconds, bench.options.rate) as finish:
        rtt = finish()
    carried = meter.read()
    stages = []
    if is_ringway:
        for end, name in enumerate("ab"):
            stages += [{"end": name, "stage": stage} for stage in bench.tunnel.latency(end, f"{bench.options.output}/{load}.{name}.hlog")]
    return {"load": load, "bits_per_second": carried.bits_per_second, "rtt": rtt, "stages": stages}


def _print(points: list[dict]) -> None:
    heading("Round trips, µs")
    header = ["", "carried", "samples", "lost", *(label for _, label in _PERCENTILES)]
    terminal.table(header, [_row(point) for point in points])


def _row(point: dict) -> list[str]:
    rtt = point["rtt"]
    carried = terminal.rate(point["bits_per_second"], "bit/s")
    return [_label(point["load"]), carried, f"{rtt['count']:,}", str(rtt["lost"]), *(terminal.microseconds(rtt[key]) for key, _ in _PERCENTILES)]


def _write_html(bench: common.Bench, points: list[dict]) -> None:
    pictures = [_picture("Round trips through the tunnel", [(_label(p["load"]), p["rtt"]) for p in points])]
    seen = dict.fromkeys((s["stage"]["name"], s["end"]) for p in points for s in p["stages"] if s["stage"]["unit"] == "ns" and s["stage"]["count"])
    for name, end in seen:
        those = [
            (_label(p["load"]), s["stage"])
            for p in points
            for s in p["stages"]
            if (s["stage"]["name"], s["end"]) == (name, end) and s["stage"]["count"]
        ]
        pictures.append(_picture(report.stage_label({"stage": {"name": name}, "end": end}), those))
    header = ["", "carried", "samples", "lost", *(f"{label}, µs" for _, label in _PERCENTILES)]
    title = f"Latency under load: {bench.tunnel.label}"
    about = f"{machine.summary(bench.machine)}. {bench.options.seconds} s per load, {bench.options.rate:g} round trips per second."
    body = "".join(f"<figure>{picture}</figure>" for picture in pictures) + report.html_table(header, [_row(point) for point in points])
    with open(f"{bench.options.output}/report.html", "w", encoding="utf-8") as file:
        file.write(report.page(title, about, body))


def _picture(title: str, distributions: list[tuple[str, dict]]) -> str:
    curves = [
        chart.Curve(label, hlog.decode(stage["histogram"]).curve(), colour, dashed=colour >= 6)
        for colour, (label, stage) in enumerate(distributions)
    ]
    return chart.percentiles(title, curves)


def _label(load: str) -> str:
    if load == _UNLIMITED:
        return "one stream, unlimited"
    return "idle" if float(load) == 0 else f"one stream at {float(load):g} Gbit/s"


def _us(nanoseconds: float) -> str:
    return f"{terminal.microseconds(nanoseconds)} µs"


if __name__ == "__main__":
    sys.exit(main())
