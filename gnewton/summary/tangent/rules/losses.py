"""Losses that act entry by entry and then sum or average: ℓ(x) = Σ f(x_i) / n."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import blocks, flat, joined_blocks
from gnewton.summary.tangent.rules.elementwise import by_differentiation
from gnewton.summary.tangent.rules.general import general_rule
from gnewton.summary.tangent.rules.pointwise import Derivatives, push
from gnewton.summary.tangent.rules.rule import OperationSite, Passed, overloads, rule

aten = torch.ops.aten
NONE, MEAN = 0, 1


@rule(
    *overloads(
        "mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "smooth_l1_loss",
        "huber_loss", "soft_margin_loss",
    ),
    adjoint=True,
)  # fmt: skip
def _entrywise_loss(site: OperationSite) -> Passed:
    x = site.tangent(0)
    same_shape = isinstance(site.args[1], Tensor) and site.args[0].shape == site.args[1].shape
    if x is None or site.tangent(1) is not None or not same_shape:
        return general_rule(site)
    names = [argument.name for argument in site.step.op._schema.arguments]
    at = names.index("reduction")
    args, kwargs = list(site.args), dict(site.kwargs)
    reduction = args[at] if at < len(args) else kwargs.get("reduction", MEAN)
    if at < len(args):
        args[at] = NONE
    else:
        kwargs["reduction"] = NONE
    share = 1.0 / max(site.args[0].numel(), 1) if reduction == MEAN else 1.0
    adjoint = site.adjoint()
    spread = None if adjoint is None else (adjoint * share).expand(site.args[0].shape)
    slope, bend, twist = (None if d is None else d.reshape(-1) for d in _derivatives(site, args, kwargs))
    assert slope is not None
    if spread is not None:
        terms = (spread.reshape(-1) * _terms(site, bend)).abs()
        rows = flat(x.first.merge())
        squares = joined_blocks([rows[:, at].square() @ terms[at] for at in blocks(rows)], rows)
        site.sums.add_loss_noise(x.first.groups, squares, terms.sum(), terms.numel())
    pushed = push(
        site,
        x,
        spread,
        lambda at: (slope[at], None if bend is None else bend[at], None if twist is None else twist[at]),
    )
    if reduction == NONE:
        return pushed
    return pushed.map(
        lambda rows: rows.flatten(1).sum(1) * share if rows.dim() > 1 else rows * share, fresh=True
    )


def _terms(site: OperationSite, bend: Tensor | None) -> Tensor:
    """The magnitude of the terms that cancel in ℓ'(x): ℓ''·x, as x has an error, and up to 1 in σ(x) − y."""
    x = site.args[0].reshape(-1)
    size = torch.zeros_like(x) if bend is None else bend * x
    return size + 1 if site.step.op.name() == "aten::binary_cross_entropy_with_logits" else size


def _derivatives(site: OperationSite, args: list[Any], kwargs: dict[str, Any]) -> Derivatives:
    x, target = args[0], args[1]
    if site.step.op.name() == "aten::mse_loss":
        slope = 2 * (x - target)
        return slope, slope.new_full((), 2.0).expand_as(slope), None
    return by_differentiation(lambda z: site.step.op(z, *args[1:], **kwargs), x, third=site.third)


@rule(*overloads("nll_loss_forward", "nll_loss2d_forward"))
def _nll_loss(site: OperationSite) -> Passed:
    """Linear in the log-likelihoods: the tangent is the inner product of theirs with the gradient."""
    x, target, weight, reduction, ignored = site.args
    loss, total = site.value
    backward = (aten.nll_loss_backward if x.dim() <= 2 else aten.nll_loss2d_backward).default
    slope = backward(torch.ones_like(loss), x, target, weight, reduction, ignored, total)
    axes = list(range(1, x.dim() + 1)) if reduction != NONE else [2 if x.dim() > 1 else 1]
    return [site.moving(0).map(lambda rows: (rows * slope).sum(axes), fresh=True), None]
