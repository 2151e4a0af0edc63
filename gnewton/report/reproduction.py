"""Whether a run gives again what another one gave: their logs compared value by value, without the clocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gnewton.errors import InputError, first_line
from gnewton.options import listing
from gnewton.report.runs import Run, read_json
from gnewton.report.setups import flatten
from gnewton.runfiles import BROKEN, ENDED, ENVIRONMENT_FILE, METRICS_FILE, RATES_FILE

LOGS = (METRICS_FILE, RATES_FILE)

_CLOCKS = ("_seconds", "_per_second", "_mib")
"""Endings of the columns that no two runs share."""

_ROUNDING = ("residual",)
"""Columns that hold nothing but rounding errors: where bits may differ, these say nothing."""

_OF_ITS_OWN = ("time", "command", "directory", "overrides", "recipes", "resumed")
"""Entries of environment.json that say nothing about what the run ran on."""


@dataclass(frozen=True)
class Difference:
    """A column in which two runs differ.

    Attributes:
        column: its name.
        rows: in how many rows.
        step: the first step at which.
        largest: the largest difference relative to the larger value; infinite where one has no number.
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
        rows: of it in the one and the other run.
        columns: how many were compared.
        lacking: the steps of rows that only one of them has, and both should.
        stops: the steps of rows that only the first has, since it was stopped there and went on later.
        differences: of the rows that both have, which are those of the same step.
    """

    name: str
    rows: tuple[int, int]
    columns: int
    lacking: tuple[int, ...]
    stops: tuple[int, ...]
    differences: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.lacking and not self.differences

    def lines(self) -> Iterator[str]:
        """What was found, for people."""
        first, second = self.rows
        rows = f"{first} rows" if first == second else f"{first} and {second} rows"
        same = self.columns - len(self.differences)
        yield f"{self.name}: {rows}, {same} of {self.columns} columns the same"
        if self.stops:
            yield f"  step {_steps(self.stops)}: only where that run was stopped and went on later"
        if self.lacking:
            yield f"  step {_steps(self.lacking)}: only one of the runs has this row"
        for each in self.differences:
            by = f", by up to {each.largest:.1e} of the value" if math.isfinite(each.largest) else ""
            yield f"  {each.column}: {each.rows} rows differ, from step {each.step} on{by}"


def compare_logs(first: Run, second: Run, tolerance: float = 0.0) -> list[LogComparison]:
    """Compare metrics.csv and, where the first run has it, rates.csv: rows of the same step.

    A first run that was stopped and went on later has a row at the stop, which one without a stop lacks.
    Of a first run that did not come to its end, as one that was killed, the rows that it has are compared.

    Args:
        first, second: the runs.
        tolerance: the difference, relative to the larger value, up to which two numbers count as the same.

    Raises:
        InputError: if a log cannot be read.
    """
    return [_compare(name, first, second, tolerance) for name in LOGS if (first.folder / name).is_file()]


def environment_differences(first: Run, second: Run) -> list[str]:
    """What the runs ran on, where it differs: one line each."""
    one, other = (
        {
            key: value
            for key, value in flatten(run.environment).items()
            if key.split(".")[0] not in _OF_ITS_OWN
        }
        for run in (first, second)
    )
    return [
        f"{key}: {_shown(one.get(key))} → {_shown(other.get(key))}"
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    ]


def threads_of(folder: Path) -> int | None:
    """The number of CPU threads a run had, by its environment.json."""
    threads = read_json(folder / ENVIRONMENT_FILE).get("threads")
    return threads if isinstance(threads, int) else None


def _compare(name: str, first: Run, second: Run, tolerance: float) -> LogComparison:
    one, other = _read(first.folder / name), _read(second.folder / name)
    left_out = _ROUNDING if tolerance > 0 else ()
    columns = [c for c in map(str, one) if not c.endswith(_CLOCKS) and c not in left_out]
    places, others = _places(one), _places(other)
    shared = sorted(set(places) & set(others), key=places.__getitem__)
    missing = sorted({step for step, _ in set(places) - set(others)})
    stops = tuple(step for step in missing if step in _resumed_at(first))
    extra = {step for step, _ in set(others) - set(places)}
    if first.status not in (*ENDED, *BROKEN):  # it would have gone on
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
        tuple(each for each in differences if each),
    )


def _places(table: pd.DataFrame) -> dict[tuple[int, int], int]:
    """The place of each row by its step and its number among the rows of that step."""
    numbers = table.groupby("step").cumcount()
    keys = zip(table["step"], numbers, strict=True)
    return {(int(step), int(number)): place for place, (step, number) in enumerate(keys)}


def _resumed_at(run: Run) -> set[int]:
    """The steps at which a run went on after a stop."""
    resumed = run.environment.get("resumed")
    entries = resumed if isinstance(resumed, list) else []
    return {entry["step"] for entry in entries if isinstance(entry, dict) and "step" in entry}


def _steps(steps: tuple[int, ...]) -> str:
    return listing([str(step) for step in steps], 5)


def _difference(column: str, one: pd.DataFrame, other: pd.DataFrame, tolerance: float) -> Difference | None:
    values = other[column] if column in other else [""] * len(other)
    pairs = zip(one["step"], one[column], values, strict=True)
    found = [(int(step), _distance(a, b)) for step, a, b in pairs if a != b]
    found = [(step, distance) for step, distance in found if distance > tolerance]
    if not found:
        return None
    return Difference(column, len(found), found[0][0], max(distance for _, distance in found))


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
    """The cells as they are written: floats have all their digits, so equal text is equal bits."""
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


def _conditions(run: Run) -> dict[str, Any]:
    flat = flatten(run.environment)
    return {key: value for key, value in flat.items() if key.split(".")[0] not in _OF_ITS_OWN}


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)
