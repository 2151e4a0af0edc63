"""The loss along each group beside its Taylor models, and how far each of these holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnewton.inspection.measurement import Batches, Floats
from gnewton.partition import Partition
from gnewton.summary import LossDerivatives
from gnewton.summary.batch import batch_size
from gnewton.summary.group_parts import part_of, sums_by_group
from gnewton.summary.isolation import without_side_effects
from gnewton.summary.problem import Forward, LossFunction, Problem
from gnewton.summary.taylor.derivatives import DerivativeEngine

LOWEST_ORDER = 3
"""The lowest order that can be asked for; models of order 2 and 3 are always shown."""

FRACTIONS = np.concatenate([np.arange(-10, 11), np.arange(12, 41, 2)]) / 10
"""The rates of the grid, in units of the rate that is suggested for the group."""

SHARE = 0.1
"""A model holds up to a rate if its error stays below this share of the largest change of the loss so far."""


@dataclass(frozen=True)
class LossAlong:
    """φ_s(η) = L(θ − η P_s u) on a grid of rates for every group s, and its derivatives at 0.

    Attributes:
        rates: the grid, (S, T); zeros for a group along which there is nothing to see.
        losses: φ_s on the grid, (S, T).
        derivatives: dᵏφ_s/dηᵏ at 0 for k = 0 … d, (S, d + 1).
    """

    rates: Floats
    losses: Floats
    derivatives: Floats

    @property
    def order(self) -> int:
        """d."""
        return self.derivatives.shape[1] - 1

    @property
    def orders(self) -> tuple[int, ...]:
        """The orders of the models that are shown: 2, 3 and d."""
        return tuple(sorted({2, 3, self.order}))

    def model(self, order: int) -> Floats:
        """Σ_{k≤order} ηᵏ/k! dᵏφ_s/dηᵏ on the grid, (S, T)."""
        terms = [self.rates**k * self.derivatives[:, k : k + 1] / math.factorial(k) for k in range(order + 1)]
        return np.sum(terms, axis=0)

    def holds(self, order: int, share: float = SHARE) -> Floats:
        """The largest rate of the grid, towards the suggested one, up to which a model holds, (S,).

        It holds at a rate if there, and at every rate between it and 0, its error is at most ``share`` times
        the largest change |φ_s − φ_s(0)| up to that rate. 0 where it does not hold at the first rate, NaN
        for a group along which there is nothing to see.
        """
        start = int(np.flatnonzero(FRACTIONS == 0)[0])
        errors = np.abs(self.model(order) - self.losses)[:, start:]
        changes = np.maximum.accumulate(np.abs(self.losses - self.losses[:, start, None])[:, start:], axis=1)
        good = np.logical_and.accumulate(errors[:, 1:] <= share * changes[:, 1:], axis=1)
        reached = np.take_along_axis(self.rates[:, start:], good.sum(axis=1, keepdims=True), axis=1)[:, 0]
        return np.where(self.rates[:, -1] != 0, reached, np.nan)

    def curve_rows(self, names: tuple[str, ...]) -> Iterator[list[object]]:
        """The rows of along.csv: group, rate, loss, and the models of :attr:`orders`."""
        models = [self.model(order) for order in self.orders]
        for s, name in enumerate(names):
            if self.rates[s, -1] != 0:
                for n, rate in enumerate(self.rates[s]):
                    yield [name, float(rate), float(self.losses[s, n]), *(float(m[s, n]) for m in models)]

    def reach_rows(self, names: tuple[str, ...]) -> Iterator[list[object]]:
        """The rows of along_reach.csv: group, end of the grid, how far each model holds, and derivatives."""
        reaches = [self.holds(order) for order in self.orders]
        for s, name in enumerate(names):
            end = float(self.rates[s, -1]) or math.nan
            derivatives = map(float, self.derivatives[s, 1:])
            yield [name, end, *(float(reach[s]) for reach in reaches), *derivatives]

    def curve_columns(self) -> tuple[str, ...]:
        """The columns of along.csv."""
        return ("group", "rate", "loss", *(f"model_{order}" for order in self.orders))

    def reach_columns(self) -> tuple[str, ...]:
        """The columns of along_reach.csv."""
        derivatives = (f"derivative_{k}" for k in range(1, self.order + 1))
        return ("group", "end", *(f"holds_{order}" for order in self.orders), *derivatives)


def rate_scales(rates: Floats, gradient: Floats, curvature: Floats) -> Floats:
    """The rate of each group that sets its grid, (S,): the suggested one, else |ḡ_s/H̄_ss|, else 0.

    Args:
        rates: suggested rates, possibly NaN or 0.
        gradient: ḡ (S,).
        curvature: diagonal of H̄ (S,).
    """
    alone = np.abs(np.divide(gradient, curvature, out=np.zeros_like(gradient), where=curvature != 0))
    known = np.isfinite(rates) & (rates != 0)
    return np.where(known, rates, alone)


def measure_along(
    model: nn.Module,
    loss_fn: LossFunction,
    partition: Partition,
    batches: Batches,
    direction: Mapping[str, Tensor],
    scales: Floats,
    *,
    order: int,
    decay: Mapping[str, float] | None = None,
    forward: Forward | None = None,
    engine: DerivativeEngine = "auto",
    max_memory: int | None = None,
) -> LossAlong:
    """Measure the mean loss over all samples along each group, and its derivatives of order 1 … ``order``.

    The random draws of the model, such as dropout masks, are the same for every rate.

    Args:
        model, loss_fn, partition, forward: as for :func:`gnewton.summarize`.
        batches: the samples.
        direction: u by parameter name.
        scales: the rate of each group that sets its grid, (S,).
        order: d, 3 … 8.
        decay: wd of the terms (wd/2)‖θ‖² of a coupled weight decay, by parameter name; 0 where missing.
        engine, max_memory: as for :class:`gnewton.summary.LossDerivatives`.
    """
    along_groups = LossDerivatives(
        model, loss_fn, partition, forward=forward, engine=engine, max_memory=max_memory
    )
    problem, rates = along_groups.problem, scales[:, None] * FRACTIONS
    losses, derivatives = np.zeros_like(rates), np.zeros((len(partition), order + 1))
    samples = 0
    for inputs, targets in batches():
        weight = batch_size(inputs, targets)
        samples += weight
        derivatives += weight * along_groups.derivatives(inputs, targets, direction, order).cpu().numpy()
        losses += weight * _losses(problem, inputs, targets, direction, rates)
    losses, derivatives = losses / samples, derivatives / samples
    derivatives *= (-1.0) ** np.arange(order + 1)  # u points uphill: the rate moves against it
    slopes, bends = _decay_of(problem, direction, decay or {})
    derivatives[:, 1] += slopes
    derivatives[:, 2] += bends
    losses += rates * slopes[:, None] + 0.5 * rates**2 * bends[:, None]
    return LossAlong(rates, losses, derivatives)


def _losses(
    problem: Problem, inputs: object, targets: object, direction: Mapping[str, Tensor], rates: Floats
) -> Floats:
    """The loss of one batch on the grid of every group."""
    request = problem.request(inputs, targets, direction)
    parameters, losses = problem.parameters(), list[Tensor]()

    def loss(moved: Mapping[str, Tensor]) -> Tensor:
        copies = pytree.tree_map_only(Tensor, torch.clone, (problem.constants(), *request.batch))
        with without_side_effects(problem), torch.no_grad():
            return problem.loss({**parameters, **moved}, *copies).to(torch.float64, copy=True)

    middle = loss({})
    for s, group in enumerate(problem.partition):
        parts = {name: part_of(problem.partition, name, request.direction[name], s) for name in group.touched}
        for rate in map(float, rates[s]):
            moved = {name: parameters[name] - rate * u for name, u in parts.items() if u is not None}
            losses.append(middle if rate == 0 else loss(moved))
    return torch.stack(losses).cpu().numpy().reshape(rates.shape)  # read once: until here nothing waits


def _decay_of(
    problem: Problem, direction: Mapping[str, Tensor], decay: Mapping[str, float]
) -> tuple[Floats, Floats]:
    """The first two derivatives in the rate of Σ (wd/2)‖θ‖² along each group, (S,) each."""
    slopes, bends = np.zeros(len(problem.partition)), np.zeros(len(problem.partition))
    for name, p in problem.parameters().items():
        factor = decay.get(name, 0.0)
        if factor:
            u = direction[name].detach().double()
            for derivatives, sign, terms in ((slopes, -1, p.detach().double() * u), (bends, 1, u.square())):
                groups, sums = sums_by_group(problem.partition, name, terms)
                derivatives[list(groups)] += sign * factor * sums.cpu().numpy()
    return slopes, bends
