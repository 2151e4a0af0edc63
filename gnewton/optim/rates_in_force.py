"""The rates in force between two updates, and the longest step that they allow to each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gnewton.arguments import check_options
from gnewton.optim.directions import Directions
from gnewton.optim.finite_step import Plan
from gnewton.optim.grouping import Grouping
from gnewton.optim.hyperparameters import GroupedNewtonHyperparameters
from gnewton.optim.measure import Measured
from gnewton.optim.rate_rule import Solved

FLOOR = 1e-3
"""Least root mean square of the entries that a group is counted with: otherwise biases that start at zero
could not move."""

FIRST = 0.3
"""Share of the cap at the first update."""

LEAST = 0.1
"""Share of the cap below which the radius never falls, and which holds whenever the model has no minimiser:
such a model gives a direction, but no length."""

GROWTH = 1.0225
"""Growth of the radius per training step until it reaches the cap: from the first radius in 54 steps."""


class TrustRadius:
    """‖step of group s‖ <= ρ max(‖θ_s‖, FLOOR √P_s), with P_s the number of parameters of the group.

    The radius ρ starts at 0.3 of the cap and grows to the cap within about fifty steps: long first steps
    would lead to where the model says nothing. A rejected update halves it.

    Args:
        cap: the largest ρ, > 0.
        grouping: the groups.

    Raises:
        InputError: if the cap is not a positive number.
    """

    def __init__(self, cap: float, grouping: Grouping) -> None:
        check_options(GroupedNewtonHyperparameters, cap=cap)
        self.cap = float(cap)
        self.radius = FIRST * self.cap
        self.fit(grouping)

    def fit(self, grouping: Grouping) -> None:
        """Take these groups from now on; the radius stays."""
        counts = torch.tensor([float(group.size) for group in grouping.partition], dtype=torch.float64)
        self._floor = FLOOR * counts.sqrt()

    def lengths(self, sizes: Tensor, *, bounded: bool) -> Tensor:
        """The longest step of each group, (S,).

        Args:
            sizes: ‖θ_s‖, (S,), on the CPU.
            bounded: whether the model behind the rates has a minimiser.
        """
        radius = self.radius if bounded else min(self.radius, LEAST * self.cap)
        return radius * torch.maximum(sizes, self._floor)

    def grow(self, steps: int) -> None:
        """Grow by this number of steps, after an update that was kept."""
        self.radius = min(self.cap, GROWTH**steps * self.radius)

    def shrink(self) -> None:
        """Halve the radius after a rejected update, but not below a tenth of the cap."""
        self.radius = max(LEAST * self.cap, self.radius / 2)


def per_entry(lengths: Tensor, directions: int) -> Tensor:
    """The length of each group divided evenly among its directions, which stand next to each other."""
    return (lengths / directions).repeat_interleave(directions)


class RatesInForce:
    """The rates η of all entries, kept in ``param_groups``, with the step length that each may not exceed.

    The limit of an entry is its step at the update that measured it, or less where the trust radius says so.
    The weight of an entry is the number of steps along v that a step along u is worth
    (:mod:`gnewton.optim.inner_optimizers`); it changes from step to step.

    Args:
        param_groups: of the optimizer; ``rate`` of each holds η_s, or a list with several directions. Where
            groups are slices there is one entry, whose ``rate`` lists the rates of all.
        grouping: the groups.
        directions: the number k of directions.
        cap: of the trust radius; None: none.
        fresh: whether the rates are measured along v, the fresh part of u.

    Attributes:
        trust: the trust radius, or None.
    """

    def __init__(
        self,
        param_groups: list[dict[str, Any]],
        grouping: Grouping,
        directions: int,
        *,
        cap: float | None,
        fresh: bool,
    ) -> None:
        self.trust = TrustRadius(cap, grouping) if cap is not None else None
        self._groups = param_groups
        self._directions = directions
        self._per_entry = len(grouping.partition) * directions // len(param_groups)
        self._sliced = grouping.partition.sliced
        self._listed = directions > 1 or self._sliced
        self._fresh = fresh
        self._device = grouping.parameters[0].device
        self._limits: Tensor | None = None
        self._reference: list[list[float]] | None = None  # weights at the update, where v is not measured
        self.set([0.0] * (len(grouping.partition) * directions))

    @property
    def values(self) -> list[float]:
        """η of each entry, before the step size λ_1."""
        rates = [group["rate"] for group in self._groups]
        return [eta for rate in rates for eta in rate] if isinstance(rates[0], list) else rates

    def eta(self) -> Tensor:
        """:attr:`values` as a tensor, (S·k,), float64."""
        return torch.tensor(self.values, dtype=torch.float64)

    def step_size(self, factor: float) -> list[float]:
        """λ_1 of each entry: its ``lr`` times ``factor``."""
        return [lr * factor for group in self._groups for lr in [float(group["lr"])] * self._per_entry]

    def taken(self, factor: float) -> list[float]:
        """λ_1 η of each entry."""
        return [lr * rate for lr, rate in zip(self.step_size(factor), self.values, strict=True)]

    def set(self, rates: Sequence[float]) -> None:
        """Put η of each entry in force; limits and weights stay."""
        count = self._per_entry
        for s, group in enumerate(self._groups):
            group["rate"] = list(rates[s * count : (s + 1) * count]) if self._listed else rates[s]

    def hold(self, rates: Sequence[float]) -> None:
        """Put η of each entry in force without limits."""
        self.set(rates)
        self._limits = self._reference = None

    def enforce(
        self, solved: Solved, measured: Measured, step_size: list[float], directions: Directions, period: int
    ) -> Solved:
        """Put the rates of an update in force, with the longest step that each allows.

        Args:
            solved: the rates.
            measured: the last summary behind them.
            step_size: λ_1 of each entry.
            directions: whose weights the rates belong to.
            period: steps to the next update.

        Returns:
            ``solved`` with the number of entries that the trust radius shortens.
        """
        self.set(solved.rates.tolist())
        lengths = solved.rates.abs() * torch.tensor(step_size, dtype=torch.float64) * measured.lengths
        capped = 0
        if self.trust is not None:
            trusted = self._trusted(self.trust, measured, bounded=not solved.solution.fell_back)
            capped = int((lengths > trusted).sum())
            lengths = torch.minimum(lengths, trusted)
            self.trust.grow(period)
        self._limits = lengths.to(self._device)
        self._reference = None if self._fresh else directions.weights()
        return replace(solved, capped=capped)

    def start(self, solved: Solved, measured: Measured, step_size: list[float]) -> Solved:
        """If no summary has been finite yet: rates whose steps are as long as the least trust radius."""
        lengths = measured.lengths
        if self.trust is None or self._limits is not None or not bool(lengths.isfinite().all()):
            return solved
        trusted = torch.where(lengths > 0, self._trusted(self.trust, measured, bounded=False), 0.0)
        rates = trusted / lengths.clamp(min=torch.finfo(torch.float64).tiny)
        rates = rates / torch.tensor(step_size, dtype=torch.float64)
        self.set(rates.tolist())
        self._limits = trusted.to(self._device)
        return replace(solved, rates=rates)

    def plan(self, factor: float, directions: Directions) -> Plan:
        """The next step: λ_1 η of each entry, the limits and the current weights.

        Args:
            factor: on the ``lr`` of each entry, which makes it λ_1.
            directions: that the step follows.
        """
        if self._sliced:  # a single entry of torch holds all groups
            taken: Sequence[float] | Tensor = float(self._groups[0]["lr"]) * factor * self.eta()
        else:
            taken = self.taken(factor)
        if self._fresh:
            return Plan(taken, self._limits, directions.weights())
        if self._reference is None:
            return Plan(taken, self._limits)
        weights = [
            [w / w0 for w, w0 in zip(now, then, strict=True)]
            for now, then in zip(directions.weights(), self._reference, strict=True)
        ]
        return Plan(taken, self._limits, weights)

    def extend(self, directions: Directions) -> None:
        """Take in one more group, which has the rate 0 until the next update."""
        if self._limits is not None:
            self._limits = torch.cat([self._limits, self._limits.new_zeros(self._directions)])
        if self._reference is not None:
            self._reference = [
                [*then, *now[len(then) :]]
                for then, now in zip(self._reference, directions.weights(), strict=True)
            ]

    def fit(self, grouping: Grouping) -> None:
        """Take these groups from now on."""
        if self.trust is not None:
            self.trust.fit(grouping)

    def shrink(self) -> None:
        """Trust less, after a rejected update."""
        if self.trust is not None:
            self.trust.shrink()

    def state_dict(self) -> dict[str, Any]:
        """Limits, weights and the trust radius; the rates themselves are in ``param_groups``."""
        return {
            "limits": None if self._limits is None else self._limits.cpu(),
            "reference": self._reference,
            "radius": None if self.trust is None else self.trust.radius,
        }

    def load_state_dict(self, state: dict[str, Any], param_groups: list[dict[str, Any]]) -> None:
        """Restore the value of :meth:`state_dict`; torch makes new ``param_groups`` when it loads."""
        self._groups = param_groups
        limits = state["limits"]
        self._limits = None if limits is None else limits.to(self._device)
        self._reference = state["reference"]
        if self.trust is not None and state["radius"] is not None:
            self.trust.radius = state["radius"]

    def _trusted(self, trust: TrustRadius, measured: Measured, *, bounded: bool) -> Tensor:
        """The longest step of each entry, (S·k,)."""
        return per_entry(trust.lengths(measured.sizes, bounded=bounded), self._directions)
