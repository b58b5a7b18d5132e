"""From runs to figures: medians, their range, and ratios.

A run is {"case", "tunnel", "round", "measurement", "metrics": {metric: value}, "detail": {...}}, or has "error" in the
place of the last two.
"""

from __future__ import annotations

import dataclasses
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
    to_reference: float | None = None  # ratio of medians
    to_base: float | None = None

    def as_dict(self) -> dict:
        """For JSON."""
        return dataclasses.asdict(self)


def summarise(runs: list[dict], reference: str, base: str) -> list[Figure]:
    """A figure for everything that succeeded at least once, in the order of the runs."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for metric, value in run.get("metrics", {}).items():
            values.setdefault((run["case"], run["tunnel"], metric), []).append(value)
    medians = {key: statistics.median(those) for key, those in values.items()}

    def ratio(case: str, metric: str, median: float, to: str) -> float | None:
        other = medians.get((case, to, metric))
        return median / other if other else None

    return [
        Figure(
            *(case, tunnel, metric, medians[case, tunnel, metric], min(those), max(those), those),
            to_reference=ratio(case, metric, medians[case, tunnel, metric], reference),
            to_base=ratio(case, metric, medians[case, tunnel, metric], base),
        )
        for (case, tunnel, metric), those in values.items()
    ]


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
