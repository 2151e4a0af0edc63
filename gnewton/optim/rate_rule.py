"""From a summary to learning rates: normalise, average, solve, post-process.

All of it happens in float64 on the CPU on a handful of numbers; the caller makes one transfer each way.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from gnewton.arguments import check_flag, check_kind, check_number
from gnewton.cubic import CubicStatus
from gnewton.errors import InputError
from gnewton.optim.averaging import Averaging, NoAveraging
from gnewton.optim.rate_bounds import Common, MedianBound, common_rates
from gnewton.optim.solvers import Answer, Model, Solver, parse_solver

INVALID = CubicStatus.INVALID_INPUT.value
"""Status logged for an update whose summary was not finite: the rates before it stay in force."""

AT_REST = "at_rest"
"""Status logged for an update at which the direction has no effect in any group: nothing is to be solved."""


class NegativeRates(str, Enum):
    """What becomes of rates that the cubic model would have negative."""

    KEEP = "keep"
    CLIP = "clip"
    CONSTRAIN = "constrain"

    @classmethod
    def parse(cls, value: str | NegativeRates) -> NegativeRates:
        """The member named ``value``, or an error that lists them."""
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(member.value for member in cls)
            raise InputError(f"negative_rates={value}: must be one of {allowed}") from None


@dataclass(frozen=True)
class Solved:
    """The outcome of one solve; vectors are float64 on the CPU, in units of the present u.

    Each has one entry per group and direction, (S,) where there is one direction.

    Attributes:
        rates: η in force, (S,): averaged, bounded and clipped as asked, before the damping λ_1.
        gradient, curvature, third: ḡ_s, H̄_ss and D3_s that were solved with, (S,), averaged as asked.
        status: how the solve ended, a value of :class:`~gnewton.cubic.CubicStatus`, or one of
            :mod:`gnewton.optim.rate_rule`.
        radius: r = ‖Dη‖ of the solution.
        residual: relative residual of the first-order condition.
        curvature_margin: smallest eigenvalue of D⁻¹M(r)D⁻¹ (see :class:`~gnewton.cubic.CubicSolution`).
        fell_back: whether the model was unbounded below and the fallback supplied the rates.
        capped: entries whose rate the trust radius lowered.
        silent: entries that take no part, as they cannot be told from rounding noise, (S,), bool; None: none.
        internal_damping: λ_int the rates were solved with.
    """

    rates: Tensor
    gradient: Tensor
    curvature: Tensor
    third: Tensor
    status: str
    radius: float
    residual: float
    curvature_margin: float
    fell_back: bool
    capped: int = 0
    silent: Tensor | None = None
    internal_damping: float = math.nan


@dataclass(frozen=True)
class Proposal:
    """Rates that are not in force yet: what :meth:`RateRule.commit` turns into state.

    Attributes:
        solved: the rates and how they were found.
        unclipped, clipped: η before and after bounds and clipping, in normalised units; None: at rest.
        certified: the solution itself in normalised units, where there was a minimiser.
        common: the common rate of each direction; None: rates are not shrunk.
    """

    solved: Solved
    unclipped: Tensor | None = None
    clipped: Tensor | None = None
    certified: Tensor | None = None
    common: list[float] | None = None


def invalid(rates: Tensor, gradient: Tensor, hessian: Tensor, third: Tensor) -> Proposal:
    """The rates in force once more, for a summary that is not finite; nothing in it changes the state."""
    nan = math.nan
    curvature = hessian if hessian.dim() == 1 else hessian.diagonal()
    return Proposal(Solved(rates, gradient, curvature, third, INVALID, nan, nan, nan, fell_back=False))


def unmeasured(rates: Tensor) -> Proposal:
    """The rates in force once more, for an update that has no summary."""
    unknown = torch.full_like(rates, math.nan)
    return invalid(rates, unknown, unknown, unknown)


class RateRule:
    """Turns the summaries of successive updates into learning rates, one per group.

    Args:
        groups: S.
        solver: what is solved, one of :data:`gnewton.optim.solvers.SOLVERS`.
        internal_damping: λ_int >= 0 of the cubic term.
        negative_rates: "keep" signed rates, "clip" them to 0 after the solve, or "constrain" the solve to
            rates >= 0.
        rate_momentum: μ in [0, 1): η ← μ η_old + (1 − μ) η, on the unclipped rates.
        rate_median: updates over whose median no rate may rise, see :class:`MedianBound`; None: no bound.
        shrinkage: τ >= 0 of the term (τ/2)(η − c)ᵀ diag|H̄| (η − c) that pulls the rates of a direction
            towards their common rate c; a shrunk rate is within a factor of 8 of it
            (:mod:`gnewton.optim.rate_rule`). 0: none.
        proximal: μ >= 0 of the proximal term (μ/2)(η − η_prev)ᵀ diag|H̄| (η − η_prev).
        averaging: the average of (ḡ, H̄, D3) over updates.
        normalise: whether summaries are averaged in units of n_s = ‖P_s u‖, so that old ones stay comparable
            while the length of u changes.
        bounds: the lowest and the highest rate, in units of the present u; None: no bounds.
        directions: k; the entries are pairs (group, direction), the latter running faster.
    """

    def __init__(
        self,
        groups: int,
        *,
        solver: str | Solver = "cubic",
        internal_damping: float = 1.0,
        negative_rates: str | NegativeRates = NegativeRates.CLIP,
        rate_momentum: float = 0.0,
        rate_median: int | None = None,
        shrinkage: float = 0.0,
        proximal: float = 0.0,
        averaging: Averaging | None = None,
        normalise: bool = True,
        bounds: tuple[float, float] | None = None,
        directions: int = 1,
    ) -> None:
        check_number("internal_damping", internal_damping, at_least=0)
        check_number("rate_momentum", rate_momentum, at_least=0, below=1)
        check_number("shrinkage", shrinkage, at_least=0)
        check_number("proximal", proximal, at_least=0)
        check_kind("averaging", averaging, Averaging, "ExponentialAveraging(0.95)")
        check_flag("normalise", normalise)
        if bounds is not None and not -math.inf < bounds[0] < bounds[1] < math.inf:
            raise InputError(f"lowest={bounds[0]}, highest={bounds[1]}: must be finite, lowest < highest")
        self.solver = parse_solver(solver)
        self.internal_damping = internal_damping
        self.negative_rates = NegativeRates.parse(negative_rates)
        if self.negative_rates is NegativeRates.CONSTRAIN and not self.solver.constrains:
            raise InputError("negative_rates=constrain: solver=newton has no such form; use clip or keep")
        self.rate_momentum = rate_momentum
        self.shrinkage = shrinkage
        self.proximal = proximal
        self.averaging = averaging if averaging is not None else NoAveraging()
        self._empty = copy.deepcopy(self.averaging.state_dict())
        self.normalise = normalise
        self.bounds = bounds
        self._directions = directions
        self._median = MedianBound(rate_median) if rate_median is not None else None
        self.restart(groups)

    def restart(self, groups: int) -> None:
        """Forget every summary and rate so far, and go on with ``groups`` of them."""
        self._groups = groups
        self.averaging.load_state_dict(copy.deepcopy(self._empty))
        if self._median is not None:
            self._median.load_state_dict({"history": []})
        self._unclipped: Tensor | None = None  # η before bounds and clipping, normalised units, averaged
        self._previous: Tensor | None = None  # η after them, normalised units
        self._accepted: Tensor | None = None  # the last certified solution, normalised: bounds the fallback
        self._common = [math.nan] * self._directions  # in units of u

    @property
    def needs_third(self) -> bool:
        """Whether D3 has a part in the rates."""
        return self.solver.uses_third and self.internal_damping > 0

    def observe(self, gradient: Tensor, hessian: Tensor, third: Tensor, norms: Tensor) -> Tensor:
        """Normalise one summary, take it into the average and return the average, packed.

        Args:
            gradient, hessian, third: ḡ (S,), H̄ (S, S), or its diagonal (S,) for a solver that needs no
                more, and D3 (S,), float64 on the CPU.
            norms: ‖P_s u‖ of the direction the summary was taken along, (S,).
        """
        scale = self._scale(norms)
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        squares = inverse**2 if hessian.dim() == 1 else torch.outer(inverse, inverse)
        packed = torch.cat([gradient * inverse, (hessian * squares).flatten(), third * inverse**3])
        return self.averaging.update(packed)

    def propose(
        self, average: Tensor, norms: Tensor, *, factor: float = 1.0, silent: Tensor | None = None
    ) -> Proposal:
        """Solve for the rates of a direction with group norms ``norms``; nothing is kept yet.

        Groups in which the direction vanishes, or has no effect that could be told from rounding noise, take
        no part and get the rate 0.

        Args:
            average: what :meth:`observe` returned.
            norms: ‖P_s u‖ now, (S,).
            factor: of λ_int for this solve.
            silent: the groups without an effect, (S,), bool; None: there are none.
        """
        gradient, hessian, third = self._unpack(average)
        silent = torch.zeros_like(norms, dtype=torch.bool) if silent is None else silent & (norms > 0)
        active = (norms > 0) & ~silent
        if not active.any():
            return Proposal(self._at_rest(gradient, hessian, third, norms, silent, factor))
        scale = self._scale(norms)
        common = self._shared(gradient, hessian, third, torch.where(active, scale, 0.0), factor)
        answer = self._solve(gradient, hessian, third, active, factor, common)
        rates = torch.zeros(self._groups, dtype=torch.float64)
        rates[active] = answer.rates
        if common is not None:
            rates = common.bounded(rates)
        certified = None if answer.fell_back else rates
        if self.rate_momentum and self._unclipped is not None:
            rates = self.rate_momentum * self._unclipped + (1 - self.rate_momentum) * rates
        clipped = self._bound(rates)
        if self.bounds is not None:
            clipped = clipped.clamp(min=self.bounds[0] * scale, max=self.bounds[1] * scale)
        solved = Solved(
            rates=torch.where(active, clipped / scale, 0.0),
            gradient=gradient * scale,
            curvature=hessian.diagonal() * scale**2,
            third=self._logged_third(third, scale),
            status=answer.status,
            radius=answer.radius,
            residual=answer.residual,
            curvature_margin=answer.curvature_margin,
            fell_back=answer.fell_back,
            silent=silent,
            internal_damping=self.internal_damping * factor,
        )
        return Proposal(solved, rates, clipped, certified, None if common is None else common.rates)

    def predicted(self, average: Tensor, norms: Tensor, rates: Tensor, *, factor: float = 1.0) -> float:
        """The decrease of the model, without its proximal term, from rates 0 to ``rates``.

        Args:
            average: what :meth:`observe` returned.
            norms: ‖P_s u‖ now, (S,).
            rates: in units of the present u, damped as the step is, (S,).
            factor: of λ_int.
        """
        gradient, hessian, third = self._unpack(average)
        constrained = self.negative_rates is NegativeRates.CONSTRAIN
        damping = self.internal_damping * factor
        model = Model(gradient, hessian, third, damping, constrained, math.inf)
        return -self.solver.value(model, rates * self._scale(norms))

    def commit(self, proposal: Proposal) -> Solved:
        """Put proposed rates in force: they are what the next update starts from."""
        if proposal.unclipped is not None and proposal.clipped is not None:
            self._unclipped, self._previous = proposal.unclipped, proposal.clipped
            if self._median is not None:
                self._median.record(proposal.unclipped)
        if proposal.certified is not None:
            self._accepted = proposal.certified
        if proposal.common is not None:
            self._common = proposal.common
        return proposal.solved

    def state_dict(self) -> dict[str, Any]:
        """The average, the rates in force, their history and the last certified solution."""
        return {
            "averaging": self.averaging.state_dict(),
            "unclipped": self._unclipped,
            "previous": self._previous,
            "accepted": self._accepted,
            "common": [rate if math.isfinite(rate) else None for rate in self._common],
            "median": None if self._median is None else self._median.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.averaging.load_state_dict(state["averaging"])
        self._unclipped, self._previous = state["unclipped"], state["previous"]
        self._accepted = state["accepted"]
        self._common = [math.nan if rate is None else rate for rate in state["common"]]
        if self._median is not None and state["median"] is not None:
            self._median.load_state_dict(state["median"])

    def _unpack(self, average: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = self._groups
        if self.solver.diagonal:
            gradient, diagonal, third = average.split([size, size, size])
            return gradient, torch.diag(diagonal), third
        gradient, hessian, third = average.split([size, size * size, size])
        return gradient, hessian.view(size, size), third

    def _shared(
        self, gradient: Tensor, hessian: Tensor, third: Tensor, lengths: Tensor, factor: float
    ) -> Common | None:
        """The common rates, in normalised units; ``lengths`` are 0 for the groups that take no part."""
        if not self.shrinkage:
            return None
        damping = self.internal_damping * factor
        return common_rates(gradient, hessian, third, lengths, damping, self.solver, self._common)

    def _solve(
        self,
        gradient: Tensor,
        hessian: Tensor,
        third: Tensor,
        active: Tensor,
        factor: float,
        common: Common | None,
    ) -> Answer:
        """The solution over the active groups, shrinkage and proximal term included, in normalised units."""
        target, matrix = gradient[active], hessian[active][:, active]
        curvature = matrix.diagonal().abs()
        pulls: list[tuple[Tensor | float, Tensor]] = []  # weights, and the rates they pull towards
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
            Model(
                gradient=target,
                hessian=matrix,
                third=third[active],
                internal_damping=self.internal_damping * factor,
                nonnegative=self.negative_rates is NegativeRates.CONSTRAIN,
                radius=math.inf if self._accepted is None else self._accepted[active],
            )
        )

    def _bound(self, rates: Tensor) -> Tensor:
        """Rates within their median, negative ones clipped."""
        if self._median is not None:
            rates = self._median.bound(rates)
        if self.negative_rates is not NegativeRates.KEEP:
            rates = rates.clamp(min=0)
        return rates

    def _logged_third(self, third: Tensor, scale: Tensor) -> Tensor:
        """D3 in units of the present u; NaN where it has no part in the rates and is not computed."""
        return third * scale**3 if self.needs_third else torch.full_like(third, math.nan)

    def _at_rest(
        self, gradient: Tensor, hessian: Tensor, third: Tensor, norms: Tensor, silent: Tensor, factor: float
    ) -> Solved:
        """The direction has no effect in any group: whatever the rates, the loss stays."""
        zeros = torch.zeros(self._groups, dtype=torch.float64)
        scale = self._scale(norms)
        return Solved(
            rates=zeros,
            gradient=gradient * scale,
            curvature=hessian.diagonal() * scale**2,
            third=self._logged_third(third, scale),
            status=AT_REST,
            radius=0.0,
            residual=0.0,
            curvature_margin=0.0,
            fell_back=False,
            silent=silent,
            internal_damping=self.internal_damping * factor,
        )

    def _scale(self, norms: Tensor) -> Tensor:
        return norms if self.normalise else torch.ones_like(norms)
