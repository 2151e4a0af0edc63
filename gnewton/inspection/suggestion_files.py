"""A suggestion as files: rates for an optimizer to train with, a table, and the summaries behind them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from gnewton.inspection.files import table
from gnewton.inspection.observe import Observations
from gnewton.inspection.suggest import Suggestion
from gnewton.partition import Partition

COLUMNS = ("group", "parameters", "rate", "from", "solved", "low", "high", "positive")
"""Columns of suggestion.csv, one row per group and one for all parameters together."""


def by_parameter(partition: Partition, found: Suggestion) -> dict[str, float]:
    """The rate of each parameter: that of its group."""
    return {
        name: float(rate)
        for group, rate in zip(partition, found.rates, strict=True)
        for name in group.parameters
    }


def suggestion_files(
    partition: Partition, found: Suggestion, groups: Observations, remarks: Sequence[str]
) -> dict[str, str | bytes]:
    """The files by name; ``remarks`` head the YAML, a line each."""
    rates = by_parameter(partition, found)
    lines = [*(f"# {remark}" for remark in remarks), *(f"{name}: {rate!r}" for name, rate in rates.items())]
    return {
        "rates.yaml": "\n".join(lines) + "\n",
        "suggestion.csv": table(COLUMNS, _rows(partition, found)),
        "summaries.npz": _arrays(partition, groups),
    }


def _rows(partition: Partition, found: Suggestion) -> list[list[object]]:
    rows: list[list[object]] = [
        [
            group.name,
            group.size,
            float(found.rates[s]),
            "solve" if found.found[s] else "all",
            float(found.solved[s]),
            float(found.low[s]),
            float(found.high[s]),
            float(found.positive[s]),
        ]
        for s, group in enumerate(partition)
    ]
    size = sum(group.size for group in partition)
    whole = [found.single, "solve", found.single, found.single_low, found.single_high, ""]
    return [*rows, ["(all)", size, *whole]]


def _arrays(partition: Partition, groups: Observations) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        groups=np.array(partition.names),
        gradient=groups.gradient,
        hessian=groups.hessian,
        third=groups.third,
        norms=groups.norms,
    )
    return buffer.getvalue()
