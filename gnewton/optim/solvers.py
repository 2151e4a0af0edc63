"""From (ḡ, H̄, D3) to rates: the cubic model, its cheaper and cruder relatives, by name."""

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
"""Status of bare Newton: a stationary point of the quadratic model, be it a minimum or not."""


@dataclass(frozen=True)
class Model:
    """The local model of the loss over the rates of S groups; float64 on the CPU.

    Attributes:
        gradient: ḡ, (S,).
        hessian: H̄, (S, S).
        third: D3, (S,).
        internal_damping: λ_int >= 0.
        nonnegative: whether rates have to be >= 0.
        radius: bound on each |η_s| where the model has no minimum, (S,); inf: none.
    """

    gradient: Tensor
    hessian: Tensor
    third: Tensor
    internal_damping: float
    nonnegative: bool
    radius: Tensor | float


@dataclass(frozen=True)
class Answer:
    """Rates (S,), how they were found and what certifies them; see :class:`~gnewton.cubic.CubicSolution`."""

    rates: Tensor
    status: str
    radius: float
    residual: float
    curvature_margin: float
    fell_back: bool


class Solver(ABC):
    """Finds rates from a model.

    Attributes:
        diagonal: whether only the diagonal of H̄ is used, so that the rest need not be computed.
        uses_third: whether D3 is used.
        uses_damping: whether λ_int has an effect.
        constrains: whether it can respect η >= 0 within the solve.
    """

    diagonal: ClassVar[bool] = False
    uses_third: ClassVar[bool] = True
    uses_damping: ClassVar[bool] = True
    constrains: ClassVar[bool] = True

    @abstractmethod
    def solve(self, model: Model) -> Answer:
        """The rates; finite whatever the model."""

    def value(self, model: Model, rates: Tensor) -> float:
        """The model at given rates, 0 at rates of 0."""
        quadratic = rates @ model.hessian @ rates / 2 - model.gradient @ rates
        return float(quadratic + self.regularisation(model, rates))

    @abstractmethod
    def regularisation(self, model: Model, rates: Tensor) -> Tensor | float:
        """What is added to the quadratic model of the loss."""


class CubicSolver(Solver):
    """The global minimiser of −ḡᵀη + ½ ηᵀH̄η + (λ_int/6)‖Dη‖³, D = Diag(|D3_s|^{1/3})."""

    def solve(self, model: Model) -> Answer:
        """By :func:`gnewton.cubic.solve_cubic`; where there is no minimiser, by its fallback."""
        return _minimise(model, model.hessian, model.third, model.internal_damping)

    def regularisation(self, model: Model, rates: Tensor) -> Tensor | float:
        """(λ_int/6)‖Dη‖³."""
        lengths = model.third.abs() ** (1 / 3) * rates
        return model.internal_damping / 6 * lengths.norm() ** 3


class DiagonalCubicSolver(CubicSolver):
    """The cubic model without the interactions of the groups: H̄ is replaced by its diagonal."""

    diagonal: ClassVar[bool] = True


class RidgeSolver(Solver):
    """(H̄ + λ_int diag|H̄|) η = ḡ: a quadratic term in place of the cubic one (Levenberg–Marquardt).

    The diagonal of H̄ keeps the invariance under a rescaling of the groups, which λ_int times the identity
    would break.
    """

    uses_third: ClassVar[bool] = False

    def solve(self, model: Model) -> Answer:
        """By :func:`gnewton.cubic.solve_cubic` without cubic term, hence with its fallback."""
        ridge = torch.diag(model.internal_damping * model.hessian.diagonal().abs())
        return _minimise(model, model.hessian + ridge, None, 0.0)

    def regularisation(self, model: Model, rates: Tensor) -> Tensor | float:
        """(λ_int/2) ηᵀ diag|H̄| η."""
        return model.internal_damping / 2 * (model.hessian.diagonal().abs() @ rates**2)


class NewtonSolver(Solver):
    """η = H̄⁻¹ ḡ as it stands: where H̄ is indefinite this is a saddle, where it is singular the shortest η."""

    uses_third: ClassVar[bool] = False
    uses_damping: ClassVar[bool] = False
    constrains: ClassVar[bool] = False

    def solve(self, model: Model) -> Answer:
        """By least squares in units in which every |H̄_ss| is one: the scale of a group is immaterial."""
        unit = model.hessian.diagonal().abs().rsqrt().nan_to_num(nan=1.0, posinf=1.0)
        scaled, target = model.hessian * torch.outer(unit, unit), model.gradient * unit
        found = torch.linalg.lstsq(scaled, target.unsqueeze(1), driver="gelsd").solution.squeeze(1)
        rates = found * unit
        if not bool(torch.isfinite(rates).all()):
            return Answer(
                torch.zeros_like(rates), CubicStatus.INVALID_INPUT.value, 0.0, math.inf, -math.inf, False
            )
        size = float(target.norm() + found.norm())
        residual = float((scaled @ found - target).norm()) / size if size > 0 else 0.0
        margin = float(torch.linalg.eigvalsh(scaled)[0])
        return Answer(rates, STATIONARY, 0.0, residual, margin, False)

    def regularisation(self, model: Model, rates: Tensor) -> Tensor | float:
        """None."""
        return 0.0


SOLVERS: dict[str, type[Solver]] = {
    "cubic": CubicSolver,
    "cubic_diagonal": DiagonalCubicSolver,
    "ridge": RidgeSolver,
    "newton": NewtonSolver,
}
"""The solvers by the name under which they can be chosen."""


def parse_solver(solver: str | Solver) -> Solver:
    """The solver of that name, or the one given.

    Raises:
        InputError: if no solver has that name.
    """
    if isinstance(solver, Solver):
        return solver
    check_name("solver", solver, SOLVERS)
    return SOLVERS[solver]()


def _minimise(model: Model, hessian: Tensor, third: Tensor | None, damping: float) -> Answer:
    gradient, nonnegative = model.gradient, model.nonnegative
    solution = solve_cubic(hessian, gradient, third, damping, nonnegative=nonnegative)
    rates = solution.rates
    if not solution.bounded:
        rates = fallback(hessian, gradient, third, damping, radius=model.radius, nonnegative=nonnegative)
    return Answer(
        torch.as_tensor(rates),
        solution.status.value,
        float(solution.radius),
        float(solution.residual),
        float(solution.curvature_margin),
        not solution.bounded,
    )
