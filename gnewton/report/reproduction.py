"""Whether a run gives again what another one gave: their logs compared value by value, without the clocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gnewton.errors import InputError
from gnewton.report.files import first_line, read_json
from gnewton.report.runs import BROKEN, ENDED, Run
from gnewton.report.setups import flatten

LOGS = ("metrics.csv", "rates.csv")

_CLOCKS = ("_seconds", "_per_second", "_mib")
"""Endings of the columns that no two runs share."""

_ROUNDING = ("residual",)
"""Columns that hold nothing but rounding errors: where bits may differ, these say nothing."""

_OF_ITS_OWN = ("time", "command", "overrides", "recipes", "resumed")
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
        complete: whether both have all the rows that they should.
        differences: of the rows that both have.
    """

    name: str
    rows: tuple[int, int]
    columns: int
    complete: bool
    differences: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.complete and not self.differences

    def lines(self) -> Iterator[str]:
        """What was found, for people."""
        first, second = self.rows
        rows = f"{first} rows" if first == second else f"{first} and {second} rows"
        same = self.columns - len(self.differences)
        yield f"{self.name}: {rows}, {same} of {self.columns} columns the same"
        for each in self.differences:
            by = f", by up to {each.largest:.1e} of the value" if math.isfinite(each.largest) else ""
            yield f"  {each.column}: {each.rows} rows differ, from step {each.step} on{by}"


def compare_logs(first: Run, second: Run, tolerance: float = 0.0) -> list[LogComparison]:
    """Compare metrics.csv and, where the first run has it, rates.csv.

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
    threads = read_json(folder / "environment.json").get("threads")
    return threads if isinstance(threads, int) else None


def _compare(name: str, first: Run, second: Run, tolerance: float) -> LogComparison:
    one, other = _read(first.folder / name), _read(second.folder / name)
    left_out = _ROUNDING if tolerance > 0 else ()
    columns = [c for c in map(str, one) if not c.endswith(_CLOCKS) and c not in left_out]
    common = min(len(one), len(other))
    over = first.status in (*ENDED, *BROKEN)
    complete = len(one) == len(other) if over else len(one) <= len(other)
    found = (_difference(column, one[:common], other[:common], tolerance) for column in columns)
    return LogComparison(
        name, (len(one), len(other)), len(columns), complete, tuple(each for each in found if each)
    )


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
    return frame


def _conditions(run: Run) -> dict[str, Any]:
    flat = flatten(run.environment)
    return {key: value for key, value in flat.items() if key.split(".")[0] not in _OF_ITS_OWN}


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)
