"""The public entry: check the inputs, choose the case, return rates with their certificate."""

from __future__ import annotations

import math

import numpy as np

from gnewton.arguments import explained
from gnewton.cubic.finite import all_finite
from gnewton.cubic.inputs import Inputs, checked
from gnewton.cubic.nonnegative import nonnegative_minimiser
from gnewton.cubic.problem import Problem, scaled
from gnewton.cubic.solution import Array, CubicSolution, CubicStatus
from gnewton.cubic.trust import Candidate
from gnewton.cubic.unconstrained import unconstrained


@explained(internal_damping="λ_int is damping=", damping="λ_int, the weight of the cubic term")
def solve_cubic(
    hessian: Array,
    gradient: Array,
    third: Array | None,
    damping: float,
    *,
    nonnegative: bool = False,
) -> CubicSolution:
    """The global minimiser of the summary's model with anisotropic cubic regularisation.

    ``m(η) = −ḡᵀη + ½ ηᵀH̄η + (λ/6)·‖Dη‖³`` with ``D = Diag(|D3_s|^{1/3})`` (Wolinski, arXiv 2312.03885; after
    Nesterov & Polyak 2006). η minimises m globally iff ``M(r)η = ḡ`` and ``M(r) = H̄ + (λ/2) r D² ⪰ 0`` with
    ``r = ‖Dη‖``. Both are computed from the rates that are returned, and returned with them.

    Args:
        hessian: H̄, shape (S, S), symmetric up to rounding; a tensor of any device and dtype, or an array.
        gradient: ḡ, shape (S,); the direction points uphill, so positive rates step downhill.
        third: D3, shape (S,), of any sign; None for no cubic term.
        damping: λ ≥ 0, the internal damping.
        nonnegative: minimise over rates ≥ 0 instead (which is not the same as clipping afterwards).

    Returns:
        The rates with their status and certificate; zeros where there is no minimiser. Work is done in
        float64 on the CPU.

    Raises:
        InputError: for an empty model, shapes that do not match, a Hessian that is asymmetric beyond
            rounding, or a damping that is negative or not finite. Never for finite numbers as such.
    """
    inputs = checked(hessian, gradient, third, damping)
    if not inputs.finite:
        return _nothing(inputs, CubicStatus.INVALID_INPUT)
    with np.errstate(all="ignore"):
        problem = scaled(inputs.hessian, inputs.gradient, inputs.third, inputs.damping)
        if not (all_finite(problem.hessian) and all_finite(problem.gradient)):
            return _nothing(inputs, CubicStatus.INVALID_INPUT)
        try:
            found = nonnegative_minimiser(problem) if nonnegative else unconstrained(problem)
        except (ArithmeticError, np.linalg.LinAlgError):  # numbers at the ends of float64
            found = CubicStatus.UNCERTIFIED
        if isinstance(found, CubicStatus):
            return _nothing(inputs, found)
        return _solution(inputs, problem, found)


def _solution(inputs: Inputs, problem: Problem, found: Candidate) -> CubicSolution:
    rates = problem.rates(found.x)
    lengths = np.cbrt(np.abs(inputs.third)) * rates
    radius = math.sqrt(lengths.dot(lengths))
    if not (all_finite(rates) and math.isfinite(radius)):
        return _nothing(inputs, CubicStatus.INVALID_INPUT)
    if found.status is CubicStatus.UNCERTIFIED:
        rates, radius = np.zeros_like(rates), 0.0
    return CubicSolution(
        inputs.answer(rates), radius, found.status, found.residual, found.margin, found.iterations
    )


def _nothing(inputs: Inputs, status: CubicStatus) -> CubicSolution:
    rates = np.zeros(len(inputs.gradient))
    return CubicSolution(inputs.answer(rates), 0.0, status, np.inf, -np.inf, 0)
