"""A bound on the step of each group, relative to the length of its parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.arguments import check_number
from gnewton.optim.grouping import Grouping

FLOOR = 1e-3
"""Root mean square of the entries below which a group counts as being of that size: biases that start at zero
could not move otherwise."""


class StepCap:
    """‖step of group s‖ <= c · max(‖θ_s‖, FLOOR √P_s), with P_s the number of parameters of the group.

    Args:
        fraction: c > 0.
        grouping: the groups.
    """

    def __init__(self, fraction: float, grouping: Grouping) -> None:
        check_number("cap", fraction, above=0)
        self.fraction = fraction
        self._grouping = grouping
        counts = torch.tensor([float(p.numel()) for p in grouping.parameters], dtype=torch.float64)
        self._floor = FLOOR * grouping.sums(counts.to(grouping.parameters[0].device)).sqrt()

    def lengths(self, sizes: Tensor) -> Tensor:
        """The longest allowed step of each group, (S,), from ‖θ_s‖."""
        return self.fraction * torch.maximum(sizes, self._floor.to(sizes.device))

    def factors(self, taken: Tensor) -> Tensor:
        """What to multiply the step of each group by, (S,), from their lengths; 1: it may be made in full."""
        allowed = self.lengths(self._grouping.norms(self._grouping.parameters))
        return torch.where(taken > allowed, allowed / taken, 1.0)

    @torch.no_grad()
    def shorten(self, steps: Sequence[Tensor]) -> None:
        """Shorten, in place, the steps of the groups that would go too far; on the device alone."""
        factors = self.factors(self._grouping.norms(steps))
        torch._foreach_mul_(list(steps), self._grouping.spread(factors.to(steps[0].dtype)))
