"""The rate common to all groups, and the bounds that it sets to their rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gnewton.optim.solvers import Model, Solver

SPREAD = 8.0
"""Shrinkage keeps each rate within this factor of the common one."""

RISE = 1.3
"""The largest factor by which the common rate rises from one update to the next."""


@dataclass(frozen=True)
class Common:
    """The rate common to all groups, for each direction.

    Attributes:
        rates: c_j, one for each of the k directions; NaN: not known yet.
        target: c_j of each entry in normalised units, (S·k,); the directions j run faster.
    """

    rates: list[float]
    target: Tensor

    @property
    def known(self) -> Tensor:
        """The entries with a known common rate, (S·k,), bool."""
        return self.target.isfinite()

    def bounded(self, rates: Tensor) -> Tensor:
        """``rates`` clamped to a factor :data:`SPREAD` around the common rate, where that is known."""
        within = rates.clamp(min=self.target / SPREAD, max=self.target * SPREAD)
        return torch.where(self.known, within, rates)


def common_rates(
    gradient: Tensor,
    hessian: Tensor,
    third: Tensor,
    lengths: Tensor,
    internal_damping: float,
    solver: Solver,
    previous: list[float],
) -> Common:
    """The minimiser over c of the model along η = c n, for each direction.

    Along this line the cubic term is (λ_int/6) c³ ‖Dn‖³, that of a third derivative ‖Dn‖³.

    Args:
        gradient, hessian, third: the model, (R,), (R, R), (R,), with R = S·k.
        lengths: n, the factor from a rate in units of the direction to normalised units, (R,).
        internal_damping: λ_int.
        solver: the solver of the rates.
        previous: c of each direction at the last update; NaN: none.

    Returns:
        The common rates. A direction without a minimiser keeps its previous rate; one along which the loss
        does not descend takes half of it.
    """
    count = len(previous)
    rates, target = [], torch.full_like(gradient, math.nan)
    for j, before in enumerate(previous):
        n = lengths[j::count]
        slope = gradient[j::count] @ n
        solution = solver.solve(
            Model(
                gradient=slope.view(1),
                hessian=(n @ hessian[j::count, j::count] @ n).view(1, 1),
                third=(third[j::count].abs().pow(2 / 3) * n * n).sum().pow(1.5).view(1),
                internal_damping=internal_damping,
                nonnegative=False,
                radius=math.inf,
            )
        )
        rate = float(solution.rates)
        if slope <= 0:
            rate = before / 2
        elif solution.fell_back or rate <= 0:
            rate = before
        if math.isfinite(before):
            rate = min(rate, RISE * before)
        rates.append(rate)
        target[j::count] = rate * n
    return Common(rates, target)
