"""What a comparison is shown as: tables for a terminal, and one self-contained HTML page."""

from __future__ import annotations

from html import escape

from lab import chart, figures, machine, report, terminal
from lab.figures import Figure

_SERIES = ("bare", "native", "wireguard", "mixed", "other")
_PLOT_WIDTH_LABEL = 38  # letters that fit beside a bar


def value_text(value: float, unit: str) -> str:
    """With its unit, as short as it can be."""
    if unit in ("bit/s", "packet/s"):
        return terminal.rate(value, unit)
    if unit == "s/GB":
        return f"{value:.2f} s"
    if unit == "%":
        return f"{value:.0f} %" if value >= 10 or not value else f"{value:.2g} %"
    if unit == "B":
        return terminal.mebibytes(round(value))
    return f"{value / 1e6:.2f} ms" if value >= 1e6 else f"{terminal.microseconds(value)} µs"


class View:
    """A report, looked at by case and tunnel."""

    def __init__(self, result: dict):
        self.result = result
        self.figures = {(f.case, f.tunnel, f.metric): f for f in (Figure(**entry) for entry in result["figures"])}
        self.errors = figures.errors(result["runs"])
        self.tunnels = {tunnel["key"]: tunnel for tunnel in result["tunnels"]}
        self.metrics = [m for m in result["metrics"] if any(key[2] == m["key"] for key in self.figures)]

    def tunnels_of(self, case: str) -> list[str]:
        """Those that were tried in a case."""
        tried = {run["tunnel"] for run in self.result["runs"] if run["case"] == case}
        return [key for key in self.tunnels if key in tried]

    def metrics_of(self, case: str) -> list[dict]:
        """Those that a case has figures of."""
        return [m for m in self.metrics if any(key[0] == case and key[2] == m["key"] for key in self.figures)]

    def rows(self, case: str, metric: dict) -> list[list[str]]:
        """Tunnel, median, its range, ratios: one row per tunnel."""
        rows = []
        for tunnel in self.tunnels_of(case):
            figure = self.figures.get((case, tunnel, metric["key"]))
            label = self.tunnels[tunnel]["label"]
            if figure is None:
                continue
            span = f"{value_text(figure.low, metric['unit'])} – {value_text(figure.high, metric['unit'])}"
            row = [label, value_text(figure.median, metric["unit"]), span if len(figure.values) > 1 else ""]
            rows.append(row + [_ratio(figure.to_reference), _ratio(figure.to_base)])
        return rows


def print_tables(result: dict) -> None:
    """Everything, case by case."""
    view = View(result)
    for case in result["cases"]:
        for metric in view.metrics_of(case["key"]):
            terminal.heading(f"{case['label']}: {metric['label']}")
            terminal.table(_header(result), view.rows(case["key"], metric))
    print_errors(view)


def print_errors(view: View) -> None:
    """What failed, a line each."""
    for (case, tunnel, measurement), error in view.errors.items():
        terminal.say(f"\nfailed: {tunnel}, {measurement}, {case}: {error.splitlines()[0]}")


def print_self(result: dict, tolerance: float) -> bool:
    """How far the second of two equal tunnels is from the first; true when nothing failed, there is something to compare, and
    no ratio is further off than `tolerance`."""
    view = View(result)
    first, second = (tunnel["key"] for tunnel in result["tunnels"])
    rows, good = [], not view.errors
    for case in result["cases"]:
        for metric in view.metrics_of(case["key"]):
            pair = [view.figures.get((case["key"], key, metric["key"])) for key in (first, second)]
            if None in pair:
                good = False
                values = ["none" if figure is None else value_text(figure.median, metric["unit"]) for figure in pair]
                rows.append([f"{case['label']}: {metric['label']}", *values, "", "", "only one has it"])
                continue
            found = figures.ratio(result["runs"], case["key"], metric["key"], second, first)
            if found is None and pair[0].median == pair[1].median:
                continue
            ratio, error = found or (None, None)
            within = ratio is not None and abs(ratio - 1) <= tolerance
            good &= within
            values = [value_text(figure.median, metric["unit"]) for figure in pair]
            texts = ["" if ratio is None else f"{ratio:.3f}", "" if error is None else f"± {error:.3f}"]
            rows.append([f"{case['label']}: {metric['label']}", *values, *texts, "" if within else "off"])
    terminal.heading("ringway against itself")
    terminal.table(["", "first", "second", "ratio", "standard error", ""], rows)
    print_errors(view)
    return good and bool(rows)


