"""One run's report: a dictionary that is written as JSON and drawn as one self-contained HTML page.

    {"version": 1, "started": ISO 8601, "mode": "root" | "rootless", "seconds": per measurement, "machine": {...},
     "tunnels": [{"key", "label", "detail", ...}], "base": key of the tunnel to compare with,
     "measurements": [{"key", "label", "unit"}], "results": [measure.Result as a dictionary],
     "ping_ms": {tunnel key: average},
     "latency": [{"tunnel", "measurement", "end": "a" | "b", "stage": a stage of `ringway latency --json`}]}
"""

from __future__ import annotations

import json
from html import escape

from lab import chart, hlog, machine, terminal

_STAGES = {
    "tun_to_udp": "TUN read → sealed, before the UDP send",
    "udp_to_tun": "kernel receive → TUN write",
    "rtt": "tunnel round trip",
}
PERCENTILES = (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99_9", "p99.9"), ("max", "max"))


def write_json(report: dict, path: str) -> None:
    """The whole report."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")


def results_of(report: dict, tunnel: str) -> dict[str, dict]:
    """A tunnel's results by measurement."""
    return {result["measurement"]: result for result in report["results"] if result["tunnel"] == tunnel}


def latency_of(report: dict, measurement: str) -> list[dict]:
    """The entries with samples in nanoseconds that were taken under a measurement: stage by stage, a before b."""
    entries = [
        entry
        for entry in report["latency"]
        if entry["measurement"] == measurement and entry["stage"]["unit"] == "ns" and entry["stage"]["count"]
    ]
    order = list(dict.fromkeys(entry["stage"]["name"] for entry in entries))
    return sorted(entries, key=lambda entry: (order.index(entry["stage"]["name"]), entry["end"]))


def stage_label(entry: dict) -> str:
    """What an entry of `latency` measured, and where."""
    stage = entry["stage"]
    label = _STAGES.get(stage["name"], stage["name"].replace("_", " "))
    return f"{label}, at {entry['end']}"


def bars(report: dict, standalone: bool = False) -> str:
    """The throughput bars: TCP in Gbit/s and UDP in packets delivered."""
    labels = [tunnel["label"] for tunnel in report["tunnels"]]
    by_tunnel = [results_of(report, tunnel["key"]) for tunnel in report["tunnels"]]
    base = next((tunnel["label"] for tunnel in report["tunnels"] if tunnel["key"] == report["base"]), None)

    def panel(title: str, unit: str, value_text) -> chart.Bars:
        rows = [
            (measurement["label"], [results.get(measurement["key"], {}).get("rate") for results in by_tunnel])
            for measurement in report["measurements"]
            if measurement["unit"] == unit
        ]
        return chart.Bars(title, labels, rows, value_text)

    panels = [
        panel("Throughput, Gbit/s", "bit/s", lambda value: f"{value / 1e9:.1f}"),
        panel("UDP delivered, thousand packets/s", "packet/s", lambda value: f"{value / 1e3:,.0f}"),
    ]
    panels = [panel for panel in panels if panel.rows]
    footer = " ".join(filter(None, (_details(report), machine.summary(report["machine"])))) if standalone else ""
    return chart.bars(panels, base, standalone, footer)


def curves(report: dict, measurement: dict) -> str:
    """The percentile curves of every stage under one measurement; "" without samples."""
    entries = latency_of(report, measurement["key"])
    names = list(dict.fromkeys(entry["stage"]["name"] for entry in entries))
    lines = [
        chart.Curve(
            stage_label(entry),
            hlog.decode(entry["stage"]["histogram"]).curve(),
            colour=names.index(entry["stage"]["name"]),
            dashed=entry["end"] == "b",
        )
        for entry in entries
    ]
    return chart.percentiles(f"Latency inside the tunnel under load: {measurement['label']}", lines) if lines else ""


def write_html(report: dict, path: str, curves_under: list[str]) -> None:
    """The page. `curves_under` names the measurements whose percentile curves are drawn."""
    drawn = [m for key in curves_under for m in report["measurements"] if m["key"] == key]
    pictures = [bars(report), *filter(None, (curves(report, measurement) for measurement in drawn))]
    body = "".join(f"<figure>{picture}</figure>" for picture in pictures)
    described = escape(machine.summary(report["machine"]))
    commit = escape(report["machine"].get("commit") or "unknown")
    about = f"""{described}. Commit {commit}, {escape(report["started"])}, {report["seconds"]} s per measurement, run as
{escape(report["mode"])}. Two network namespaces joined by one veth; iperf3 from a to b. {escape(_details(report))}"""
    tables = f"<h2>Throughput and cost</h2>{_throughput_table(report)}\n<h2>Latency by stage, µs</h2>{_latency_table(report)}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(page("ringway: measured on this machine", about, f"{body}\n{tables}"))


def page(title: str, about: str, body: str) -> str:
    """A self-contained page of `body`; `about` and `body` are HTML, `title` is text."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><style>{_PAGE_STYLE}{chart.style()}</style></head><body><main>
<h1>{escape(title)}</h1>
<p>{about}</p>
{body}
</main></body></html>
"""


def _details(report: dict) -> str:
    details = [f"{tunnel['label']}: {tunnel['detail']}." for tunnel in report["tunnels"] if tunnel["detail"]]
    return " ".join(details)


_PAGE_STYLE = (
    "body{margin:0;background:#f3f4f6;color:#111827;font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,"
    "'Helvetica Neue',Arial,'DejaVu Sans',sans-serif}"
    "main{max-width:920px;margin:0 auto;padding:36px 20px 60px}"
    "h1{font-size:26px;letter-spacing:-.01em;margin:0 0 6px}h2{font-size:18px;margin:34px 0 10px}p{color:#4b5563;margin:0 0 22px}"
    "figure{margin:0 0 18px}figure svg{width:100%;height:auto;display:block}"
    ".scroll{overflow-x:auto;background:#fff;border:1px solid #e5e7eb;border-radius:10px}"
    "table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}"
    "th,td{padding:7px 14px;text-align:right;white-space:nowrap;border-top:1px solid #e5e7eb}"
    "th:first-child,td:first-child{text-align:left}thead th{border-top:0;color:#6b7280;font-weight:500}"
    ".quiet{color:#6b7280}"
    "@media (prefers-color-scheme:dark){body{background:#030712;color:#f3f4f6}p{color:#9ca3af}"
    ".scroll{background:#111827;border-color:#374151}th,td{border-color:#374151}.quiet,thead th{color:#9ca3af}}"
)


def throughput_rows(report: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main table: every tunnel next to the base."""
    base = results_of(report, report["base"])
    labels = {tunnel["key"]: tunnel["label"] for tunnel in report["tunnels"]}
    header = ["", labels[report["base"]]]
    others = [key for key in labels if key != report["base"]]
    for key in others:
        header += [labels[key], "of bare", "lost", "resent", "CPU s/GB a + b", "RSS MiB"]
    rows = []
    for measurement in report["measurements"]:
        key, unit = measurement["key"], measurement["unit"]
        reference = base.get(key)
        row = [measurement["label"], _headline(reference, unit)]
        for other in others:
            row += _cells(results_of(report, other).get(key), reference, unit)
        rows.append(row)
    if report["ping_ms"]:
        row = ["ping, idle, average", f"{report['ping_ms'][report['base']] * 1000:.0f} µs"]
        for other in others:
            row += [f"{report['ping_ms'][other] * 1000:.0f} µs", "", "", "", "", ""]
        rows.append(row)
    return header, rows


def _headline(result: dict | None, unit: str) -> str:
    if result is None:
        return "-"
    text = terminal.rate(result["rate"], unit)
    if len(result["rates"]) == 2:
        each = " + ".join(f"{rate / 1e9:.1f}" for rate in result["rates"])
        text = f"{text} ({each})"
    return text


def _cells(result: dict | None, reference: dict | None, unit: str) -> list[str]:
    if result is None:
        return ["-"] * 6
    share = f"{100 * result['rate'] / reference['rate']:.0f} %" if reference and reference["rate"] else "-"
    lost = "-" if result["lost_percent"] is None else f"{result['lost_percent']:.1f} %"
    retransmits = "-" if result["retransmits"] is None else f"{result['retransmits']}"
    cpu = " + ".join(f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}" for seconds in result["cpu_s_per_gb"])
    rss = ", ".join(f"{count / 2**20:.0f}" for count in result["rss_bytes_peak"])
    return [_headline(result, unit), share, lost, retransmits, cpu, rss or "-"]


def latency_rows(report: dict, measurement: str) -> list[list[str]]:
    """One row per stage and end: label, samples, percentiles in microseconds."""
    return [
        [stage_label(entry), f"{entry['stage']['count']:,}"]
        + [terminal.microseconds(entry["stage"][key]) for key, _ in PERCENTILES]
        for entry in latency_of(report, measurement)
    ]


def _throughput_table(report: dict) -> str:
    header, rows = throughput_rows(report)
    return html_table(header, rows)


def _latency_table(report: dict) -> str:
    header = ["", "samples", *(label for _, label in PERCENTILES)]
    rows: list[list[str]] = []
    for measurement in report["measurements"]:
        stages = latency_rows(report, measurement["key"])
        rows += [[f"{measurement['label']}: {row[0]}", *row[1:]] for row in stages]
    return html_table(header, rows) if rows else '<p class="quiet">No samples.</p>'


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """A table that scrolls by itself where the page is narrow."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
