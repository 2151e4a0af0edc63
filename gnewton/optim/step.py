"""The step from directions and rates."""

from __future__ import annotations

import torch
from torch import Tensor

from gnewton.optim.cap import StepCap
from gnewton.optim.grouping import Grouping


@torch.no_grad()
def combined(
    directions: list[list[Tensor]], rates: list[float], grouping: Grouping, cap: StepCap | None
) -> list[Tensor]:
    """Σ_s Σ_j η_sj P_s u_j within the cap, in the memory of the directions."""
    count = len(directions)
    for j, direction in enumerate(directions):
        torch._foreach_mul_(direction, [rates[owner * count + j] for owner in grouping.owner])
    step = directions[0]
    for other in directions[1:]:
        torch._foreach_add_(step, other)
    if cap is not None:
        cap.shorten(step)
    return step
