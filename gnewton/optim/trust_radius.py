"""How far the rates of an update are trusted: a bound on the step of each group, relative to its size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnewton.arguments import check_number
from gnewton.optim.grouping import Grouping

FLOOR = 1e-3
"""Root mean square of the entries below which a group counts as being of that size: biases that start at zero
could not move otherwise."""

FIRST = 0.1
"""Share of the cap at the first update, and wherever the model has no minimiser: there it tells a direction,
and nothing about how far to go."""

GROWTH = 1.0225
"""What the radius is multiplied by at every training step until it is the cap: tenfold in 103 steps."""


class TrustRadius:
    """‖step of group s‖ <= ρ max(‖θ_s‖, FLOOR √P_s), with P_s the number of parameters of the group.

    The radius ρ starts at a tenth of the cap and grows to the cap in the course of a hundred steps: the first
    steps, if they are long, lead where the model says nothing. A rejected update halves it.

    Args:
        cap: the largest ρ, > 0.
        parameters: of the model.
        grouping: the groups.

    Raises:
        InputError: if the cap is no positive number.
    """

    def __init__(self, cap: float, grouping: Grouping) -> None:
        check_number("cap", cap, above=0)
        self.cap = float(cap)
        self.radius = FIRST * self.cap
        counts = torch.tensor([float(p.numel()) for p in grouping.parameters], dtype=torch.float64)
        self._floor = FLOOR * grouping.sums(counts.to(grouping.parameters[0].device)).sqrt().cpu()

    def lengths(self, sizes: Tensor, *, bounded: bool) -> Tensor:
        """The longest step of each group, (S,).

        Args:
            sizes: ‖θ_s‖, (S,), on the CPU.
            bounded: whether the model that the rates come from has a minimiser.
        """
        radius = self.radius if bounded else min(self.radius, FIRST * self.cap)
        return radius * torch.maximum(sizes, self._floor)

    def grow(self, steps: int) -> None:
        """After an update that was kept, for so many steps."""
        self.radius = min(self.cap, GROWTH**steps * self.radius)

    def shrink(self) -> None:
        """After one that was rejected; the first radius is the least."""
        self.radius = max(FIRST * self.cap, self.radius / 2)

    def state_dict(self) -> dict[str, Any]:
        """The radius."""
        return {"radius": self.radius}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.radius = state["radius"]


def per_entry(lengths: Tensor, directions: int) -> Tensor:
    """The length of each group shared out evenly among its directions, which stand next to each other."""
    return (lengths / directions).repeat_interleave(directions)
