"""Losses that act entry by entry and then sum or average, ℓ(x) = Σ f(x_i) / n; softmax and log-softmax.

With c^s = ż^s − ⟨p, ż^s⟩ the centred tangents of the logits z, and p the probabilities.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import Accumulator, blocks, flat, joined_blocks, slabs
from gnewton.summary.tangent.rules.elementwise import Derivatives, by_differentiation, push
from gnewton.summary.tangent.rules.general import general_rule
from gnewton.summary.tangent.rules.rule import OperationSite, Passed, overloads, rule
from gnewton.summary.tangent.tangent import Rows, Tangent

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


@rule(*overloads("_log_softmax", "log_softmax.int"), adjoint=True)
def _log_softmax(site: OperationSite) -> Tangent | None:
    """q = z − lse(z): only lse is curved; D² = Σ p c c, and D³ + 3 D²[ż, z̈] = Σ p c³ + 3 Σ p c z̈."""
    p, adjoint = site.value.exp(), site.adjoint()
    weight = terms = None
    if adjoint is not None:
        weight = -p * adjoint.sum(_dim(site), keepdim=True)
        terms = adjoint.abs() + weight.abs()
    return _push(site, p, weight, terms, exponential=False)


@rule(*overloads("_softmax", "softmax.int", "_safe_softmax"), adjoint=True)
def _softmax(site: OperationSite) -> Tangent | None:
    """p = exp(q): with v = p̄ p the adjoint of q, the above plus Σ v c c and Σ v (c³ + 3 c q̈)."""
    p, adjoint = site.value, site.adjoint()
    weight = terms = None
    if adjoint is not None:
        outer = adjoint * p
        mean = p * outer.sum(_dim(site), keepdim=True)
        weight, terms = outer - mean, outer.abs() + mean.abs()
    return _push(site, p, weight, terms, exponential=True)


def _dim(site: OperationSite) -> int:
    return int(site.args[1])


def _push(
    site: OperationSite, p: Tensor, weight: Tensor | None, terms: Tensor | None, *, exponential: bool
) -> Tangent:
    """Both cases: q̇ = c, q̈ = z̈ − ⟨p, z̈⟩ − ⟨p, c²⟩, H̄ += Σ w c c, D3 += Σ w (c³ + 3 c q̈).

    Terms of q̈ that are constant along the axis drop out of Σ p c q̈, since Σ p c = 0. Distributions are
    processed a few at a time. The adjoint of z is a difference of two terms; ``terms`` is the sum of their
    magnitudes. Where they cancel, as at the end of a training, the rest is no smaller than their rounding
    errors.
    """
    z, dim, dims = site.moving(0), _dim(site), p.dim()
    groups, shape = z.first.groups, p.shape
    last = dim in (-1, dims - 1)
    view = (-1, shape[-1]) if last and dims > 1 else shape if dims > 1 and dim % dims else (1, *shape)
    axis = 2 if last else 1 + dim % dims + (len(view) - dims)

    def stack(rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[0], *view)

    dz = stack(z.first.merge())
    ddz = None if z.second is None else stack(z.second.widen(groups))
    first = dz.new_empty(dz.shape)
    second = dz.new_empty(dz.shape) if site.third else None
    q, w = stack(p.unsqueeze(0)), None if weight is None else stack(weight.unsqueeze(0))
    v = None if terms is None else stack(terms.unsqueeze(0))
    squares: list[Tensor] = []
    for at in slabs(dz.shape[1], flat(dz)):
        if v is not None:
            squares.append(flat(dz[:, at].square()) @ v[:, at].reshape(-1))
        _push_some(
            site.sums,
            groups,
            axis,
            exponential,
            q[:, at],
            None if w is None else w[:, at],
            dz[:, at],
            None if ddz is None else ddz[:, at],
            first[:, at],
            None if second is None else second[:, at],
        )
    if terms is not None:
        site.sums.add_loss_noise(groups, joined_blocks(squares, dz), terms.sum(), terms.numel())
    out = Rows(groups, [first.view(-1, *shape)], owned=True)
    return Tangent(out, None if second is None else Rows(groups, [second.view(-1, *shape)], owned=True))


def _push_some(
    sums: Accumulator,
    groups: tuple[int, ...],
    axis: int,
    exponential: bool,
    p: Tensor,
    weight: Tensor | None,
    dz: Tensor,
    ddz: Tensor | None,
    first: Tensor,
    second: Tensor | None,
) -> None:
    """:func:`_push` for some of the distributions; the tangents are written to ``first`` and ``second``."""
    c = dz - (p * dz).sum(axis, keepdim=True)
    weighted = None if weight is None else c * weight
    if weighted is not None:
        sums.add_square(groups, flat(weighted), flat(c))
    torch.mul(c, p, out=first) if exponential else first.copy_(c)
    if second is None:
        return
    square = c * c
    bent = -(p * square).sum(axis, keepdim=True)
    if ddz is not None:
        bent = ddz + (bent - (p * ddz).sum(axis, keepdim=True))
    square = square + 3 * bent if weighted is not None else square
    if weighted is not None:
        sums.add_third(groups, flat(weighted * square).sum(1))
    if exponential:
        torch.mul(c, c, out=second).add_(bent).mul_(p)
    else:
        second.copy_(bent)
