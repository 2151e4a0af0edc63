"""Rules for power series of operations that join entries: products, softmax, normalisations, norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gnewton.summary.tangent.rules.bilinear import convolution_product, matrix_product
from gnewton.summary.tangent.rules.normalisation import BATCH, GROUP, LAYER, Sets, normalisation_of
from gnewton.summary.tangent.rules.product import gate
from gnewton.summary.tangent.rules.reductions import variance_scale
from gnewton.summary.tangent.tangent import line_up
from gnewton.summary.taylor.jet import Jet, Pairing, applied, jet_of, joined_groups, product
from gnewton.summary.taylor.series import Series, inner
from gnewton.summary.taylor.taylor_rule import NotApplicable, Result, SeriesSite, series_rule

aten = torch.ops.aten


class VectorPairing:
    """z = ab for a vector b and a matrix or a vector a."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a = a
        self.b = b

    def left(self, rows: Tensor) -> Tensor:
        """ȧ b."""
        return torch.matmul(rows, self.b)

    def right(self, rows: Tensor) -> Tensor:
        """A ḃ."""
        return torch.matmul(rows, self.a.mT if self.a.dim() == 2 else self.a)

    def both(self, a_rows: Tensor, b_rows: Tensor) -> Tensor:
        """ȧ ḃ."""
        return (a_rows * (b_rows.unsqueeze(1) if a_rows.dim() == 3 else b_rows)).sum(-1)


@series_rule("mm", "bmm")
def _mm(site: SeriesSite) -> Result:
    return _product(site, matrix_product(*site.args), 0, 1)


@series_rule("dot", "vdot", "mv")
def _mv(site: SeriesSite) -> Result:
    return _product(site, VectorPairing(*site.args), 0, 1)


@series_rule("addmm", "baddbmm")
def _addmm(site: SeriesSite) -> Result:
    _, a, b = site.args
    beta, alpha = site.kwargs.get("beta", 1), site.kwargs.get("alpha", 1)
    added, first = (site.jet(0), _bringing(site.value, beta)), site.jet(1)
    if alpha != 1:
        a, first = a * alpha, _scaled(first, alpha)
    return product(matrix_product(a, b), first, site.jet(2), site.value, site.order, added)


@series_rule("convolution")
def _convolution(site: SeriesSite) -> Result:
    a, weight, _, *options = site.args
    inner = [1] * (site.value.dim() - 2)

    def by_channel(rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[0], 1, -1, *inner)

    return _product(site, convolution_product(a, weight, options), 0, 1, (site.jet(2), by_channel))


@series_rule("mul.Tensor")
def _mul(site: SeriesSite) -> Result:
    a, b = site.args
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _product(site, gate(a, b), 0, 1)
    factor, jet = (a, site.moving(1)) if isinstance(b, Tensor) else (b, site.moving(0))
    return jet.map(lambda rows: rows * factor, site.value)


@series_rule("div.Tensor")
def _div(site: SeriesSite) -> Result:
    """A / b as a ∘ (1/b)."""
    a, b = site.args
    if site.jet(1) is None:
        return site.moving(0).map(lambda rows: line_up(rows, site.value.dim()) / b, site.value)
    inverse = _inverse(site.moving(1), site.order)
    a = a if isinstance(a, Tensor) else torch.as_tensor(a, dtype=b.dtype, device=b.device)
    return product(gate(a, inverse.value), site.jet(0), inverse, site.value, site.order)


@series_rule("addcmul", "addcdiv")
def _addcmul(site: SeriesSite) -> Result:
    """X + v a b or x + v a / b."""
    _, a, b = site.args
    factor, second = site.kwargs.get("value", 1), site.jet(2)
    if "addcdiv" in site.step.op.name():
        b = b.reciprocal() if second is None else b
        if second is not None:
            second = _inverse(second, site.order)
            b = second.value
    if isinstance(factor, Tensor) or a.dim() == 0 or b.dim() == 0:
        raise NotApplicable
    pairing, first = gate(a * factor, b), _scaled(site.jet(1), factor)
    return product(pairing, first, second, site.value, site.order, (site.jet(0), _bringing(site.value)))


@series_rule("_prelu_kernel")
def _prelu(site: SeriesSite) -> Result:
    """X above zero, w x below."""
    x, weight = site.args
    above = x > 0
    jet = site.jet(0)
    below = None if jet is None else jet.map(lambda rows: torch.where(above, 0.0, rows))
    kept = (jet, lambda rows: torch.where(above, rows, 0.0))
    return product(gate(torch.where(above, 0.0, x), weight), below, site.jet(1), site.value, site.order, kept)


@series_rule("pow.Tensor_Tensor")
def _power(site: SeriesSite) -> Result:
    """a^b as exp(b log a), for a > 0 where b moves."""
    base, exponent = site.args
    if site.jet(1) is None or exponent.shape != base.shape:
        raise NotApplicable
    groups = joined_groups(site.jet(0), site.jet(1))
    first = site.jet(0)
    low = Series(base, [], site.order) if first is None else first.series(site.order, groups)
    raised = (low.log() if first is not None else Series(base.log(), [], site.order)) * site.moving(1).series(
        site.order, groups
    )
    return jet_of(raised.exp(), site.value, groups)


def _product(
    site: SeriesSite,
    pairing: Pairing,
    first: int,
    second: int,
    *others: tuple[Jet | None, Callable[[Tensor], Tensor]],
) -> Jet:
    return product(pairing, site.jet(first), site.jet(second), site.value, site.order, *others)


def _scaled(jet: Jet | None, factor: float) -> Jet | None:
    return None if jet is None else jet.map(lambda rows: rows * factor, jet.value * factor)


def _bringing(value: Tensor, factor: float = 1) -> Callable[[Tensor], Tensor]:
    """Stacks of a smaller shape, scaled and lined up with those of ``value``."""

    def bring(rows: Tensor) -> Tensor:
        rows = line_up(rows, value.dim())
        return rows if factor == 1 else rows * factor

    return bring


def _inverse(jet: Jet, order: int) -> Jet:
    return applied(jet, lambda x, _: x.reciprocal(), jet.value.reciprocal(), order)


# --- softmax ------------------------------------------------------------------------------------------------


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
