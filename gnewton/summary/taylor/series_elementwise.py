"""Power series of element-wise functions and of losses made of them: the formulas, and their rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnewton.summary.tangent.rules.losses import MEAN, NONE
from gnewton.summary.taylor.jet import Jet, applied, jet_of, joined_groups
from gnewton.summary.taylor.series import Series
from gnewton.summary.taylor.taylor_rule import NotApplicable, Result, SeriesSite, series_rule

Formula = Callable[..., Series]

FUNCTIONS: dict[str, Formula] = {}
"""Element-wise functions by the name of their operation; they take a series and the operation's options."""


def function(*names: str) -> Callable[[Formula], Formula]:
    """Enter a formula into :data:`FUNCTIONS`."""

    def enter(formula: Formula) -> Formula:
        FUNCTIONS.update(dict.fromkeys(names, formula))
        return formula

    return enter


FUNCTIONS.update(
    exp=Series.exp,
    log=Series.log,
    reciprocal=Series.reciprocal,
    sqrt=Series.sqrt,
    tanh=Series.tanh,
    tan=Series.tan,
    sigmoid=Series.sigmoid,
    square=Series.square,
    rsqrt=lambda x: x.power(-0.5),
    sin=lambda x: x.sine()[0],
    cos=lambda x: x.sine()[1],
    sinh=lambda x: x.sine(hyperbolic=True)[0],
    cosh=lambda x: x.sine(hyperbolic=True)[1],
    exp2=lambda x: x.scaled(math.log(2.0)).exp(),
    expm1=lambda x: _with_head(x.exp(), torch.expm1(x.head)),
    log1p=lambda x: _with_head((x + 1.0).log(), torch.log1p(x.head)),
    log2=lambda x: x.log().scaled(1 / math.log(2.0)),
    log10=lambda x: x.log().scaled(1 / math.log(10.0)),
)


def _with_head(x: Series, head: Tensor) -> Series:
    return Series(head, x.tail, x.order)


# --- functions whose derivative is an algebraic or exponential one ------------------------------------------

FUNCTIONS.update(
    atan=lambda x: x.integrated((x.square() + 1.0).reciprocal(), x.head.atan()),
    asin=lambda x: x.integrated((1.0 - x.square()).power(-0.5), x.head.asin()),
    acos=lambda x: x.integrated(-(1.0 - x.square()).power(-0.5), x.head.acos()),
    asinh=lambda x: x.integrated((x.square() + 1.0).power(-0.5), x.head.asinh()),
    acosh=lambda x: x.integrated((x.square() - 1.0).power(-0.5), x.head.acosh()),
    atanh=lambda x: x.integrated((1.0 - x.square()).reciprocal(), x.head.atanh()),
)


@function("erf")
def erf(x: Series) -> Series:
    """From y' = 2/√π exp(−x²) x'."""
    slope = (-x.square()).exp().scaled(2 / math.sqrt(math.pi))
    return x.integrated(slope, x.head.erf())


FUNCTIONS.update(erfc=lambda x: _with_head(-erf(x), x.head.erfc()))


@function("softplus")
def softplus(x: Series, beta: float = 1.0, threshold: float = 20.0) -> Series:
    """log(1 + exp(βx))/β, from y' = σ(βx) x'; x beyond the threshold, as in torch."""
    curved = x.integrated(x.scaled(beta).sigmoid(), F.softplus(x.head, beta, threshold))
    return x.where(x.head * beta > threshold, curved)


@function("log_sigmoid")
def log_sigmoid(x: Series) -> Series:
    """From y' = σ(−x) x'."""
    return x.integrated((-x).sigmoid(), F.logsigmoid(x.head))


@function("logit")
def logit(x: Series, eps: float | None = None) -> Series:
    """From x (1 − x) y' = x'; constant outside [ε, 1 − ε]."""
    start = torch.logit(x.head, eps)
    if eps is None:
        return x.integrated((x - x.square()).reciprocal(), start)
    inside = (x.head >= eps) & (x.head <= 1 - eps)
    safe = Series(torch.where(inside, x.head, 0.5), x.tail, x.order)
    return x.integrated((safe - safe.square()).reciprocal(), start).where(inside, Series(start, [], x.order))


# --- activations --------------------------------------------------------------------------------------------


@function("gelu")
def gelu(x: Series, *, approximate: str = "none") -> Series:
    """x Φ(x), or the approximation by a hyperbolic tangent."""
    if approximate == "tanh":
        inside = (x + x.power(3).scaled(0.044715)).scaled(math.sqrt(2 / math.pi))
        return x.scaled(0.5) * (inside.tanh() + 1.0)
    return x.scaled(0.5) * (erf(x.scaled(math.sqrt(0.5))) + 1.0)


FUNCTIONS.update(
    silu=lambda x: x * x.sigmoid(),
    mish=lambda x: x * softplus(x).tanh(),
)


