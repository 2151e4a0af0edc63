"""Softmax and log-softmax, with c^s = ż^s − ⟨p, ż^s⟩ the centred tangents of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import Accumulator, flat, joined_blocks, slabs
from gnewton.summary.tangent.rules.rule import OperationSite, overloads, rule
from gnewton.summary.tangent.tangent import Rows, Tangent


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
