"""Rules for power series of element-wise functions, and of the losses that are sums of such functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gnewton.summary.tangent.rules.losses import MEAN, NONE
from gnewton.summary.taylor import function_series
from gnewton.summary.taylor.function_series import FUNCTIONS, Formula
from gnewton.summary.taylor.jet import Jet, applied, jet_of, joined_groups
from gnewton.summary.taylor.series import Series
from gnewton.summary.taylor.taylor_rule import NotApplicable, Result, SeriesSite, series_rule


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
    jet = applied(site.moving(0), lambda x, _: function_series.log_sigmoid(x), site.first_value, site.order)
    return [jet, None]


# --- losses -------------------------------------------------------------------------------------------------


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
    return _entrywise(site, lambda x, cut: function_series.binary_cross_entropy(x, cut(site.args[1])))


@series_rule("binary_cross_entropy_with_logits")
def _cross_entropy_of_logits(site: SeriesSite) -> Result:
    positive = site.option("pos_weight")
    return _entrywise(
        site,
        lambda x, cut: function_series.binary_cross_entropy_with_logits(x, cut(site.args[1]), cut(positive)),
    )


@series_rule("huber_loss")
def _huber(site: SeriesSite) -> Result:
    delta = site.option("delta", 1.0)
    return _entrywise(site, lambda x, cut: function_series.huber(x - cut(site.args[1]), delta))


@series_rule("smooth_l1_loss")
def _smooth(site: SeriesSite) -> Result:
    beta = site.option("beta", 1.0)
    if beta == 0:
        raise NotApplicable
    return _entrywise(
        site, lambda x, cut: function_series.huber(x - cut(site.args[1]), beta).scaled(1 / beta)
    )


@series_rule("soft_margin_loss")
def _soft_margin(site: SeriesSite) -> Result:
    return _entrywise(site, lambda x, cut: function_series.soft_margin(x, cut(site.args[1])))
