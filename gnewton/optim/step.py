"""The step from directions and rates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.optim.cap import StepCap
from gnewton.optim.finite import subtract_finite
from gnewton.optim.grouping import Grouping


@torch.no_grad()
def combined(
    directions: Sequence[Sequence[Tensor]], rates: Sequence[float], grouping: Grouping, cap: StepCap | None
) -> list[Tensor]:
    """Σ_s Σ_j η_sj P_s u_j within the cap, as new tensors."""
    step, *others = (
        list(torch._foreach_mul(list(direction), _spread(rates, j, len(directions), grouping)))
        for j, direction in enumerate(directions)
    )
    for other in others:
        torch._foreach_add_(step, other)
    if cap is not None:
        cap.shorten(step)
    return step


@torch.no_grad()
def take(
    directions: Sequence[Sequence[Tensor]], rates: Sequence[float], grouping: Grouping, cap: StepCap | None
) -> Tensor:
    """θ ← θ − Σ_s Σ_j η_sj P_s u_j within the cap; where that is not finite no parameter is touched.

    Args:
        directions: u_1 … u_k, each in the order of ``grouping``; they stay as they are.
        rates: η, (S·k,), the directions of a group next to each other.
        grouping: the groups, whose parameters are changed in place.
        cap: bounds the step of each group.

    Returns:
        Whether the step has been made: a scalar bool, on the device, for which nobody has waited.
    """
    if grouping.parameters[0].device.type != "cpu":
        return subtract_finite(grouping.parameters, combined(directions, rates, grouping, cap))
    # On the processor passes over memory are what costs, and a flag can be read at once
    if cap is not None:
        rates = _within(cap, directions, rates, grouping)
    spread = [_spread(rates, j, len(directions), grouping) for j in range(len(directions))]
    finite = _bounded(directions, spread)
    if finite:
        for direction, etas in zip(directions, spread, strict=True):
            for parameter, u, eta in zip(grouping.parameters, direction, etas, strict=True):
                if eta != 0:
                    parameter.sub_(u, alpha=eta)
    return finite


def _within(
    cap: StepCap, directions: Sequence[Sequence[Tensor]], rates: Sequence[float], grouping: Grouping
) -> list[float]:
    """The rates of steps within the cap."""
    if len(directions) == 1:
        lengths = grouping.norms(directions[0])
        taken = lengths * lengths.new_tensor(rates).abs()
    else:
        taken = grouping.norms(combined(directions, rates, grouping, None))
    factors = cap.factors(taken).tolist()
    return [eta * factors[i // len(directions)] for i, eta in enumerate(rates)]


def _spread(rates: Sequence[float], direction: int, count: int, grouping: Grouping) -> list[float]:
    """The rate of one direction for each parameter."""
    return [rates[owner * count + direction] for owner in grouping.owner]


def _bounded(directions: Sequence[Sequence[Tensor]], rates: Sequence[Sequence[float]]) -> Tensor:
    """Whether Σ_j |η_j| ‖u_j‖ of each parameter is finite, and with it every number that is subtracted."""
    bounds, *others = (torch._foreach_norm(list(direction)) for direction in directions)
    for total, etas in zip((bounds, *others), rates, strict=True):
        torch._foreach_mul_(total, [abs(eta) for eta in etas])
    for other in others:
        torch._foreach_add_(bounds, other)
    return torch.stack(bounds).isfinite().all()
