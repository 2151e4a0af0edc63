"""Entry point of the cubic solver: check the inputs, choose the case, return rates with their certificate."""

from __future__ import annotations

import math

import numpy as np

from gnewton.arguments import explained
from gnewton.cubic.inputs import Inputs, all_finite, checked
from gnewton.cubic.model import CubicModel, scaled
from gnewton.cubic.nonnegative import nonnegative_minimiser
from gnewton.cubic.solution import Array, Candidate, CubicSolution, CubicStatus
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
    ``r = ‖Dη‖``. Both conditions are evaluated at the returned rates and returned with them.

    Args:
        hessian: H̄, shape (S, S), symmetric up to rounding; a tensor of any device and dtype, or an array.
        gradient: ḡ, shape (S,); the direction points uphill, so positive rates step downhill.
        third: D3, shape (S,), of any sign; None for no cubic term.
        damping: λ ≥ 0, the internal damping.
        nonnegative: whether to minimise over rates ≥ 0, which differs from clipping the minimiser.

    Returns:
        The rates with their status and certificate; zeros where there is no minimiser. The computation is in
        float64 on the CPU.

    Raises:
        InputError: for an empty model, shapes that do not match, a Hessian that is asymmetric beyond
            rounding, or a damping that is negative or not finite. Finite entries never raise it.
    """
    inputs = checked(hessian, gradient, third, damping)
    if not inputs.finite:
        return _nothing(inputs, CubicStatus.INVALID_INPUT)
    with np.errstate(all="ignore"):
        model = scaled(inputs.hessian, inputs.gradient, inputs.third, inputs.damping)
        if not (all_finite(model.hessian) and all_finite(model.gradient)):
            return _nothing(inputs, CubicStatus.INVALID_INPUT)
        try:
            candidate = nonnegative_minimiser(model) if nonnegative else unconstrained(model)
        except (ArithmeticError, np.linalg.LinAlgError):  # entries near the limits of float64
            candidate = CubicStatus.UNCERTIFIED
        if isinstance(candidate, CubicStatus):
            return _nothing(inputs, candidate)
        return _solution(inputs, model, candidate)


def _solution(inputs: Inputs, model: CubicModel, candidate: Candidate) -> CubicSolution:
    rates = model.rates(candidate.x)
    lengths = np.cbrt(np.abs(inputs.third)) * rates
    radius = math.sqrt(lengths.dot(lengths))
    if not (all_finite(rates) and math.isfinite(radius)):
        return _nothing(inputs, CubicStatus.INVALID_INPUT)
    if candidate.status is CubicStatus.UNCERTIFIED:
        rates, radius = np.zeros_like(rates), 0.0
    return CubicSolution(
        inputs.answer(rates),
        radius,
        candidate.status,
        candidate.residual,
        candidate.margin,
        candidate.iterations,
    )


def _nothing(inputs: Inputs, status: CubicStatus) -> CubicSolution:
    rates = np.zeros(len(inputs.gradient))
    return CubicSolution(inputs.answer(rates), 0.0, status, np.inf, -np.inf, 0)
