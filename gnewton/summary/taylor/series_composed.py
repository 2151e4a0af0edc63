"""Rules for power series of softmax, normalisations and norms, composed of the arithmetic of series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.summary.tangent.rules.lengths import variance_scale
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


def _from_the_end(axes: Any, dims: int) -> list[int]:
    if axes is None or axes == []:
        return list(range(-dims, 0))
    axes = [axes] if isinstance(axes, int) else axes
    return [a - dims if a >= 0 else a for a in axes]


def _standardised(x: Jet, view: Sequence[int], axes: Sequence[int], eps: float, order: int) -> Jet:
    """x̂ = c (mean c² + ε)^(-1/2) with c = x − mean x over ``axes`` of x in the shape ``view``."""
    series = x.shaped(view).series(order)
    centred = series - series.mean(axes)
    hat = centred * (centred.square().mean(axes) + eps).power(-0.5)
    return jet_of(hat, hat.head.reshape(x.value.shape), x.groups)


def _affine(
    site: SeriesSite, hat: Tensor, moved: Jet | None, gain: int, shift: int, shape: list[int]
) -> Result:
    """Scale x̂ by the argument ``gain`` and shift it by the argument ``shift``, both viewed in ``shape``."""

    def viewed(position: int) -> Jet | None:
        jet = site.jet(position)
        return None if jet is None else jet.shaped(shape)

    if any(k != 0 for k in site.outputs):
        raise NotApplicable  # the loss reads mean or spread, values of the operation too
    gamma = site.args[gain]
    gamma = torch.ones_like(hat) if gamma is None else gamma.reshape(shape)
    shifted = (viewed(shift), lambda rows: rows)
    return [
        product(gate(hat, gamma), moved, viewed(gain), site.first_value, site.order, shifted),
        *[None] * (len(site.value) - 1),
    ]


def _hat(x: Tensor, moved: Jet | None, view: Sequence[int], axes: Sequence[int], eps: float) -> Tensor:
    if moved is not None:
        return moved.value
    values = x.reshape(tuple(view))
    centred = values - values.mean(list(axes), keepdim=True)
    return (centred * (centred.square().mean(list(axes), keepdim=True) + eps).rsqrt()).reshape(x.shape)


def _normalised(
    site: SeriesSite,
    view: Sequence[int],
    axes: Sequence[int],
    eps: float,
    affine: tuple[int, int],
    shape: list[int],
) -> Result:
    jet = site.jet(0)
    moved = None if jet is None else _standardised(jet, view, axes, eps, site.order)
    return _affine(site, _hat(site.args[0], moved, view, axes, eps), moved, *affine, shape)


@series_rule("native_batch_norm", "_native_batch_norm_legit_functional")
def _batch_norm(site: SeriesSite) -> Result:
    """Over samples and positions in training mode, else by running statistics, which are constants."""
    x, _, _, mean, variance, training, _, eps = site.args[:8]
    channels = x.shape[1]
    shape = [1, channels, *[1] * (x.dim() - 2)]
    if training:
        return _normalised(site, (x.shape[0], channels, x[0, 0].numel()), (-3, -1), eps, (1, 2), shape)
    r = (variance + eps).rsqrt().reshape(shape)
    hat = (x - mean.reshape(shape)) * r
    jet = site.jet(0)
    moved = None if jet is None else jet.map(lambda rows: rows * r, hat)
    return _affine(site, hat, moved, 1, 2, shape)


@series_rule("native_layer_norm")
def _layer_norm(site: SeriesSite) -> Result:
    x, normalised, _, _, eps = site.args
    size = math.prod(normalised)
    view = (x.numel() // max(size, 1), size)
    return _normalised(site, view, (-1,), eps, (2, 3), list(normalised))


@series_rule("native_group_norm")
def _group_norm(site: SeriesSite) -> Result:
    x, _, _, samples, channels, _, groups, eps = site.args
    view = (samples * groups, x.numel() // max(samples * groups, 1))
    return _normalised(site, view, (-1,), eps, (1, 2), [1, channels, *[1] * (x.dim() - 2)])


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
