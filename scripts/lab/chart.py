"""Pictures as SVG: grouped bars and percentile curves. They follow the reader's light or dark theme and need nothing else."""

from __future__ import annotations

import dataclasses
import math
from html import escape

WIDTH = 880
_PALETTE_LIGHT = ("#2563eb", "#d97706", "#059669", "#c026d3", "#0891b2", "#dc2626")
_PALETTE_DARK = ("#60a5fa", "#fbbf24", "#34d399", "#e879f9", "#22d3ee", "#f87171")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@dataclasses.dataclass
class Bars:
    """A panel of grouped bars: one group per row, one bar per series; a value None leaves its bar out."""

    title: str
    series: list[str]
    rows: list[tuple[str, list[float | None]]]
    value_text: object  # callable: float -> str


@dataclasses.dataclass
class Ranges:
    """A panel of one bar per row, (label, series, middle, low, high), with a whisker from low to high."""

    title: str
    rows: list[tuple[str, str, float, float, float]]
    value_text: object  # callable: float -> str


@dataclasses.dataclass
class Curve:
    """(1 / (1 - quantile), nanoseconds), ascending."""

    label: str
    points: list[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


def style() -> str:
    """The style sheet of every picture: classes s0, s1, ... are the series; `base` is the grey one to compare with."""
    light = "".join(f".s{i}{{--c:{colour}}}" for i, colour in enumerate(_PALETTE_LIGHT))
    dark = "".join(f".s{i}{{--c:{colour}}}" for i, colour in enumerate(_PALETTE_DARK))
    return (
        f".chart{{font-family:{_FONT};--ink:#111827;--soft:#6b7280;--grid:#e5e7eb;--card:#ffffff}}"
        f".base{{--c:#9ca3af}}{light}"
        ".chart .card{fill:var(--card);stroke:var(--grid)}"
        ".chart text{fill:var(--soft);font-size:12px}"
        ".chart .title{fill:var(--ink);font-size:15px;font-weight:600}"
        ".chart .label{fill:var(--ink);font-size:13px}"
        ".chart .value{fill:var(--ink);font-size:12px;font-variant-numeric:tabular-nums}"
        ".chart .grid{stroke:var(--grid);stroke-width:1;fill:none}"
        ".chart .minor{stroke:var(--grid);stroke-width:1;stroke-dasharray:1 4;fill:none}"
        ".chart .fill{fill:var(--c)}"
        ".chart .whisker{stroke:var(--ink);stroke-width:1.2;fill:none;opacity:.75}"
        ".chart .line{stroke:var(--c);stroke-width:2;fill:none;stroke-linejoin:round;stroke-linecap:round}"
        ".chart .dashed{stroke-dasharray:6 5}"
        "@media (prefers-color-scheme:dark){"
        f".chart{{--ink:#f3f4f6;--soft:#9ca3af;--grid:#374151;--card:#111827}}.base{{--c:#6b7280}}{dark}}}"
    )


def bars(panels: list[Bars], base: str | None = None, standalone: bool = False, footer: str = "") -> str:
    """Panels below each other, each with its own scale. `base` names the series that is drawn grey."""
    left, right, bar, gap, group_gap, top = 150, 110, 15, 3, 14, 62
    parts: list[str] = []
    y = 22.0
    for panel in panels:
        classes = _series_classes(panel.series, base)
        parts.append(_text(24, y + 8, panel.title, "title"))
        parts.append(_legend(panel.series, classes, y + 8))
        y += 40
        largest = max((value for _, values in panel.rows for value in values if value is not None), default=1) or 1
        height = len(panel.rows) * (len(panel.series) * (bar + gap) - gap + group_gap) - group_gap
        scale = (WIDTH - left - right) / largest
        parts += _grid(left, y, height, largest, scale)
        for label, values in panel.rows:
            group = len(values) * (bar + gap) - gap
            parts.append(_text(left - 12, y + group / 2 + 4.5, label, "label", "end"))
            for value, name in zip(values, classes):
                if value is not None:
                    width = max(1.5, value * scale)
                    parts.append(_bar(left, y, width, bar, name))
                    parts.append(_text(left + width + 8, y + bar - 3.5, panel.value_text(value), "value"))
                y += bar + gap
            y += group_gap - gap
        y += top - 40 + 4
    if footer:
        parts.append(_text(24, y, footer, ""))
        y += 22
    return _svg(parts, round(y + 2), standalone, "; ".join(panel.title for panel in panels))


def ranges(panels: list[Ranges], series: list[str], base: str | None = None, standalone: bool = False, footer: str = "") -> str:
    """Panels below each other, each with its own scale; rows of one series have its colour, those of `base` are grey."""
    left, right, bar, gap = 270, 120, 15, 7
    classes = dict(zip(series, _series_classes(series, base)))
    parts: list[str] = []
    y = 22.0
    for panel in panels:
        parts.append(_text(24, y + 8, panel.title, "title"))
        y += 30
        largest = max((high for *_, high in panel.rows), default=1) or 1
        scale, height = (WIDTH - left - right) / largest, len(panel.rows) * (bar + gap) - gap
        parts += _grid(left, y, height, largest, scale)
        for label, name, middle, low, high in panel.rows:
            parts.append(_text(left - 12, y + bar - 3, label, "label", "end"))
            parts.append(_bar(left, y, max(1.5, middle * scale), bar, classes[name]))
            x_low, x_high, centre = left + low * scale, left + high * scale, y + bar / 2
            if x_high - x_low > 1:
                parts.append(
                    f'<path class="whisker" d="M{x_low:.1f} {centre}H{x_high:.1f}M{x_low:.1f} {centre - 4}v8'
                    f'M{x_high:.1f} {centre - 4}v8"/>'
                )
            parts.append(_text(max(x_high, left + middle * scale) + 8, y + bar - 3, panel.value_text(middle), "value"))
            y += bar + gap
        y += 26
    if footer:
        parts.append(_text(24, y, footer, ""))
        y += 22
    return _svg(parts, round(y), standalone, "; ".join(panel.title for panel in panels))


def percentiles(title: str, curves: list[Curve], standalone: bool = False) -> str:
    """Latency by percentile as HdrHistogram plots it: x is log(1 / (1 - quantile)), y the latency, logarithmic too."""
    curves = [curve for curve in curves if curve.points]
    left, right, top, height = 84, 46, 58 + 20 * math.ceil(len(curves) / 2), 300
    decades = max(2, math.ceil(max((math.log10(curve.points[-1][0]) for curve in curves), default=2) - 0.3))
    values = [max(value, 1) for curve in curves for _, value in curve.points] or [1000, 10_000]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)

    def x_of(inverse: float) -> float:
        return left + min(math.log10(inverse) / decades, 1) * (WIDTH - left - right)

    def y_of(nanoseconds: float) -> float:
        return top + height * (1 - (math.log10(max(nanoseconds, 1)) - low) / (high - low))

    parts = [_text(24, 30, title, "title")]
    for index, curve in enumerate(curves):
        x, y = 24 + (index % 2) * (WIDTH / 2 - 12), 56 + 20 * (index // 2)
        parts.append(f'<path class="{_line(curve)}" d="M{x:.0f} {y - 4}h22"/>')
        parts.append(_text(x + 30, y, curve.label, "label"))
    for exponent in range(low, high + 1):
        y = y_of(10**exponent)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - right}"/>')
        parts.append(_text(left - 10, y + 4, _duration(10**exponent), "", "end"))
        if exponent < high:
            for digit in (2, 5):
                parts.append(f'<path class="minor" d="M{left} {y_of(digit * 10**exponent):.1f}H{WIDTH - right}"/>')
    for decade in range(decades + 1):
        x = x_of(10**decade)
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{top + height}"/>')
        parts.append(_text(x, top + height + 20, _percent_label(decade), "", "middle"))
    parts.append(_text(left + (WIDTH - left - right) / 2, top + height + 42, "percentile", "", "middle"))
    for curve in curves:
        path = f"M{x_of(1):.1f} {y_of(curve.points[0][1]):.1f}"
        path += "".join(f"L{x_of(inverse):.1f} {y_of(value):.1f}" for inverse, value in curve.points)
        parts.append(f'<path class="{_line(curve)}" d="{path}"/>')
    return _svg(parts, top + height + 58, standalone, title)


