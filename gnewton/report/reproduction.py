"""Whether a run reproduces another: their logs compared value by value, without clocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gnewton.errors import InputError, first_line
from gnewton.options import listing
from gnewton.report.runs import Run
from gnewton.report.setups import flatten
from gnewton.runfiles import BROKEN, ENDED, METRICS_FILE, RATES_FILE, STEPS_FILE

LOGS = (METRICS_FILE, STEPS_FILE, RATES_FILE)

_CLOCKS = ("_seconds", "_per_second", "_mib")
"""Suffixes of columns that differ between any two runs."""

_ROUNDING = ("residual",)
"""Columns that hold rounding errors only; they are ignored if a tolerance is given."""

_INCIDENTAL = ("time", "command", "directory", "overrides", "recipes", "resumed")
"""Entries of environment.json that do not describe the machine or the software."""


@dataclass(frozen=True)
class Difference:
    """A column in which two runs differ.

    Attributes:
        column: its name.
        rows: number of rows that differ.
        step: the first of them.
        largest: the largest difference relative to the larger value; infinite if a cell holds no number.
    """

    column: str
    rows: int
    step: int
    largest: float


@dataclass(frozen=True)
class LogComparison:
    """One log of two runs.

    Attributes:
        name: of the file.
        rows: number of rows in the first and the second run.
        columns: number of columns compared.
        lacking: steps of rows that only one of the runs has although both should.
        stops: steps of rows that only the first run has, since it was stopped there and resumed.
        differences: of the rows of equal step.
    """

    name: str
    rows: tuple[int, int]
    columns: int
    lacking: tuple[int, ...]
    stops: tuple[int, ...]
    differences: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        """Whether the logs agree."""
        return not self.lacking and not self.differences

    def lines(self) -> Iterator[str]:
        """The result in words, line by line."""
        first, second = self.rows
        rows = f"{first} rows" if first == second else f"{first} and {second} rows"
        same = self.columns - len(self.differences)
        yield f"{self.name}: {rows}, {same} of {self.columns} columns the same"
        if self.stops:
            yield f"  step {_steps(self.stops)}: only where that run was stopped and went on later"
        if self.lacking:
            yield f"  step {_steps(self.lacking)}: only one of the runs has this row"
        for difference in self.differences:
            largest = difference.largest
            by = f", by up to {largest:.1e} of the value" if math.isfinite(largest) else ""
            yield f"  {difference.column}: {difference.rows} rows differ, from step {difference.step} on{by}"


def compare_logs(first: Run, second: Run, tolerance: float = 0.0) -> list[LogComparison]:
    """Compare the rows of equal step in metrics.csv and, if the first run has them, steps.csv and rates.csv.

    A first run that was stopped and resumed has a row at the stop, which the second run may lack. If the
    first run did not come to its end, only the rows it has are compared.

    Args:
        first, second: the runs.
        tolerance: difference relative to the larger value up to which two numbers count as equal.

    Raises:
        InputError: if a log cannot be read.
    """
    return [_compare(name, first, second, tolerance) for name in LOGS if (first.folder / name).is_file()]


def environment_differences(first: Run, second: Run) -> list[str]:
    """The differences between the environments of two runs, a line each."""
    one, other = (
        {
            key: value
            for key, value in flatten(run.environment).items()
            if key.split(".")[0] not in _INCIDENTAL
        }
        for run in (first, second)
    )
    return [
        f"{key}: {_shown(one.get(key))} → {_shown(other.get(key))}"
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    ]


def _compare(name: str, first: Run, second: Run, tolerance: float) -> LogComparison:
    one, other = _read(first.folder / name), _read(second.folder / name)
    left_out = _ROUNDING if tolerance > 0 else ()
    columns = [c for c in map(str, one) if not c.endswith(_CLOCKS) and c not in left_out]
    places, others = _places(one), _places(other)
    shared = sorted(set(places) & set(others), key=places.__getitem__)
    missing = sorted({step for step, _ in set(places) - set(others)})
    stops = tuple(step for step in missing if step in _resumed_at(first))
    extra = {step for step, _ in set(others) - set(places)}
    if name == METRICS_FILE:
        extra.discard(0)  # older runs have no row before the first step
    if first.status not in (*ENDED, *BROKEN):  # rows after its last one are not missing
        last = max((step for step, _ in places), default=-1)
        extra = {step for step in extra if step <= last}
    lacking = tuple(sorted({*missing, *extra} - set(stops)))
    rows = one.iloc[[places[key] for key in shared]], other.iloc[[others[key] for key in shared]]
    differences = (_difference(column, *rows, tolerance) for column in columns)
    return LogComparison(
        name,
        (len(one), len(other)),
        len(columns),
        lacking,
        stops,
        tuple(difference for difference in differences if difference),
    )


def _places(table: pd.DataFrame) -> dict[tuple[int, int], int]:
    """The position of each row by its step and its number among the rows of that step."""
    numbers = table.groupby("step").cumcount()
    keys = zip(table["step"], numbers, strict=True)
    return {(int(step), int(number)): place for place, (step, number) in enumerate(keys)}


def _resumed_at(run: Run) -> set[int]:
    """The steps at which a run was resumed."""
    resumed = run.environment.get("resumed")
    entries = resumed if isinstance(resumed, list) else []
    return {entry["step"] for entry in entries if isinstance(entry, dict) and "step" in entry}


def _steps(steps: tuple[int, ...]) -> str:
    return listing([str(step) for step in steps], 5)


def _difference(column: str, one: pd.DataFrame, other: pd.DataFrame, tolerance: float) -> Difference | None:
    values = other[column] if column in other else [""] * len(other)
    pairs = zip(one["step"], one[column], values, strict=True)
    distances = [(int(step), _distance(a, b)) for step, a, b in pairs if a != b]
    distances = [(step, distance) for step, distance in distances if distance > tolerance]
    if not distances:
        return None
    return Difference(column, len(distances), distances[0][0], max(distance for _, distance in distances))


def _distance(a: str, b: str) -> float:
    """Relative difference of two cells; infinite unless both are numbers."""
    try:
        x, y = float(a), float(b)
    except ValueError:
        return math.inf
    scale = max(abs(x), abs(y))
    if scale == 0 or x == y:
        return 0.0
    return abs(x - y) / scale if scale < math.inf else math.inf


def _read(path: Path) -> pd.DataFrame:
    """The cells as text: floats are written with all digits, so that equal text means equal bits."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        return pd.DataFrame({"step": []})
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    if "step" not in frame:
        raise InputError(f"{path}: lacks the column step")
    if not frame["step"].map(str.isdecimal).all():
        raise InputError(f"{path}: the column step holds something that is no whole number")
    return frame


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)
