"""The step from directions and rates, made only if it is finite, which is decided on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from gnewton.optim.grouping import Grouping


@dataclass(frozen=True)
class Plan:
    """The rates, limits and weights of a step.

    Attributes:
        rates: λ_1 η, (S·k,), with the directions of a group next to each other.
        limits: the longest step of each entry, (S·k,), on the device of the parameters; None: no limits.
        weights: for each of u_1 … u_k and each parameter, the number of steps along v that a step along u is
            worth (:mod:`gnewton.optim.inner_optimizers`); None: all are 1.
    """

    rates: Sequence[float] | Tensor
    limits: Tensor | None = None
    weights: Sequence[Sequence[float]] | None = None

    def per_parameter(self, j: int, count: int, grouping: Grouping) -> list[float]:
        """The rate of direction j for each parameter."""
        etas = [float(self.rates[owner * count + j]) for owner in grouping.owner]
        if self.weights is None:
            return etas
        return [eta / w for eta, w in zip(etas, self.weights[j], strict=True)]


@torch.no_grad()
def take(directions: Sequence[Sequence[Tensor]], plan: Plan, grouping: Grouping) -> Tensor:
    """θ ← θ − Σ_s Σ_j η_sj P_s u_j within the limits; a step that is not finite changes no parameter.

    Args:
        directions: u_1 … u_k, each in the order of ``grouping``; they are not changed.
        plan: rates, limits and weights.
        grouping: the groups, whose parameters are changed in place.

    Returns:
        Whether the step was made, a scalar bool on the device that is not waited for.
    """
    rates, finite = _effective(directions, plan, grouping)
    if grouping.parameters[0].device.type != "cpu":
        subtract_finite(grouping.parameters, _combined(directions, rates), finite)
    elif finite:  # on the CPU passes over memory dominate, and reading the flag is free
        for direction, etas in zip(directions, rates, strict=True):
            for parameter, u, eta in zip(grouping.parameters, direction, etas, strict=True):
                if isinstance(eta, Tensor):
                    parameter.addcmul_(u, eta, value=-1.0)
                elif eta != 0:
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
    """The rate of each parameter along u_1 … u_k, lowered so that no entry exceeds its limit.

    The second result is whether the step is finite, a scalar bool from the lengths that the limits need.
    """
    if grouping.partition.sliced:
        return _effective_slices(directions, plan, grouping)
    rates: list[Sequence[Any]] = []
    total: Tensor | None = None
    for j, direction in enumerate(directions):
        etas = plan.per_parameter(j, len(directions), grouping)
        norms = torch.stack(torch._foreach_mul(torch._foreach_norm(list(direction)), [abs(e) for e in etas]))
        total = norms if total is None else total + norms
        if plan.limits is None:
            rates.append(etas)
            continue
        lengths = grouping.sums(norms.double().square()).sqrt()
        factors = grouping.spread(shortened(lengths, plan.limits[j :: len(directions)]))
        if factors.is_cuda:
            rates.append(torch._foreach_mul(list(factors.to(direction[0].dtype).unbind()), etas))
        else:
            rates.append([eta * factor for eta, factor in zip(etas, factors.tolist(), strict=True)])
    assert total is not None
    return rates, total.isfinite().all()


def _effective_slices(
    directions: Sequence[Sequence[Tensor]], plan: Plan, grouping: Grouping
) -> tuple[list[Sequence[Any]], Tensor]:
    """:func:`_effective` where groups are slices: a rate is a tensor that is broadcast over its parameter."""
    count = len(directions)
    device = grouping.parameters[0].device
    step_rates = torch.as_tensor(plan.rates, dtype=torch.float64).to(device, non_blocking=True)
    rates: list[Sequence[Any]] = []
    total = torch.zeros((), dtype=torch.float64, device=device)
    for j, direction in enumerate(directions):
        etas = step_rates[j::count]
        weights = [1.0] * len(direction) if plan.weights is None else plan.weights[j]
        worth = (
            direction if all(w == 1 for w in weights) else torch._foreach_div(list(direction), list(weights))
        )
        lengths = grouping.norms(worth) * etas.abs()
        total = total + lengths.sum()
        if plan.limits is not None:
            etas = etas * shortened(lengths, plan.limits[j::count])
        spread = grouping.broadcast(etas.to(direction[0].dtype))
        rates.append([eta if w == 1 else eta / w for eta, w in zip(spread, weights, strict=True)])
    return rates, total.isfinite()


def shortened(lengths: Tensor, limits: Tensor) -> Tensor:
    """The factors, at most 1, that bring steps of these lengths within the limits."""
    return torch.where(lengths > limits, limits / lengths, 1.0)


_FUSED = ("cpu", "cuda")


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether every entry of every tensor is finite, and so is each tensor's length: a scalar bool.

    It takes one pass and does not wait for the device; in float32 a length overflows from about 1e19 on.
    """
    if not tensors:
        return torch.tensor(True)
    return torch.stack(torch._foreach_norm(list(tensors))).isfinite().all()


@torch.no_grad()
def subtract_finite(parameters: list[Tensor], steps: list[Tensor], finite: Tensor | None = None) -> Tensor:
    """θ ← θ − step for all parameters, or for none if any entry of any step is not finite.

    Args:
        parameters: changed in place.
        steps: one for each parameter, of the same shape.
        finite: whether the steps are finite, if known: a scalar bool on their device.

    Returns:
        Whether the steps were finite and have been made, a scalar bool on the device.
    """
    finite = all_finite(steps) if finite is None else finite
    if all(map(_dense, parameters, steps)):
        # fused kernels read found_inf themselves: no NaN reaches a parameter, and the host does not wait
        sgd(
            parameters,
            steps,
            [None] * len(steps),
            fused=True,
            found_inf=(~finite).float(),
            weight_decay=0.0,
            momentum=0.0,
            lr=1.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
    else:
        torch._foreach_sub_(parameters, [torch.where(finite, step, 0) for step in steps])
    return finite


def _dense(parameter: Tensor, step: Tensor) -> bool:
    """Whether a fused kernel, which runs through memory in order, accepts both tensors."""
    if parameter.device.type not in _FUSED or not parameter.is_floating_point():
        return False
    if parameter.dtype is not step.dtype:
        return False
    return parameter.is_contiguous() and step.is_contiguous()
