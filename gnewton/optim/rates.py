"""From a summary to learning rates: normalise, average, solve, post-process (method, sections 2 and 4).

All of it happens in float64 on the CPU on a handful of numbers; the caller makes one transfer each way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from gnewton.cubic import CubicStatus, fallback, solve_cubic
from gnewton.errors import InputError
from gnewton.optim.averaging import Averaging, NoAveraging

INVALID = CubicStatus.INVALID_INPUT.value
"""Status logged for an update whose summary was not finite: the rates before it stay in force."""

AT_REST = "at_rest"
"""Status logged for an update at which the direction is zero in every group: there is nothing to solve."""


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
    """The outcome of one update of the rates; vectors are float64 on the CPU, in units of the present u.

    Attributes:
        rates: η in force, (S,): averaged and clipped as asked, before the damping λ_1.
        gradient, curvature, third: ḡ_s, H̄_ss and D3_s that were solved with, (S,), averaged as asked.
        status: how the solve ended, a value of :class:`~gnewton.cubic.CubicStatus`, or ``AT_REST``.
        radius: r = ‖Dη‖ of the solution.
        residual: relative residual of the first-order condition.
        curvature_margin: smallest eigenvalue of D⁻¹M(r)D⁻¹ (see :class:`~gnewton.cubic.CubicSolution`).
        fell_back: whether the model was unbounded below and the fallback supplied the rates.
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


class RateRule:
    """Turns the summaries of successive updates into learning rates, one per group.

    Args:
        groups: S.
        internal_damping: λ_int >= 0 of the cubic term; 0: bare Newton on the summary.
        negative_rates: "keep" signed rates, "clip" them to 0 after the solve, or "constrain" the solve to
            rates >= 0.
        rate_momentum: μ in [0, 1): η ← μ η_old + (1 − μ) η, on the unclipped rates.
        proximal: μ >= 0 of the proximal term (μ/2)(η − η_prev)ᵀ diag|H̄| (η − η_prev).
        averaging: the average of (ḡ, H̄, D3) over updates.
        normalise: whether summaries are averaged in units of n_s = ‖P_s u‖, so that old ones stay comparable
            while the length of u changes.
    """

    def __init__(
        self,
        groups: int,
        *,
        internal_damping: float = 1.0,
        negative_rates: str | NegativeRates = NegativeRates.CLIP,
        rate_momentum: float = 0.0,
        proximal: float = 0.0,
        averaging: Averaging | None = None,
        normalise: bool = True,
    ) -> None:
        _require(internal_damping >= 0, "internal_damping", internal_damping, ">= 0")
        _require(0 <= rate_momentum < 1, "rate_momentum", rate_momentum, ">= 0 and < 1")
        _require(proximal >= 0, "proximal", proximal, ">= 0")
        self.internal_damping = internal_damping
        self.negative_rates = NegativeRates.parse(negative_rates)
        self.rate_momentum = rate_momentum
        self.proximal = proximal
        self.averaging = averaging if averaging is not None else NoAveraging()
        self.normalise = normalise
        self._groups = groups
        self._unclipped: Tensor | None = None  # η before clipping, normalised units, averaged
        self._previous: Tensor | None = None  # η after clipping, normalised units
        self._accepted: Tensor | None = (
            None  # the last certified solution, normalised units: bounds the fallback
        )

    def observe(self, gradient: Tensor, hessian: Tensor, third: Tensor, norms: Tensor) -> Tensor:
        """Normalise one summary, take it into the average and return the average, packed.

        Args:
            gradient, hessian, third: ḡ (S,), H̄ (S, S) and D3 (S,), float64 on the CPU.
            norms: ‖P_s u‖ of the direction the summary was taken along, (S,).
        """
        scale = self._scale(norms)
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        packed = torch.cat(
            [gradient * inverse, (hessian * torch.outer(inverse, inverse)).flatten(), third * inverse**3]
        )
        return self.averaging.update(packed)

    def solve(self, average: Tensor, norms: Tensor) -> Solved:
        """Solve for the rates of a direction with group norms ``norms``.

        Groups in which the direction vanishes take no part and get the rate 0.

        Args:
            average: what :meth:`observe` returned.
            norms: ‖P_s u‖ now, (S,).
        """
        size = self._groups
        gradient, hessian, third = average.split([size, size * size, size])
        hessian = hessian.view(size, size)
        active = norms > 0
        if not active.any():
            return self._at_rest(gradient, hessian, third)
        rates = torch.zeros(size, dtype=torch.float64)
        previous = self._previous if self._previous is not None else rates
        target = gradient[active]
        matrix = hessian[active][:, active]
        if self.proximal and self._previous is not None:
            pull = self.proximal * matrix.diagonal().abs()
            matrix = matrix + torch.diag(pull)
            target = target + pull * previous[active]
        constrained = self.negative_rates is NegativeRates.CONSTRAIN
        solution = solve_cubic(matrix, target, third[active], self.internal_damping, nonnegative=constrained)
        fell_back = not solution.bounded
        found = torch.as_tensor(solution.rates)
        if fell_back:
            radius = math.inf if self._accepted is None else self._accepted[active]
            step = fallback(
                matrix, target, third[active], self.internal_damping, radius=radius, nonnegative=constrained
            )
            found = torch.as_tensor(step)
        rates[active] = found
        if not fell_back:
            self._accepted = rates
        rates = self._post_process(rates)
        scale = self._scale(norms)
        return Solved(
            rates=torch.where(active, rates / scale, 0.0),
            gradient=gradient * scale,
            curvature=hessian.diagonal() * scale**2,
            third=self._logged_third(third, scale),
            status=solution.status.value,
            radius=float(solution.radius),
            residual=float(solution.residual),
            curvature_margin=float(solution.curvature_margin),
            fell_back=fell_back,
        )

    def state_dict(self) -> dict[str, Any]:
        """The average, the rates in force and the last certified solution."""
        return {
            "averaging": self.averaging.state_dict(),
            "unclipped": self._unclipped,
            "previous": self._previous,
            "accepted": self._accepted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.averaging.load_state_dict(state["averaging"])
        self._unclipped, self._previous = state["unclipped"], state["previous"]
        self._accepted = state["accepted"]

    def _logged_third(self, third: Tensor, scale: Tensor) -> Tensor:
        """D3 in units of the present u; NaN where the cubic term is off and D3 is not computed."""
        return third * scale**3 if self.internal_damping else torch.full_like(third, math.nan)

    def _at_rest(self, gradient: Tensor, hessian: Tensor, third: Tensor) -> Solved:
        """The direction is zero everywhere: whatever the rates, no parameter moves."""
        zeros = torch.zeros(self._groups, dtype=torch.float64)
        scale = self._scale(zeros)
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
        )

    def _scale(self, norms: Tensor) -> Tensor:
        return norms if self.normalise else torch.ones_like(norms)

    def _post_process(self, rates: Tensor) -> Tensor:
        """Average over updates, then clip (method, section 2: in this order; the damping comes after)."""
        if self.rate_momentum and self._unclipped is not None:
            rates = self.rate_momentum * self._unclipped + (1 - self.rate_momentum) * rates
        self._unclipped = rates
        clipped = rates if self.negative_rates is NegativeRates.KEEP else rates.clamp(min=0)
        self._previous = clipped
        return clipped


def _require(condition: bool, name: str, value: float, allowed: str) -> None:
    if not condition:
        raise InputError(f"{name}={value}: must be {allowed}")
