"""The counts of operations that decide between rows and tangents."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.partition import Partition
from gnewton.summary.tangent.way_costs import CALLS, GATE, READ, SLICED, operations

from .ways import summarizer_by


def counts(columns, scheme=Partition.per_tensor):
    """Those of 20 samples of 7 → 5 → 3."""
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    summarizer = summarizer_by("rows", model, F.cross_entropy, scheme(model))
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    summarizer.summarize(torch.randn(20, 7), torch.zeros(20, dtype=torch.long), direction)
    ((trace, rows),) = summarizer.tangent_engine._rows.items()
    return operations(trace.plan, rows, columns)


@pytest.mark.parametrize("columns", [1, 2])
def test_counts_by_hand(columns):
    first, second, entries, outputs = 20 * 7 * 5, 20 * 5 * 3, 20 * 5, 20 * 3
    read = READ * columns * (entries + outputs)
    by_rows = first + second * (1 + columns) + GATE * entries * columns + read
    # groups: the weight of the first layer, then both of its tensors and the weight of the second
    by_tangents = first * (1 + 1) + second * (3 + 2) + GATE * entries * (2 + 1)
    assert counts(columns) == (by_rows, by_tangents)


@pytest.mark.parametrize("columns", [1, 2])
def test_counts_of_slices_by_hand(columns):
    first, second, entries, outputs = 20 * 7 * 5, 20 * 5 * 3, 20 * 5, 20 * 3
    read = (READ + 2 * SLICED) * columns * (entries + outputs)  # slices of a weight and of a bias
    by_rows = first + second * (1 + columns) + GATE * entries * columns + read + 4 * CALLS
    # three groups of the first layer and two of the second; each forms its own slice of either tensor
    formed = 3 * GATE * (3 * (35 + 5) + 2 * (15 + 3))
    by_tangents = formed + first * (3 + 1) + second * (3 + 1 + 2 + 1) + GATE * entries * (3 + 1)
    assert counts(columns, lambda model: Partition.row_blocks(model, 2)) == (by_rows, by_tangents)
