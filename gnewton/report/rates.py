"""rates.csv of a run, boiled down: the rates of each group, and the time each update took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from gnewton.errors import InputError
from gnewton.report.files import read_csv

_NEEDED = ("update", "step", "group", "rate")
_CLOCKS = ("summary_seconds", "solve_seconds")


@dataclass(frozen=True)
class Rates:
    """The learning rates of a run.

    Attributes:
        table: rate λ₁η by training step (rows) and group (columns, in the order of the partition), without
            the updates of the warm-up, in which nothing moves.
        clocks: one row per update: its step, and its ``summary_seconds`` and ``solve_seconds``.
    """

    table: pd.DataFrame = field(repr=False)
    clocks: pd.DataFrame = field(repr=False)


def read_rates(path: Path) -> Rates | None:
    """Read rates.csv; None where there is no such file or no row in it.

    Raises:
        InputError: if it cannot be read.
    """
    if not path.is_file():
        return None
    rows = read_csv(path, (*_NEEDED, "warmup", *_CLOCKS), ("update", "step", "group"), text=("group",))
    if rows.empty:
        return None
    if "rate" not in rows:
        raise InputError(f"{path}: lacks the column rate")
    groups = list(dict.fromkeys(rows["group"]))
    clocks = rows[["step", *(name for name in _CLOCKS if name in rows)]][~rows["update"].duplicated()]
    if "warmup" in rows:
        rows = rows[~rows["warmup"].astype(bool)]
    index, where = np.unique(rows["step"].to_numpy(), return_inverse=True)
    values = np.full((len(index), len(groups)), np.nan)
    values[where, rows["group"].cat.reorder_categories(groups).cat.codes] = rows["rate"].to_numpy(dtype=float)
    return Rates(pd.DataFrame(values, index=index, columns=groups), clocks.reset_index(drop=True))


def median_rates(members: Sequence[Rates]) -> pd.DataFrame | None:
    """Rates by step and group, at each step the median over the runs that made an update there.

    Returns:
        None where no run has rates beyond its warm-up.
    """
    tables = [member.table for member in members if len(member.table)]
    if not tables:
        return None
    stacked = pd.concat(tables)
    return stacked.groupby(level=0).median()[list(tables[0].columns)]
