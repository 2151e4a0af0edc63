"""Entry point of the cubic solver: check and convert the inputs, choose the case, certify the rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from gnewton.arguments import explained
from gnewton.cubic.model import CubicModel, curvature_units, scaled
from gnewton.cubic.nonnegative import nonnegative_minimiser
from gnewton.cubic.solution import Array, Candidate, CubicSolution, CubicStatus
from gnewton.cubic.unconstrained import unconstrained
from gnewton.errors import InputError

_ASYMMETRY = {torch.float64: 1e-5, torch.float32: 1e-3}
_ASYMMETRY_OF_OTHERS = 0.1


@dataclass(frozen=True)
class Inputs:
    """Checked inputs: ``hessian`` (S, S) symmetric, ``gradient`` (S,), ``third`` (S,), float64.

    Attributes:
        finite: whether every entry is.
        as_tensor: whether the rates are returned as a tensor.
    """

    hessian: np.ndarray
    gradient: np.ndarray
    third: np.ndarray
    damping: float
    finite: bool
    as_tensor: bool

    def answer(self, rates: np.ndarray) -> Array:
        """The rates as a tensor or an array, as the caller passed the Hessian."""
        return torch.from_numpy(rates) if self.as_tensor else rates


def checked(hessian: Array, gradient: Array, third: Array | None, damping: float) -> Inputs:
    """Copy the inputs to the CPU in one transfer and check them.

    Raises:
        InputError: for an empty model, shapes that do not match, a Hessian that is asymmetric beyond the
            rounding of its dtype, or a damping that is negative or not finite.
    """
    if not (isinstance(damping, (int, float)) and math.isfinite(damping) and damping >= 0.0):
        raise InputError(f"damping={damping!r}: must be a finite number >= 0")
    size = _check_shapes(hessian, gradient, third)
    h, g, t = _on_cpu(hessian, gradient, third, size)
    finite = all_finite(h) and all_finite(g) and all_finite(t)
    if finite and not (h == h.T).all():
        h = _symmetrised(h, _asymmetry(hessian))
    return Inputs(h, g, t, float(damping), finite, isinstance(hessian, torch.Tensor))


def _check_shapes(hessian: Array, gradient: Array, third: Array | None) -> int:
    shape = tuple(np.shape(gradient))
    if len(shape) != 1 or shape[0] == 0:
        raise InputError(f"gradient has shape {shape}: must be (S,) with S >= 1")
    size = int(shape[0])
    if np.shape(hessian) != (size, size):
        raise InputError(f"hessian has shape {tuple(np.shape(hessian))}: must be {(size, size)}")
    if third is not None and np.shape(third) != (size,):
        raise InputError(f"third has shape {tuple(np.shape(third))}: must be {(size,)}")
    return size


def _on_cpu(
    hessian: Array, gradient: Array, third: Array | None, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [hessian, gradient] if third is None else [hessian, gradient, third]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(tensors) == len(parts) and any(part.device.type != "cpu" for part in tensors):
        flat = torch.cat([part.detach().reshape(-1) for part in tensors]).cpu().to(torch.float64).numpy()
        square = size * size
        h, g = flat[:square].reshape(size, size), flat[square : square + size]
        return h, g, flat[square + size :] if third is not None else np.zeros(size)
    return (
        _as_float64(hessian),
        _as_float64(gradient),
        np.zeros(size) if third is None else _as_float64(third),
    )


def _as_float64(part: Array) -> np.ndarray:
    if isinstance(part, torch.Tensor):
        return part.detach().to("cpu", torch.float64).numpy()
    return np.asarray(part, dtype=np.float64)


def _asymmetry(hessian: Array) -> float:
    """The largest asymmetry that counts as rounding in the dtype of the Hessian."""
    dtype = hessian.dtype if isinstance(hessian, torch.Tensor) else _torch_dtype(np.asarray(hessian))
    return _ASYMMETRY.get(dtype, _ASYMMETRY_OF_OTHERS)


def _torch_dtype(array: np.ndarray) -> torch.dtype:
    return {"float32": torch.float32, "float16": torch.float16}.get(array.dtype.name, torch.float64)


def _symmetrised(hessian: np.ndarray, tolerance: float) -> np.ndarray:
    half = 0.5 * hessian
    skew = np.abs(half - half.T)
    if skew.any():
        row = np.abs(half).max(axis=1)
        if (skew > tolerance * np.maximum(row[:, None], row[None, :])).any():
            s, t = np.unravel_index(int(skew.argmax()), skew.shape)
            raise InputError(
                f"hessian[{s},{t}]={hessian[s, t]:g} and hessian[{t},{s}]={hessian[t, s]:g}: "
                "must be symmetric up to rounding"
            )
    return half + half.T


def all_finite(array: np.ndarray) -> bool:
    """Whether every entry is finite, at the price of a dot product.

    A finite sum of squares settles it in one pass. Entries beyond 1e154 overflow the sum; then each entry is
    examined.
    """
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


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


_FLOOR = 1e-2  # least eigenvalue of the positive definite Hessian, in units of the largest


def fallback(
    hessian: Array,
    gradient: Array,
    third: Array | None,
    damping: float,
    *,
    radius: float | Array,
    nonnegative: bool = False,
) -> Array:
    """A finite descent step for a model without a lower bound.

    1. In units in which every ``|H̄_ss|`` is one, replace the eigenvalues of the Hessian by their absolute
       values, at least a hundredth of the largest: H̄⁺ ⪰ H̄, positive definite.
    2. Take the minimiser η of the model with H̄⁺, cubic term included.
    3. Shorten it to the radius: ``η·min(1, radius / ‖η‖)``.

    It never raises the model m: with m⁺ the convex model of step 2 and 0 ≤ t ≤ 1,
    ``m(tη) ≤ m⁺(tη) ≤ t·m⁺(η) ≤ 0 = m(0)``, and less than zero if the gradient is not zero.

    Args:
        hessian: H̄, shape (S, S), as in :func:`~gnewton.cubic.solve_cubic`, like the next three.
        gradient: ḡ, shape (S,).
        third: D3, shape (S,), or None.
        damping: λ ≥ 0.
        radius: the largest length of the step. A number bounds the Euclidean norm of the rates
            (``math.inf``: no bound; 0: no step). The last accepted rates, shape (S,), bound it by
            their own length in the norm ``(Σ |H̄_ss| η_s²)^½``, which does not change when groups are
            rescaled.
        nonnegative: whether step 2 is over rates ≥ 0.

    Returns:
        Rates, shape (S,), always finite, a tensor or an array like ``hessian``; zeros where an input is not
        finite.

    Raises:
        InputError: as :func:`~gnewton.cubic.solve_cubic`, and for a radius that is negative or NaN.
    """
    inputs = checked(hessian, gradient, third, damping)
    bound = _checked_radius(radius, len(inputs.gradient))
    nothing = inputs.answer(np.zeros(len(inputs.gradient)))
    if not inputs.finite:
        return nothing
    with np.errstate(all="ignore"):
        units = curvature_units(inputs.hessian, inputs.gradient, np.abs(np.diagonal(inputs.hessian)))
        try:
            positive = absolute_hessian(inputs.hessian, units)
        except np.linalg.LinAlgError:
            return nothing
        if not np.isfinite(positive).all():
            return nothing
        convex = solve_cubic(positive, inputs.gradient, inputs.third, inputs.damping, nonnegative=nonnegative)
        if not convex.bounded:
            return nothing
        rates = np.asarray(convex.rates)
        norm = np.ones_like(rates) if isinstance(bound, float) else units
        length = float(np.sqrt(norm @ rates**2))
        limit = bound if isinstance(bound, float) else float(np.sqrt(norm @ bound**2))
        rates = rates * (limit / length) if length > limit else rates
    return inputs.answer(rates) if np.isfinite(rates).all() else nothing


def _checked_radius(radius: float | Array, size: int) -> float | np.ndarray:
    if isinstance(radius, (int, float)):
        if math.isnan(radius) or radius < 0.0:
            raise InputError(f"radius={radius!r}: must be a number >= 0")
        return float(radius)
    if isinstance(radius, torch.Tensor):
        radius = radius.detach().to("cpu", torch.float64).numpy()
    rates = np.asarray(radius, dtype=np.float64)
    if rates.shape != (size,) or not np.isfinite(rates).all():
        raise InputError(f"radius has shape {rates.shape}: must be a number or {size} finite rates")
    return rates


def absolute_hessian(hessian: np.ndarray, units: np.ndarray) -> np.ndarray:
    """H with its eigenvalues, in the given units, replaced by their absolute values; positive definite.

    Eigenvalues below a hundredth of the largest are raised to that. The result is ⪰ H.
    """
    p = 1.0 / np.sqrt(units)
    values, vectors = np.linalg.eigh(hessian * p[:, None] * p[None, :])
    size = np.abs(values)
    size = np.maximum(size, _FLOOR * float(size.max()) if size.any() else 1.0)
    positive = (vectors * size) @ vectors.T / p[:, None] / p[None, :]
    return 0.5 * (positive + positive.T)
