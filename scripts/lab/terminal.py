"""Progress, tables and numbers for a terminal or a log."""

from __future__ import annotations

import os
import shutil
import sys


def say(text: str = "") -> None:
    """A line for people, at once."""
    print(text, flush=True)


def heading(text: str) -> None:
    """A line that begins a step."""
    say(f"\n\x1b[1m{text}\x1b[0m" if _colour() else f"\n{text}")


class Progress:
    """One line that is redrawn on a terminal; elsewhere only its last state is printed."""

    _WIDTH = 24

    def __init__(self, label: str):
        self._label = label
        self._live = sys.stdout.isatty()

    def update(self, fraction: float, bits_per_second: float) -> None:
        """How far it is, and the rate of the moment."""
        if self._live:
            full = round(self._WIDTH * fraction)
            bar = "━" * full + " " * (self._WIDTH - full)
            self._draw(f"  {self._label:<34} {bar} {bits_per_second / 1e9:6.2f} Gbit/s")

    def done(self, text: str) -> None:
        """Replaces the line with its outcome."""
        self._draw(f"  {self._label:<34} {text}")
        say()

    def _draw(self, line: str) -> None:
        if self._live:
            line = "\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        print(line, end="", flush=True)


def table(header: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as their content; the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        aligned = (cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(zip(cells, widths)))
        return "  " + "  ".join(aligned).rstrip()

    say(line(header))
    say("  " + "  ".join("─" * width for width in widths))
    for row in rows:
        say(line(row))


def rate(value: float, unit: str) -> str:
    """12.3 Gbit/s, 412 kpacket/s."""
    return f"{value / 1e9:.2f} Gbit/s" if unit == "bit/s" else f"{value / 1e3:.0f} kpps"


def microseconds(nanoseconds: float) -> str:
    """Three significant digits, in microseconds."""
    value = nanoseconds / 1e3
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def mebibytes(count: int) -> str:
    """38 MiB."""
    return f"{count / 2**20:.0f} MiB"


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
