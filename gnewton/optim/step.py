"""The step from directions and rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnewton.optim.finite import subtract_finite
from gnewton.optim.grouping import Grouping
from gnewton.optim.trust import shortened


@dataclass(frozen=True)
class Plan:
    """What an update leaves for the steps up to the next one.

    Attributes:
        rates: η, (S·k,), the directions of a group next to each other, damped.
        limits: the longest step of each entry, (S·k,), on the device of the parameters; None: no bound.
        weights: how much a unit of each rate is worth along u_1 … u_k, one number per parameter
            (:mod:`gnewton.optim.fresh`); None: 1.
    """

    rates: Sequence[float]
    limits: Tensor | None = None
    weights: Sequence[Sequence[float]] | None = None

    def per_parameter(self, j: int, count: int, grouping: Grouping) -> list[float]:
        """The rate of direction j for each parameter."""
        etas = [self.rates[owner * count + j] for owner in grouping.owner]
        if self.weights is None:
            return etas
        return [eta / w for eta, w in zip(etas, self.weights[j], strict=True)]


@torch.no_grad()
def combined(directions: Sequence[Sequence[Tensor]], plan: Plan, grouping: Grouping) -> list[Tensor]:
    """Σ_s Σ_j η_sj P_s u_j within the limits, as new tensors; on the device alone."""
    return _combined(directions, _effective(directions, plan, grouping)[0])


@torch.no_grad()
def take(directions: Sequence[Sequence[Tensor]], plan: Plan, grouping: Grouping) -> Tensor:
    """θ ← θ − Σ_s Σ_j η_sj P_s u_j within the limits; where that is not finite no parameter is touched.

    Args:
        directions: u_1 … u_k, each in the order of ``grouping``; they stay as they are.
        plan: rates and limits.
        grouping: the groups, whose parameters are changed in place.

    Returns:
        Whether the step has been made: a scalar bool, on the device, for which nobody has waited.
    """
    rates, finite = _effective(directions, plan, grouping)
    if grouping.parameters[0].device.type != "cpu":
        subtract_finite(grouping.parameters, _combined(directions, rates), finite)
    elif finite:  # on the processor passes over memory are what costs, and a flag can be read at once
        for direction, etas in zip(directions, rates, strict=True):
            for parameter, u, eta in zip(grouping.parameters, direction, etas, strict=True):
                if eta != 0:
                    parameter.sub_(u, alpha=float(eta))
    return finite


def _combined(directions: Sequence[Sequence[Tensor]], rates: Sequence[Sequence[Any]]) -> list[Tensor]:
    step, *others = (
        list(torch._foreach_mul(list(u), list(etas))) for u, etas in zip(directions, rates, strict=True)
    )
    for other in others:
        torch._foreach_add_(step, other)
    return step


def _effective(
    directions: Sequence[Sequence[Tensor]], plan: Plan, grouping: Grouping
) -> tuple[list[Sequence[Any]], Tensor]:
    """The rate of each parameter along u_1 … u_k, lowered so that no entry goes beyond its limit.

    The second result says whether the step is finite: a scalar bool, from the lengths that the limits need.
    """
    rates: list[Sequence[Any]] = []
    total: Tensor | None = None
    for j, direction in enumerate(directions):
        etas = plan.per_parameter(j, len(directions), grouping)
        taken = torch.stack(torch._foreach_mul(torch._foreach_norm(list(direction)), [abs(e) for e in etas]))
        total = taken if total is None else total + taken
        if plan.limits is None:
            rates.append(etas)
            continue
        lengths = grouping.sums(taken.double().square()).sqrt()
        factors = grouping.spread(shortened(lengths, plan.limits[j :: len(directions)]))
        if factors.is_cuda:
            rates.append(torch._foreach_mul(list(factors.to(direction[0].dtype).unbind()), etas))
        else:
            rates.append([eta * factor for eta, factor in zip(etas, factors.tolist(), strict=True)])
    assert total is not None
    return rates, total.isfinite().all()
