"""Rules for power series of softmax, normalisations and norms, composed of the arithmetic of series."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gnewton.summary.tangent.rules.lengths import variance_scale
from gnewton.summary.tangent.rules.normalisation import BATCH, GROUP, LAYER, Sets, normalisation_of
from gnewton.summary.tangent.rules.product import gate
from gnewton.summary.taylor.jet import Jet, jet_of, product
from gnewton.summary.taylor.series import Series, inner
from gnewton.summary.taylor.taylor_rule import NotApplicable, Result, SeriesSite, series_rule


def softmax_series(x: Series, axis: int) -> tuple[Series, Series]:
    """The series of log-softmax q and softmax p along an axis counted from the end.

    From q' = x' − ⟨p, x'⟩ and p' = p q'.
    """
    p = x.head.softmax(axis)
    weighted = x.weighted()
    qs: list[Tensor] = []
    ps: list[Tensor] = []
    moved: list[Tensor] = []  # i q_i
    for n in range(1, x.order + 1):
        top = x.step(weighted, p, ps, n).sum(axis, keepdim=True)
        qs.append(x.tail[n - 1] - top if n <= len(x.tail) else (-top).expand_as(x.tail[0]))
        moved.append(qs[-1] * n)
        mixed = inner(moved, ps, n)
        rise = qs[-1] * p
        ps.append(rise if mixed is None else rise.add_(mixed, alpha=1 / n))
    return Series(x.head.log_softmax(axis), qs, x.order), Series(p, ps, x.order)


def _softmax_of(site: SeriesSite, which: int) -> Jet:
    jet, axis = site.moving(0), site.args[1]
    if jet.value.dim() == 0:
        raise NotApplicable
    axis = axis - jet.value.dim() if axis >= 0 else axis
    return jet_of(softmax_series(jet.series(site.order), axis)[which], site.value, jet.groups)


@series_rule("_log_softmax", "log_softmax.int")
def _log_softmax(site: SeriesSite) -> Result:
    return _softmax_of(site, 0)


@series_rule("_softmax", "softmax.int", "_safe_softmax")
def _softmax(site: SeriesSite) -> Result:
    return _softmax_of(site, 1)


# --- normalisation ------------------------------------------------------------------------------------------


@series_rule(*BATCH, *LAYER, *GROUP)
def _normalisation(site: SeriesSite) -> Result:
    if any(k != 0 for k in site.outputs):
        raise NotApplicable  # the loss reads mean or spread, values of the operation too
    form, x, jet = normalisation_of(site.step, site.args), site.args[0], site.jet(0)
    moved = None
    if jet is not None and form.sets is not None:
        moved = _standardised(jet, form.sets, form.eps, site.order)
    elif jet is not None:
        moved = jet.map(lambda rows: rows * form.root, form.hat(x))
    hat = form.hat(x) if moved is None else moved.value
    gamma = site.args[form.gain]
    gamma = torch.ones_like(hat) if gamma is None else gamma.reshape(form.shape)
    gain, shift = (
        None if jet is None else jet.shaped(form.shape) for jet in map(site.jet, (form.gain, form.shift))
    )
    scaled = product(gate(hat, gamma), moved, gain, site.first_value, site.order, (shift, lambda rows: rows))
    return [scaled, *[None] * (len(site.value) - 1)]


def _standardised(x: Jet, sets: Sets, eps: float, order: int) -> Jet:
    """x̂ = c (mean c² + ε)^(-1/2) with c = x − mean x over each set."""
    series, axes = x.shaped(sets.view).series(order), [a - len(sets.view) for a in sets.axes]
    centred = series - series.mean(axes)
    hat = centred * (centred.square().mean(axes) + eps).power(-0.5)
    return jet_of(hat, hat.head.reshape(x.value.shape), x.groups)


# --- norms --------------------------------------------------------------------------------------------------


def _from_the_end(axes: Any, dims: int) -> list[int]:
    if axes is None or axes == []:
        return list(range(-dims, 0))
    axes = [axes] if isinstance(axes, int) else axes
    return [a - dims if a >= 0 else a for a in axes]


@series_rule("linalg_vector_norm")
def _vector_norm(site: SeriesSite) -> Result:
    """The Euclidean norm, as the root of a sum of squares; other norms have no rule."""
    jet, order = site.moving(0), site.option("ord", 2)
    if order != 2 or jet.value.dim() == 0:
        raise NotApplicable
    axes = _from_the_end(site.option("dim"), jet.value.dim())
    series = jet.series(site.order)
    squares = series.square().sum(axes) if axes else series.square()
    return jet_of(_root(squares, site.value), site.value, jet.groups)


def _root(squares: Series, value: Tensor) -> Series:
    """The root of a sum of squares, ``value`` in torch; zero derivatives where it is zero, as in torch."""
    zero = (squares.head == 0) | (value.reshape(squares.head.shape) == 0)
    root = Series(torch.where(zero, 1.0, squares.head), squares.tail, squares.order).sqrt()
    return Series(squares.head.sqrt(), [torch.where(zero, 0.0, x) for x in root.tail], squares.order)


@series_rule("var.correction", "std.correction")
def _variance(site: SeriesSite) -> Result:
    """Σ c²/(n − δ) with c = x − mean x, and its root."""
    jet, correction = site.moving(0), site.option("correction")
    axes = _from_the_end(site.option("dim"), jet.value.dim())
    if not axes or jet.value.dim() == 0:
        raise NotApplicable
    series = jet.series(site.order)
    centred = series - series.mean(axes)
    scale = variance_scale(math.prod(jet.value.shape[a] for a in axes), correction)
    variance = centred.square().sum(axes).scaled(scale)
    series = _root(variance, site.value) if "std" in site.step.op.name() else variance
    return jet_of(series, site.value, jet.groups)
