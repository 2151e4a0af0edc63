"""From (ḡ, H̄, D3) to rates, by the name of a solver; and the one rate that would be common to all groups."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gnewton.arguments import check_name
from gnewton.cubic import CubicStatus, fallback, solve_cubic

STATIONARY = "stationary"
"""Status of the bare Newton solver: a stationary point of the quadratic model, minimum or not."""


@dataclass(frozen=True)
class Model:
    """The local model of the loss over the rates of S groups; float64 on the CPU.

    Attributes:
        gradient: ḡ, (S,).
        hessian: H̄, (S, S).
        third: D3, (S,).
        internal_damping: λ_int >= 0.
        nonnegative: whether rates must be >= 0.
        radius: bound on each |η_s| if the model has no minimum, (S,); inf: no bound.
    """

    gradient: Tensor
    hessian: Tensor
    third: Tensor
    internal_damping: float
    nonnegative: bool
    radius: Tensor | float


@dataclass(frozen=True)
class Solution:
    """The result of one solve, with its certificate.

    Attributes:
        rates: η, (S,), finite.
        status: how the solve ended: a value of :class:`~gnewton.cubic.CubicStatus`, :data:`STATIONARY`, or
            :data:`~gnewton.optim.rate_rule.AT_REST`.
        radius: r = ‖Dη‖ of the solution.
        residual: relative residual of the first-order condition.
        curvature_margin: smallest eigenvalue of D⁻¹M(r)D⁻¹ (see :class:`~gnewton.cubic.CubicSolution`).
        fell_back: whether the model was unbounded below, so that the fallback supplied the rates.
    """

    rates: Tensor
    status: str
    radius: float = 0.0
    residual: float = 0.0
    curvature_margin: float = 0.0
    fell_back: bool = False


class Solver(ABC):
    """A method to find rates from a model.

    Attributes:
        diagonal: whether it needs only the diagonal of H̄.
        uses_third: whether D3 is used.
        constrains: whether it can enforce η >= 0 within the solve.
    """

    diagonal: ClassVar[bool] = False
    uses_third: ClassVar[bool] = True
    constrains: ClassVar[bool] = True

    @abstractmethod
    def solve(self, model: Model) -> Solution:
        """The rates, finite for every model."""


class CubicSolver(Solver):
    """The global minimiser of −ḡᵀη + ½ ηᵀH̄η + (λ_int/6)‖Dη‖³, D = Diag(|D3_s|^{1/3})."""

    def solve(self, model: Model) -> Solution:
        """Solve by :func:`gnewton.cubic.solve_cubic`, or by its fallback if there is no minimiser."""
        return _minimise(model, model.hessian, model.third, model.internal_damping)


class DiagonalCubicSolver(CubicSolver):
    """The cubic model without interactions between groups: H̄ is replaced by its diagonal."""

    diagonal: ClassVar[bool] = True


class RidgeSolver(Solver):
    """(H̄ + λ_int diag|H̄|) η = ḡ: a quadratic term instead of the cubic one (Levenberg–Marquardt).

    The diagonal of H̄ keeps the invariance under rescaling of the groups; λ_int times the identity would
    break it.
    """

    uses_third: ClassVar[bool] = False

    def solve(self, model: Model) -> Solution:
        """Solve by :func:`gnewton.cubic.solve_cubic` without the cubic term, with the same fallback."""
        ridge = torch.diag(model.internal_damping * model.hessian.diagonal().abs())
        return _minimise(model, model.hessian + ridge, None, 0.0)


class NewtonSolver(Solver):
    """η = H̄⁻¹ ḡ without safeguards: a saddle point if H̄ is indefinite, the shortest η if H̄ is singular."""

    uses_third: ClassVar[bool] = False
    constrains: ClassVar[bool] = False

    def solve(self, model: Model) -> Solution:
        """Solve by least squares in units in which every |H̄_ss| is one, so that their scale cancels."""
        unit = model.hessian.diagonal().abs().rsqrt().nan_to_num(nan=1.0, posinf=1.0)
        scaled, target = model.hessian * torch.outer(unit, unit), model.gradient * unit
        solved = torch.linalg.lstsq(scaled, target.unsqueeze(1), driver="gelsd").solution.squeeze(1)
        rates = solved * unit
        if not bool(torch.isfinite(rates).all()):
            status = CubicStatus.INVALID_INPUT.value
            return Solution(torch.zeros_like(rates), status, residual=math.inf, curvature_margin=-math.inf)
        size = float(target.norm() + solved.norm())
        residual = float((scaled @ solved - target).norm()) / size if size > 0 else 0.0
        margin = float(torch.linalg.eigvalsh(scaled)[0])
        return Solution(rates, STATIONARY, residual=residual, curvature_margin=margin)


SOLVERS: dict[str, type[Solver]] = {
    "cubic": CubicSolver,
    "cubic_diagonal": DiagonalCubicSolver,
    "ridge": RidgeSolver,
    "newton": NewtonSolver,
}
"""The solvers by name."""


def parse_solver(solver: str | Solver) -> Solver:
    """The solver with this name, or ``solver`` itself.

    Raises:
        InputError: if no solver has that name.
    """
    if isinstance(solver, Solver):
        return solver
    check_name("solver", solver, SOLVERS)
    return SOLVERS[solver]()


def _minimise(model: Model, hessian: Tensor, third: Tensor | None, damping: float) -> Solution:
    gradient, nonnegative = model.gradient, model.nonnegative
    cubic = solve_cubic(hessian, gradient, third, damping, nonnegative=nonnegative)
    rates = cubic.rates
    if not cubic.bounded:
        rates = fallback(hessian, gradient, third, damping, radius=model.radius, nonnegative=nonnegative)
    return Solution(
        torch.as_tensor(rates),
        cubic.status.value,
        radius=float(cubic.radius),
        residual=float(cubic.residual),
        curvature_margin=float(cubic.curvature_margin),
        fell_back=not cubic.bounded,
    )


SPREAD = 8.0
"""Shrinkage keeps each rate within this factor of the common one."""

RISE = 1.3
"""The largest factor by which the common rate rises from one update to the next."""


@dataclass(frozen=True)
class Common:
    """The rate common to all entries of a kind, such as those of one direction.

    Attributes:
        rates: c_j of each kind; NaN: not known yet.
        target: c_j n of each entry, in normalised units, (R,).
    """

    rates: list[float]
    target: Tensor

    @property
    def known(self) -> Tensor:
        """The entries with a known common rate, (R,), bool."""
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
    kinds: Tensor,
) -> Common:
    """The minimiser over c of the model along η = c n, for the entries of each kind.

    Along this line the cubic term is (λ_int/6) c³ ‖Dn‖³, that of a third derivative ‖Dn‖³.

    Args:
        gradient, hessian, third: the model, (R,), (R, R), (R,).
        lengths: n, the factor from a rate in units of the direction to normalised units, (R,).
        internal_damping: λ_int.
        solver: the solver of the rates.
        previous: c of each kind at the last update; NaN: none.
        kinds: number of the kind of each entry, (R,).

    Returns:
        The common rates. A kind without a minimiser keeps its previous rate; one along which the loss does
        not descend takes half of it.
    """
    rates, target = [], torch.full_like(gradient, math.nan)
    for j, before in enumerate(previous):
        members = kinds == j
        n = lengths[members]
        slope = gradient[members] @ n
        solution = solver.solve(
            Model(
                gradient=slope.view(1),
                hessian=(n @ hessian[members][:, members] @ n).view(1, 1),
                third=(third[members].abs().pow(2 / 3) * n * n).sum().pow(1.5).view(1),
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
        target[members] = rate * n
    return Common(rates, target)