def _svg(parts: list[str], height: int, standalone: bool, description: str) -> str:
    sheet = f"<style>{style()}</style>" if standalone else ""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{escape(description)}"{f""" width="{WIDTH}" height="{height}" """ if standalone else ""}>{sheet}'
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>{"".join(parts)}</svg>'
    )


def _series_classes(series: list[str], base: str | None) -> list[str]:
    names = iter(f"s{index % 6}" for index in range(len(series)))
    return ["base" if name == base else next(names) for name in series]


def _legend(series: list[str], classes: list[str], y: float) -> str:
    """To the right of a panel's title, laid out from the right edge."""
    parts, x = [], WIDTH - 24.0
    for name, colour in reversed(list(zip(series, classes))):
        x -= 7.0 * len(name)
        parts.append(_text(x, y, name, "label"))
        x -= 18
        parts.append(f'<rect class="fill {colour}" x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" rx="3"/>')
        x -= 20
    return "".join(parts)


def _grid(left: float, y: float, height: float, largest: float, scale: float) -> list[str]:
    """Vertical lines at round values behind a panel's bars."""
    step = _nice_step(largest)
    ticks = (left + index * step * scale for index in range(int(largest * 1.001 / step) + 1))
    return [f'<path class="grid" d="M{x:.1f} {y - 8:.1f}V{y + height + 8:.1f}"/>' for x in ticks]


def _bar(x: float, y: float, width: float, height: float, name: str) -> str:
    """Square where it starts, rounded where it ends."""
    radius = min(3.0, width / 2)
    return (
        f'<path class="fill {name}" d="M{x} {y:.1f}h{width - radius:.1f}a{radius} {radius} 0 0 1 {radius} {radius}'
        f'v{height - 2 * radius:.1f}a{radius} {radius} 0 0 1 -{radius} {radius}h-{width - radius:.1f}z"/>'
    )


def _text(x: float, y: float, text: str, name: str, anchor: str = "") -> str:
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    named = f' class="{name}"' if name else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}{anchored}>{escape(text)}</text>'


def _line(curve: Curve) -> str:
    """Its classes."""
    return f"line s{curve.colour % 6}" + (" dashed" if curve.dashed else "")


def _nice_step(largest: float) -> float:
    """A round distance that gives about five grid lines."""
    power = 10 ** math.floor(math.log10(largest / 5))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= largest / 5)


def _percent_label(decade: int) -> str:
    """0 %, 90 %, 99 %, 99.9 %, ..."""
    return ("0 %", "90 %", "99 %")[decade] if decade < 3 else f"99.{'9' * (decade - 2)} %"


def _duration(nanoseconds: int) -> str:
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= size:
            return f"{nanoseconds // size} {unit}"
    return f"{nanoseconds} ns"
