"""Parameters that stand in for those of training while a model is evaluated, and leave no rounding behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def schedule_free_average(optimizer: Any) -> Iterator[None]:
    """Within the block the parameters of a schedule-free optimizer are its average x.

    Its own ``train()`` returns to y up to rounding, so that a run would depend on when it was evaluated: the
    parameters are put back as they were, bit for bit.

    Args:
        optimizer: of the package schedulefree.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            torch._foreach_copy_(parameters, kept)
