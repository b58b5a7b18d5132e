"""From runs to figures: medians, their range, and ratios.

A run is {"case", "tunnel", "round", "measurement", "metrics": {metric: value}, "detail": {...}}, or has "error" in the
place of the last two.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

from lab import hlog


@dataclasses.dataclass(frozen=True)
class Figure:
    """One metric of one tunnel in one case, over all rounds."""

    case: str
    tunnel: str
    metric: str
    median: float
    low: float
    high: float
    values: list[float]
    to_reference: float | None = None  # median of the ratios within each round
    to_base: float | None = None

    def as_dict(self) -> dict:
        """For JSON."""
        return dataclasses.asdict(self)


def summarise(runs: list[dict], reference: str, base: str) -> list[Figure]:
    """A figure for everything that succeeded at least once, in the order of the runs."""
    values = _by_round(runs)
    return [
        Figure(
            *(case, tunnel, metric, statistics.median(those.values()), min(those.values()), max(those.values()), list(those.values())),
            to_reference=_median(_ratios(those, values.get((case, reference, metric), {}))),
            to_base=_median(_ratios(those, values.get((case, base, metric), {}))),
        )
        for (case, tunnel, metric), those in values.items()
    ]


def ratio(runs: list[dict], case: str, metric: str, of: str, to: str) -> tuple[float, float | None] | None:
    """A tunnel's median ratio to another within each round, and the standard error of that, which one round says nothing about
    (None). None in the place of both: there is no ratio, as where the other one lost nothing."""
    values = _by_round(runs)
    ratios = _ratios(values.get((case, of, metric), {}), values.get((case, to, metric), {}))
    if not ratios:
        return None
    # Of a median of many: sqrt(pi / 2) times that of a mean.
    error = math.sqrt(math.pi / 2 / len(ratios)) * statistics.stdev(ratios) if len(ratios) > 1 else None
    return statistics.median(ratios), error


def _by_round(runs: list[dict]) -> dict[tuple[str, str, str], dict[int, float]]:
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for run in runs:
        for metric, value in run.get("metrics", {}).items():
            values.setdefault((run["case"], run["tunnel"], metric), {})[run["round"]] = value
    return values


def _ratios(ours: dict[int, float], others: dict[int, float]) -> list[float]:
    """Within rounds, whose runs are seconds apart: what slows the machine down for longer slows both down. None of a few rounds
    where others have no ratio, as of what is mostly 0."""
    common = [turn for turn in ours if turn in others]
    return [ours[turn] / others[turn] for turn in common] if all(others[turn] for turn in common) else []


def _median(ratios: list[float]) -> float | None:
    return statistics.median(ratios) if ratios else None


def merged_rtt(runs: list[dict], case: str, tunnel: str) -> hlog.Histogram | None:
    """The round trips of all rounds as one distribution."""
    counts: dict[int, int] = {}
    for run in runs:
        if run["case"] == case and run["tunnel"] == tunnel and "rtt" in run.get("detail", {}):
            for value, count in hlog.decode(run["detail"]["rtt"]["histogram"]).buckets:
                counts[value] = counts.get(value, 0) + count
    return hlog.Histogram(sorted(counts.items())) if counts else None


def errors(runs: list[dict]) -> dict[tuple[str, str, str], str]:
    """(case, tunnel, measurement) -> what went wrong first, where something did."""
    found: dict[tuple[str, str, str], str] = {}
    for run in runs:
        if "error" in run:
            found.setdefault((run["case"], run["tunnel"], run["measurement"]), run["error"])
    return found
