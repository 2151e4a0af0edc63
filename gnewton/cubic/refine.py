"""From a root of the secular equation to the minimiser, refined by Newton steps on the model itself."""

from __future__ import annotations

import numpy as np

from gnewton.cubic.certificate import residual
from gnewton.cubic.model import EPSILON, CubicModel
from gnewton.cubic.secular import Root
from gnewton.cubic.spectrum import Spectrum

_STEPS = 6
_GOOD_ENOUGH = 1e-14
_SINGULAR = 1e-9
_FAR_FROM_POLE = 1e-4


def minimiser(model: CubicModel, spectrum: Spectrum, root: Root) -> tuple[np.ndarray, bool]:
    """The scaled minimiser at a root, and whether it is a hard case.

    Where the pole's term dominates, its coefficient follows from ``‖y‖ = r`` instead of from a division by a
    number near zero (Nesterov & Polyak 2006, section 5; Moré & Sorensen 1983 for the hard case).
    """
    lowest = int(np.argmin(root.gaps)) if root.pole > 0.0 else -1
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(spectrum.coordinates == 0.0, 0.0, spectrum.coordinates / root.terms)
    if root.offset >= _FAR_FROM_POLE * root.pole:
        return _refined(model, spectrum, root, spectrum.up(z), -1), False
    vector = spectrum.up(_unit(model.size, lowest))
    pull = float(vector @ model.gradient)
    floor = 8.0 * model.size * EPSILON * float(np.abs(vector) @ np.abs(model.gradient))
    hard = abs(pull) <= floor and root.offset <= 1e-7 * root.pole
    z = np.where(root.terms <= 4.0 * EPSILON * np.abs(spectrum.alpha), 0.0, z)
    z[lowest] = 0.0
    x = _on_sphere(
        model,
        spectrum.up(z),
        vector,
        root.radius,
        _sign(np.sqrt(model.weights) * vector) if hard else pull,
    )
    return _refined(model, spectrum, root, x, lowest), hard


def _on_sphere(model: CubicModel, x: np.ndarray, vector: np.ndarray, r: float, sign: float) -> np.ndarray:
    """``x + τ·vector`` of radius r, with τ of the given sign (the larger one if both are)."""
    weighted = model.weights * vector
    square, cross = float(weighted @ vector), float(weighted @ x)
    missing = max(0.0, (r - model.radius(x)) * (r + model.radius(x)))
    reach = float(np.sqrt(cross * cross + square * missing))
    tau = (-cross + reach if sign > 0.0 else -cross - reach) / square
    return x + tau * vector


def _refined(model: CubicModel, spectrum: Spectrum, root: Root, x: np.ndarray, lowest: int) -> np.ndarray:
    """Newton's method on ``M(r)x = g, ‖Dx‖ = r`` with the spectrum as its (arrow-shaped) Jacobian."""
    r, terms = root.radius, root.terms.copy()
    best, best_residual = x, residual(model, x)
    for step in range(_STEPS):
        if (
            step > 0 and best_residual <= _GOOD_ENOUGH
        ):  # one step at least: the norm hides groups of low energy
            break
        dx, dr = _arrow_step(model, spectrum, terms, x, r, lowest)
        if not (np.isfinite(dx).all() and np.isfinite(dr)) or r + dr < 0.0:
            break
        x, r, terms = x + dx, r + dr, np.maximum(terms + spectrum.beta * dr, 0.0)
        now = residual(model, x)
        if not now < max(best_residual, _GOOD_ENOUGH):
            break
        improved = now < 0.5 * best_residual
        best, best_residual = x, now
        if not improved:
            break
    return best


def _arrow_step(
    model: CubicModel, spectrum: Spectrum, terms: np.ndarray, x: np.ndarray, r: float, lowest: int
) -> tuple[np.ndarray, float]:
    """Solve ``terms·dz + σ q dr = f, qᵀdz − r dr = h`` without dividing by the term of the pole."""
    norm = model.radius(x)
    f = spectrum.down(-model.slope(x, r))
    q = spectrum.down(model.weights * x)
    h = 0.5 * (r - norm) * (r + norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(terms > _SINGULAR * np.abs(spectrum.alpha), 1.0 / terms, 0.0)
    sigma = model.sigma
    if lowest < 0 or inverse[lowest] > 0.0:
        denominator = r + sigma * float(q * q @ inverse)
        dr = (float((q * f) @ inverse) - h) / denominator if denominator > 0.0 else 0.0
        return spectrum.up((f - sigma * dr * q) * inverse), dr
    pole, force, pull = terms[lowest], float(f[lowest]), float(q[lowest])
    numerator = pole * (float((q * f) @ inverse) - h) + pull * force
    denominator = pole * (r + sigma * float((q * q) @ inverse)) + sigma * pull * pull
    dr = numerator / denominator if denominator > 0.0 else 0.0
    dz = (f - sigma * dr * q) * inverse
    dz[lowest] = (h + r * dr - float(q @ dz)) / pull if pull != 0.0 else 0.0
    return spectrum.up(dz), dr


def _unit(size: int, index: int) -> np.ndarray:
    unit = np.zeros(size)
    unit[index] = 1.0
    return unit


def _sign(y: np.ndarray) -> float:
    """The convention of the hard case: the first prominent entry of ``y = Dv`` is positive."""
    prominent = np.abs(y) >= 0.5 * np.abs(y).max()
    return float(np.sign(y[np.argmax(prominent)]))