@function("elu")
def elu(x: Series, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Series:
    """s x above zero, s α (exp(κ x) − 1) below."""
    below = Series(x.head.clamp(max=0.0), x.tail, x.order).scaled(input_scale).exp()
    return x.scaled(scale).where(x.head > 0, (below - 1.0).scaled(alpha * scale))


@function("celu")
def celu(x: Series, alpha: float = 1.0) -> Series:
    """x above zero, α (exp(x/α) − 1) below."""
    return elu(x, alpha, 1.0, 1 / alpha)


@function("hardswish")
def hardswish(x: Series) -> Series:
    """x clamp(x + 3, 0, 6)/6."""
    middle = (x.square() + x.scaled(3.0)).scaled(1 / 6)
    nothing = Series(torch.zeros_like(x.head), [], x.order)
    return x.where(x.head >= 3, middle.where(x.head > -3, nothing))


@function("pow.Tensor_Scalar")
def power(x: Series, p: float) -> Series:
    """x^p."""
    return x.power(p)


@function("pow.Scalar")
def exponential(x: Series, base: float) -> Series:
    """b^x; the operation has the base first."""
    return x.scaled(math.log(base)).exp()


# --- losses of one entry ------------------------------------------------------------------------------------


def binary_cross_entropy(x: Series, target: Tensor) -> Series:
    """−t log x − (1 − t) log(1 − x), the logarithms at least −100 as in torch."""

    def bounded(p: Series) -> Series:
        inside = p.head.log() > -100
        safe = Series(torch.where(inside, p.head, 1.0), p.tail, p.order)
        return safe.log().where(inside, Series(torch.full_like(p.head, -100.0), [], p.order))

    return -(bounded(x).scaled(target) + bounded(1.0 - x).scaled(1 - target))


def binary_cross_entropy_with_logits(x: Series, target: Tensor, positive: Tensor | None) -> Series:
    """(1 − t) x + (1 + (w − 1) t) log(1 + exp(−x))."""
    weight: Any = 1.0 if positive is None else 1 + (positive - 1) * target
    return x.scaled(1 - target) - log_sigmoid(x).scaled(weight)


def huber(x: Series, delta: float) -> Series:
    """x²/2 within δ, else δ (|x| − δ/2)."""
    sign = x.head.sign()
    outside = (x.scaled(sign) - 0.5 * delta).scaled(delta)
    return x.square().scaled(0.5).where(x.head.abs() < delta, outside)


def soft_margin(x: Series, target: Tensor) -> Series:
    """log(1 + exp(−t x))."""
    return -log_sigmoid(x.scaled(target))


# --- rules --------------------------------------------------------------------------------------------------


def _enter(name: str, formula: Formula) -> None:
    at = 1 if name == "pow.Scalar" else 0

    @series_rule(name)
    def rule(site: SeriesSite) -> Result:
        if not site.only_moves(at):
            raise NotApplicable
        options = [argument for i, argument in enumerate(site.args) if i != at]
        return applied(
            site.moving(at), lambda x, _: formula(x, *options, **site.kwargs), site.value, site.order
        )


for _name, _formula in FUNCTIONS.items():
    _enter(_name, _formula)


@series_rule("log_sigmoid_forward")
def _log_sigmoid(site: SeriesSite) -> Result:
    jet = applied(site.moving(0), lambda x, _: log_sigmoid(x), site.first_value, site.order)
    return [jet, None]


# --- rules of losses ----------------------------------------------------------------------------------------


def _reduced(site: SeriesSite, entries: Jet) -> Jet:
    """The jet of the loss from that of its entries."""
    reduction = site.option("reduction", MEAN)
    if reduction == NONE:
        return Jet(site.value, entries.terms, entries.groups)
    count = max(entries.value.numel(), 1)
    terms = entries.terms.flatten(2).sum(2) if entries.value.dim() else entries.terms
    return Jet(site.value, terms / count if reduction == MEAN else terms, entries.groups)


def _entrywise(site: SeriesSite, formula: Callable[[Series, Callable[[Any], Any]], Series]) -> Jet:
    """The jet of a loss of (x, target), whose target is constant and of the shape of x.

    ``formula`` takes the series of a block and a function that cuts a tensor of that shape to the block.
    """
    x, target = site.args[:2]
    if not site.only_moves(0) or target.shape != x.shape:
        raise NotApplicable

    def block(series: Series, at: slice) -> Series:
        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.expand(x.shape).reshape(-1)[at]

        result = formula(series, cut)
        weight = cut(site.option("weight"))
        return result if weight is None else result.scaled(weight)

    return _reduced(site, applied(site.moving(0), block, x, site.order))


@series_rule("mse_loss")
def _squared_error(site: SeriesSite) -> Result:
    if site.jet(1) is None:
        return _entrywise(site, lambda x, cut: (x - cut(site.args[1])).square())
    if site.args[0].shape != site.args[1].shape:
        raise NotApplicable
    groups = joined_groups(site.jet(0), site.jet(1))
    gap: Any = 0.0
    for position, sign in ((0, 1.0), (1, -1.0)):
        jet = site.jet(position)
        value = site.args[position] * sign
        gap = gap + (value if jet is None else jet.series(site.order, groups).scaled(sign))
    squared = gap.square()
    return _reduced(site, jet_of(squared, squared.head, groups))


@series_rule("binary_cross_entropy")
def _cross_entropy(site: SeriesSite) -> Result:
    return _entrywise(site, lambda x, cut: binary_cross_entropy(x, cut(site.args[1])))


@series_rule("binary_cross_entropy_with_logits")
def _cross_entropy_of_logits(site: SeriesSite) -> Result:
    positive = site.option("pos_weight")
    return _entrywise(
        site,
        lambda x, cut: binary_cross_entropy_with_logits(x, cut(site.args[1]), cut(positive)),
    )


@series_rule("huber_loss")
def _huber(site: SeriesSite) -> Result:
    delta = site.option("delta", 1.0)
    return _entrywise(site, lambda x, cut: huber(x - cut(site.args[1]), delta))


@series_rule("smooth_l1_loss")
def _smooth(site: SeriesSite) -> Result:
    beta = site.option("beta", 1.0)
    if beta == 0:
        raise NotApplicable
    return _entrywise(site, lambda x, cut: huber(x - cut(site.args[1]), beta).scaled(1 / beta))


@series_rule("soft_margin_loss")
def _soft_margin(site: SeriesSite) -> Result:
    return _entrywise(site, lambda x, cut: soft_margin(x, cut(site.args[1])))