def markdown(result: dict) -> str:
    """A table per case for a README: tunnels below each other, medians, and in brackets the ratio to the reference."""
    view = View(result)
    blocks = []
    for case in result["cases"]:
        metrics = view.metrics_of(case["key"])
        lines = [f"| {case['label']} | " + " | ".join(metric["label"] for metric in metrics) + " |"]
        lines.append("|---|" + "---:|" * len(metrics))
        for tunnel in view.tunnels_of(case["key"]):
            cells = [_cell(view.figures.get((case["key"], tunnel, metric["key"])), metric["unit"]) for metric in metrics]
            lines.append(f"| {view.tunnels[tunnel]['label']} | " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    spent = f"{result['rounds']} rounds of {result['seconds']} s"
    note = f"Medians of {spent}; in brackets: times {result['reference']}, the median of the ratios within each round. {machine.summary(result['machine'])}."
    ciphers = dict.fromkeys(status["crypto"] for about in result["described"].values() for status in about.get("status", []))
    note += "".join(f" ringway sealed with {cipher}." for cipher in ciphers)
    return "\n\n".join([*blocks, note]) + "\n"


def _cell(figure: Figure | None, unit: str) -> str:
    if figure is None:
        return "-"
    text = value_text(figure.median, unit)
    return text if figure.to_reference is None else f"{text} ({_ratio(figure.to_reference)})"


def write_html(result: dict, path: str) -> None:
    """The page."""
    view = View(result)
    versions = "".join(f"<li>{escape(t['label'])}: {escape(t['version'] or '-')}</li>" for t in result["tunnels"])
    body = "".join(_case(view, case) for case in result["cases"])
    failed = "".join(
        f"<li>{escape(f'{tunnel}, {measurement}, {case}')}: <code>{escape(error)}</code></li>"
        for (case, tunnel, measurement), error in view.errors.items()
    )
    m = result["machine"]
    about = f"""{escape(machine.summary(m))}. Commit {escape(m.get("commit") or "unknown")}, {escape(result["started"])},
{result["rounds"]} interleaved rounds of {result["seconds"]} s per measurement, run as {escape(result["mode"])}. Two network
namespaces joined by one veth, a daemon in each. Bars are medians, whiskers reach from the least to the most.
Ratios are medians of those within each round: to {escape(result["reference"])}, and to the bare veth."""
    failures = f"<h2>What failed</h2><ul>{failed}</ul>" if failed else ""
    facts = f"""<h2>Programs</h2><ul>{versions}</ul>
<h2>Offloads of the veth</h2><p class="quiet">{escape(_offloads(result))}</p>"""
    with open(path, "w", encoding="utf-8") as file:
        file.write(report.page("ringway compared", about, f"{body}\n{failures}\n{facts}"))


def _case(view: View, case: dict) -> str:
    key, metrics = case["key"], view.metrics_of(case["key"])
    panels = [_panel(view, key, metric) for metric in metrics]
    pictures = [chart.ranges([panel], list(_SERIES), base="bare") for panel in panels]
    curves = []
    for colour, tunnel in enumerate(view.tunnels_of(key)):
        merged = figures.merged_rtt(view.result["runs"], key, tunnel)
        if merged is not None:
            curves.append(chart.Curve(view.tunnels[tunnel]["label"], merged.curve(), colour, dashed=colour >= 6))
    if curves:
        pictures.append(chart.percentiles("Round trips under one bulk stream", curves))
    rows = [[f"{metric['label']}: {row[0]}", *row[1:]] for metric in metrics for row in view.rows(key, metric)]
    drawn = "".join(f"<figure>{picture}</figure>" for picture in pictures)
    table = report.html_table(_header(view.result), rows)
    return f"<h2>{escape(case['label'])}</h2>{drawn}<details><summary>All figures</summary>{table}</details>"


def _panel(view: View, case: str, metric: dict) -> chart.Ranges:
    rows = []
    for tunnel in view.tunnels_of(case):
        figure = view.figures.get((case, tunnel, metric["key"]))
        if figure is not None:
            known = view.tunnels[tunnel]
            label = known["label"] if len(known["label"]) <= _PLOT_WIDTH_LABEL else known["label"][: _PLOT_WIDTH_LABEL - 1] + "…"
            rows.append((label, known["family"], figure.median, figure.low, figure.high))
    better = "more" if metric["higher_is_better"] else "less"
    return chart.Ranges(f"{metric['label']} ({better} is better)", rows, lambda value: value_text(value, metric["unit"]))


def _header(result: dict) -> list[str]:
    return ["", "median", "range", f"/ {result['reference']}", f"/ {result['base']}"]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 99.5 else f"{value:.0f}"


def _offloads(result: dict) -> str:
    return "; ".join(
        f"{case}: " + ", ".join(f"{name} {state}" for name, state in sorted(states.items()))
        for case, states in result["offloads"].items()
    )
