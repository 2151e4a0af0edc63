"""From a summary to learning rates: normalise, average, solve, post-process.

Everything here is float64 on the CPU, on a handful of numbers; the caller makes one transfer each way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from gnewton.arguments import check_kind, check_options
from gnewton.cubic import CubicStatus
from gnewton.errors import InputError
from gnewton.optim.averaging import Averaging, NoAveraging
from gnewton.optim.hyperparameters import GroupedNewtonHyperparameters
from gnewton.optim.solvers import Common, Model, Solution, Solver, common_rates, parse_solver

INVALID = CubicStatus.INVALID_INPUT.value
"""Status of an update whose summary was not finite, or failed: the previous rates stay in force."""

AT_REST = "at_rest"
"""Status of an update at which the direction has no effect in any group, so there is nothing to solve."""


class NegativeRates(str, Enum):
    """The treatment of rates that are negative in the cubic model."""

    KEEP = "keep"
    CLIP = "clip"
    CONSTRAIN = "constrain"

    @classmethod
    def parse(cls, value: str | NegativeRates) -> NegativeRates:
        """The member named ``value``, or an error that lists all members."""
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(member.value for member in cls)
            raise InputError(f"negative_rates={value}: must be one of {allowed}") from None


@dataclass(frozen=True)
class Solved:
    """The rates of one update and what they were solved from; float64 on the CPU, in units of the current u.

    Each vector has one entry per group and direction, (S,) for a single direction.

    Attributes:
        rates: η after bounds and clipping, before the step size λ_1, (S,).
        gradient, curvature, third: ḡ_s, H̄_ss and D3_s of the averaged model, (S,).
        solution: the solver's result, in normalised units and over the groups that take part.
        capped: number of entries whose step the trust radius shortened.
        silent: entries that cannot be told from rounding noise and take no part, (S,), bool; None: none.
    """

    rates: Tensor
    gradient: Tensor
    curvature: Tensor
    third: Tensor
    solution: Solution
    capped: int = 0
    silent: Tensor | None = None

    def at(self, places: list[int]) -> Solved:
        """The same with only the entries at ``places``, as a log shows them."""
        return replace(
            self,
            rates=self.rates[places],
            gradient=self.gradient[places],
            curvature=self.curvature[places],
            third=self.third[places],
            silent=None if self.silent is None else self.silent[places],
        )


def invalid(rates: Tensor, gradient: Tensor, hessian: Tensor, third: Tensor) -> Solved:
    """The rates in force once more, for a summary that is not finite."""
    nan = math.nan
    curvature = hessian if hessian.dim() == 1 else hessian.diagonal()
    solution = Solution(rates, INVALID, radius=nan, residual=nan, curvature_margin=nan)
    return Solved(rates, gradient, curvature, third, solution)


def unmeasured(rates: Tensor) -> Solved:
    """The rates in force once more, for an update without a summary."""
    unknown = torch.full_like(rates, math.nan)
    return invalid(rates, unknown, unknown, unknown)


class RateRule:
    """Turns the summaries of successive updates into learning rates, one per group.

    Args:
        entries: R, the number of rates, one for each group and direction, all of one kind; or of each rate
            the number of its kind, from 0: the method that proposes the step. Steps of a kind are on one
            scale.
        solver: a name in :data:`gnewton.optim.solvers.SOLVERS`, or a solver.
        internal_damping: λ_int >= 0 of the cubic term.
        negative_rates: "keep" signed rates, "clip" them to 0 after the solve, or "constrain" the solve to
            rates >= 0.
        shrinkage: τ >= 0 of the term (τ/2)(η − c)ᵀ diag|H̄| (η − c) that pulls the rates of a kind towards
            their common rate c; a shrunk rate is within a factor of 8 of it (:mod:`gnewton.optim.solvers`).
            0: none.
        proximal: μ >= 0 of the proximal term (μ/2)(η − η_prev)ᵀ diag|H̄| (η − η_prev).
        averaging: the average of (ḡ, H̄, D3) over updates.
        normalise: whether summaries are averaged in units of n_s = ‖P_s u‖, so that they stay comparable
            while the length of u changes.
    """

    def __init__(
        self,
        entries: int | Sequence[int],
        *,
        solver: str | Solver = "cubic",
        internal_damping: float = 1.0,
        negative_rates: str | NegativeRates = NegativeRates.CLIP,
        shrinkage: float = 0.0,
        proximal: float = 0.0,
        averaging: Averaging | None = None,
        normalise: bool = True,
    ) -> None:
        check_options(
            GroupedNewtonHyperparameters,
            internal_damping=internal_damping,
            shrinkage=shrinkage,
            proximal=proximal,
            normalise=normalise,
        )
        check_kind("averaging", averaging, Averaging, "ExponentialAveraging(0.95)")
        self.solver = parse_solver(solver)
        self.internal_damping = internal_damping
        self.negative_rates = NegativeRates.parse(negative_rates)
        if self.negative_rates is NegativeRates.CONSTRAIN and not self.solver.constrains:
            raise InputError("negative_rates=constrain: solver=newton has no such form; use clip or keep")
        self.shrinkage = shrinkage
        self.proximal = proximal
        self.averaging = averaging if averaging is not None else NoAveraging()
        self._empty = copy.deepcopy(self.averaging.state_dict())
        self.normalise = normalise
        self.restart([0] * entries if isinstance(entries, int) else entries)

    def restart(self, kinds: Sequence[int]) -> None:
        """Forget all summaries and rates, and continue with entries of these kinds."""
        self._size, self._kinds = len(kinds), torch.tensor(kinds)
        self.averaging.load_state_dict(copy.deepcopy(self._empty))
        self._previous: Tensor | None = None  # η of the last update, normalised units
        self._accepted: Tensor | None = None  # the last certified solution, normalised: bounds the fallback
        self._common = [math.nan] * (max(kinds) + 1)  # in units of u

    @property
    def needs_third(self) -> bool:
        """Whether the rates depend on D3."""
        return self.solver.uses_third and self.internal_damping > 0

    def observe(self, gradient: Tensor, hessian: Tensor, third: Tensor, norms: Tensor) -> Tensor:
        """Add one summary, normalised, to the average; return the average, packed.

        Args:
            gradient, hessian, third: ḡ (S,), H̄ (S, S) (for a diagonal solver its diagonal, (S,)) and D3
                (S,), float64 on the CPU.
            norms: ‖P_s u‖ of the direction of the summary, (S,).
        """
        scale = self._scale(norms)
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        squares = inverse**2 if hessian.dim() == 1 else torch.outer(inverse, inverse)
        packed = torch.cat([gradient * inverse, (hessian * squares).flatten(), third * inverse**3])
        return self.averaging.update(packed)

    def solve(self, average: Tensor, norms: Tensor, *, silent: Tensor | None = None) -> Solved:
        """Solve for the rates of a direction with group norms ``norms``; the next update starts from them.

        Groups in which the direction vanishes, or has no effect that can be told from rounding noise, take no
        part and get the rate 0.

        Args:
            average: the value of :meth:`observe`.
            norms: current ‖P_s u‖, (S,).
            silent: groups without an effect, (S,), bool; None: there are none.
        """
        model, scale = self._model(average), self._scale(norms)
        silent = torch.zeros_like(norms, dtype=torch.bool) if silent is None else silent & (norms > 0)
        active = (norms > 0) & ~silent
        if not active.any():  # the loss does not depend on the rates
            zeros = torch.zeros(self._size, dtype=torch.float64)
            return self._solved(model, zeros, Solution(zeros, AT_REST), scale, silent)
        common = self._common_rates(model, torch.where(active, scale, 0.0))
        solution = self._minimiser(model, active, common)
        rates = torch.zeros(self._size, dtype=torch.float64)
        rates[active] = solution.rates
        if common is not None:
            rates = common.bounded(rates)
            self._common = common.rates
        if not solution.fell_back:
            self._accepted = rates
        if self.negative_rates is not NegativeRates.KEEP:
            rates = rates.clamp(min=0)
        self._previous = rates
        return self._solved(model, torch.where(active, rates / scale, 0.0), solution, scale, silent)

    def state_dict(self) -> dict[str, Any]:
        """The average, the rates in force and the last certified solution."""
        return {
            "averaging": self.averaging.state_dict(),
            "previous": self._previous,
            "accepted": self._accepted,
            "common": [rate if math.isfinite(rate) else None for rate in self._common],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.averaging.load_state_dict(state["averaging"])
        self._previous, self._accepted = state["previous"], state["accepted"]
        self._common = [math.nan if rate is None else rate for rate in state["common"]]

    def _model(self, average: Tensor) -> Model:
        """The model of a packed average, in normalised units."""
        size = self._size
        if self.solver.diagonal:
            gradient, diagonal, third = average.split([size, size, size])
            hessian = torch.diag(diagonal)
        else:
            gradient, hessian, third = average.split([size, size * size, size])
            hessian = hessian.view(size, size)
        constrained = self.negative_rates is NegativeRates.CONSTRAIN
        return Model(gradient, hessian, third, self.internal_damping, constrained, math.inf)

    def _common_rates(self, model: Model, lengths: Tensor) -> Common | None:
        """The common rates, in normalised units; ``lengths`` are 0 in groups that take no part."""
        if not self.shrinkage:
            return None
        return common_rates(
            model.gradient,
            model.hessian,
            model.third,
            lengths,
            model.internal_damping,
            self.solver,
            self._common,
            self._kinds,
        )

    def _minimiser(self, model: Model, active: Tensor, common: Common | None) -> Solution:
        """The solution over the active groups, with shrinkage and proximal term, in normalised units."""
        target, matrix = model.gradient[active], model.hessian[active][:, active]
        curvature = matrix.diagonal().abs()
        pulls: list[tuple[Tensor | float, Tensor]] = []  # pairs of a weight and the rates it pulls towards
        if common is not None:
            weights = torch.where(common.known, self.shrinkage, 0.0)[active]
            pulls.append((weights, common.target.nan_to_num()[active]))
        if self.proximal and self._previous is not None:
            pulls.append((self.proximal, self._previous[active]))
        for weight, towards in pulls:
            pull = weight * curvature
            matrix = matrix + torch.diag(pull)
            target = target + pull * towards
        return self.solver.solve(
            replace(
                model,
                gradient=target,
                hessian=matrix,
                third=model.third[active],
                radius=math.inf if self._accepted is None else self._accepted[active],
            )
        )

    def _solved(
        self, model: Model, rates: Tensor, solution: Solution, scale: Tensor, silent: Tensor
    ) -> Solved:
        """Rates in units of the current u, with the model in the same units."""
        third = model.third * scale**3 if self.needs_third else torch.full_like(model.third, math.nan)
        return Solved(
            rates=rates,
            gradient=model.gradient * scale,
            curvature=model.hessian.diagonal() * scale**2,
            third=third,  # NaN where the rates do not depend on it: then it is not computed
            solution=solution,
            silent=silent,
        )

    def _scale(self, norms: Tensor) -> Tensor:
        return norms if self.normalise else torch.ones_like(norms)


@dataclass(frozen=True)
class RateUpdate:
    """One update of the rates, for logs.

    Attributes:
        step: number of training steps before it.
        solved: the rates before the step size λ_1, and the model that they were solved from.
        names: name of each entry of the vectors in ``solved``: a group of the partition, or
            ``group:direction`` for several directions.
        step_size: λ_1 of each entry at this update.
        loss: loss of the curvature batch, at the parameters before the step.
        summary_seconds, solve_seconds: wall time of the two parts.
        warming_up: whether the update only fed the average, and its rates are not put in force.
        rejected: number of updates rejected so far (:class:`~gnewton.optim.safeguard.Safeguard`).
    """

    step: int
    solved: Solved
    names: tuple[str, ...]
    step_size: list[float]
    loss: float
    summary_seconds: float
    solve_seconds: float
    warming_up: bool
    rejected: int = 0
