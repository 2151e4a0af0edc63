"""Means over seeds with confidence intervals, and paired tests between set-ups over the seeds they share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gnewton.report.tables import NOTHING, Table, significant
from gnewton.runfiles import SCORES

LEVEL = 0.95
"""Confidence of the intervals."""

EXACT_UP_TO = 16
"""Pairs up to which all 2^n signs are tried; above, :data:`DRAWS` random ones."""

DRAWS = 100_000

ROUNDING = 1e-9
"""Relative difference below which numbers count as equal: a difference of two values has lost some digits."""

COLUMNS = (
    *("problem", "metric", "setup", "seeds", "mean", "low", "high", "reference", "pairs"),
    *("difference", "difference_low", "difference_high", "p_t", "p_flips"),
)
"""Columns of means.csv."""

SHOWN = (("test_loss", "validation_loss"), ("test_accuracy", "validation_accuracy"))
"""Metrics with a table of their own: of each kind the first that was measured."""


@dataclass(frozen=True)
class MeanInterval:
    """The mean of values with its Student interval; the ends are NaN for fewer than two values."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def over(cls, values: Sequence[float]) -> MeanInterval:
        """Of finite values; without any, or with one that is not finite, there is no mean."""
        count = len(values)
        if not count or not all(map(math.isfinite, values)):
            return cls(math.nan, math.nan, math.nan, count)
        mean = float(np.mean(values))
        if count < 2:
            return cls(mean, math.nan, math.nan, count)
        from scipy.stats import t

        half = float(t.ppf((1 + LEVEL) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
        return cls(mean, mean - half, mean + half, count)


@dataclass(frozen=True)
class PairedTest:
    """Differences between two set-ups over the seeds that both ran.

    Attributes:
        difference: first minus second.
        t: two-sided p of Student's paired test, which takes the differences for normal.
        flips: two-sided p of the sign-flip test, which takes them for symmetric only. It is a multiple of
            2^(1−n), so that few pairs can give no small one.
    """

    difference: MeanInterval
    t: float
    flips: float

    @classmethod
    def between(cls, first: Mapping[int, float], second: Mapping[int, float]) -> PairedTest:
        """From the value of each seed; fewer than two shared seeds, or an infinite value, give NaN.

        So does Student's test where all differences are equal (up to rounding) and not zero.
        """
        seeds = sorted(first.keys() & second.keys())
        with np.errstate(invalid="ignore"):  # ∞ − ∞ if both runs broke down
            values = [float(np.subtract(first[seed], second[seed])) for seed in seeds]
        difference = MeanInterval.over(values)
        if difference.count < 2 or math.isnan(difference.mean):
            return cls(difference, math.nan, math.nan)
        return cls(difference, _student(values), _sign_flips(values))


def _student(values: Sequence[float]) -> float:
    from scipy.stats import t

    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if error <= ROUNDING * max(map(abs, values)):  # equal differences say nothing about their spread
        return math.nan if any(values) else 1.0
    return float(2 * t.sf(abs(float(np.mean(values))) / error, len(values) - 1))


def _sign_flips(values: Sequence[float]) -> float:
    count = len(values)
    if count <= EXACT_UP_TO:
        bits = np.arange(2**count)[:, None] >> np.arange(count)
        sums = np.abs((1 - 2 * (bits & 1)) @ np.asarray(values))
    else:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(DRAWS, count))
        signs[0] = 1.0  # what was observed is one of them
        sums = np.abs(signs @ np.asarray(values))
    observed = abs(float(np.sum(values)))
    return float(np.mean(sums >= observed - ROUNDING * float(np.sum(np.abs(values)))))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values for their number; NaN stays NaN and does not count."""
    known = sorted((value, place) for place, value in enumerate(values) if not math.isnan(value))
    corrected, largest = list(values), 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def table_of_means(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per problem, metric and set-up: mean, interval, and the test against the best mean.

    Args:
        runs: from :func:`gnewton.report.measures.table_of_runs`.

    Returns:
        without rows for metrics that were not measured. ``reference`` is the set-up with the best mean among
        those with the most seeds; its own test is empty. p-values have Holm's correction over the set-ups
        compared with it.
    """
    rows: list[dict[str, Any]] = []
    for problem, of_problem in runs.groupby("problem", sort=False):
        for metric in SCORES:
            values = {
                str(name): dict(zip(part["seed"], part[metric], strict=True))
                for name, part in of_problem[of_problem[metric].notna()].groupby("setup", sort=False)
            }
            rows += _rows(str(problem), metric, values)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(problem: str, metric: str, values: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    means = {name: MeanInterval.over(list(of_setup.values())) for name, of_setup in values.items()}
    sign = -1 if metric.endswith("accuracy") else 1
    whole = {name: mean for name, mean in means.items() if not math.isnan(mean.mean)}
    most = max((mean.count for mean in whole.values()), default=0)
    rivals = [name for name, mean in whole.items() if mean.count == most]
    reference = min(rivals, key=lambda name: sign * whole[name].mean, default="")
    others = [name for name in values if reference and name != reference]
    tests = {name: PairedTest.between(values[name], values[reference]) for name in others}
    corrected = {
        kind: dict(zip(others, holm([getattr(tests[name], kind) for name in others]), strict=True))
        for kind in ("t", "flips")
    }
    return [
        {
            "problem": problem,
            "metric": metric,
            "setup": name,
            "seeds": mean.count,
            "mean": mean.mean,
            "low": mean.low,
            "high": mean.high,
            "reference": reference,
            "pairs": tests[name].difference.count if name in tests else 0,
            "difference": tests[name].difference.mean if name in tests else math.nan,
            "difference_low": tests[name].difference.low if name in tests else math.nan,
            "difference_high": tests[name].difference.high if name in tests else math.nan,
            "p_t": corrected["t"].get(name, math.nan),
            "p_flips": corrected["flips"].get(name, math.nan),
        }
        for name, mean in means.items()
    ]


def tables_of_means(means: pd.DataFrame) -> list[Table]:
    """The tables of :data:`SHOWN` for problems in which a set-up has several seeds."""
    return list(_tables(means)) if len(means) else []


def _tables(means: pd.DataFrame) -> Iterator[Table]:
    problems = list(dict.fromkeys(means["problem"]))
    for problem in problems:
        of_problem = means[means["problem"] == problem]
        for metrics in SHOWN:
            metric = next((name for name in metrics if (of_problem["metric"] == name).any()), None)
            rows = of_problem[of_problem["metric"] == metric]
            if metric is None or rows["seeds"].max() < 2:
                continue
            where = f" on {problem}" if len(problems) > 1 else ""
            title = f"Mean {metric.replace('_', ' ')} over the seeds{where}, and the difference from the best"
            headings = ["set-up", "seeds", "mean (95 %)", "pairs", "difference (95 %)", "p, t", "p, flips"]
            percent = metric.endswith("accuracy")
            cells = [_cells(row, percent) for row in rows.to_dict("records")]
            best = [[False] * len(headings) for _ in cells]
            for marks, name in zip(best, rows["setup"], strict=True):
                marks[2] = len(rows) > 1 and name == rows["reference"].iloc[0]
            yield Table(title, headings, cells, best)


def _cells(row: Mapping[str, Any], percent: bool) -> list[str]:
    tested = row["pairs"] > 0
    return [
        str(row["setup"]),
        str(row["seeds"]),
        _interval(row["mean"], row["low"], row["high"], percent),
        str(row["pairs"]) if tested else NOTHING,
        _interval(row["difference"], row["difference_low"], row["difference_high"], percent, signed=True),
        *(NOTHING if math.isnan(row[name]) else f"{row[name]:.2g}" for name in ("p_t", "p_flips")),
    ]


def _interval(mean: float, low: float, high: float, percent: bool, *, signed: bool = False) -> str:
    if math.isnan(mean):
        return NOTHING

    def number(value: float) -> str:
        text = f"{100 * value:.2f}" if percent else significant(value)
        return f"+{text}" if signed and value > 0 else text

    text = number(mean) + (" %" if percent else "")
    return text if math.isnan(low) else f"{text} ({number(low)}…{number(high)})"


def notes_on_means(means: pd.DataFrame) -> list[str]:
    """What the tables of means cannot say, a line each."""
    if not len(means) or means["seeds"].max() < 2:
        return []
    notes = [
        "means have 95 % Student intervals over the seeds; differences are paired over shared seeds, against "
        "the best mean (bold), which looks a little better than it is, as the best of several; p-values are "
        "two-sided and have Holm's correction for the number of set-ups"
    ]
    tested = means[means["p_flips"].notna()]
    fewest = int(tested["pairs"].min()) if len(tested) else 0
    if 0 < fewest < 6:
        notes.append(
            f"{fewest} pairs are few: the sign-flip test cannot give less than p = {2.0 ** (1 - fewest):.2g} "
            "and an interval from so few assumes normal differences; run more seeds"
        )
    lost = means[means["mean"].isna()]
    if len(lost):
        names = ", ".join(dict.fromkeys(lost["setup"]))
        notes.append(
            f"{names}: no mean and no test, since a run diverged or failed; the medians count this run"
        )
    return notes
