"""Softmax and log-softmax, with c^s = ż^s − ⟨p, ż^s⟩ the centred tangents of the logits."""

from __future__ import annotations

from torch import Tensor

from gnewton.summary.accumulate import flat, row_dots
from gnewton.summary.rules.table import overloads, rule
from gnewton.summary.site import Site
from gnewton.summary.tangents import Rows, Tangent


@rule(*overloads("_log_softmax", "log_softmax.int"), adjoint=True)
def _log_softmax(site: Site) -> Tangent | None:
    """q = z − lse(z): only lse is curved; D² = Σ p c c, and D³ + 3 D²[ż, z̈] = Σ p c³ + 3 Σ p c z̈."""
    p, adjoint = site.value.exp(), site.adjoint()
    weight = None if adjoint is None else -p * adjoint.sum(_dim(site), keepdim=True)
    return _push(site, p, weight, exponential=False)


@rule(*overloads("_softmax", "softmax.int", "_safe_softmax"), adjoint=True)
def _softmax(site: Site) -> Tangent | None:
    """p = exp(q): with v = p̄ p the adjoint of q, the above plus Σ v c c and Σ v (c³ + 3 c q̈)."""
    p, adjoint = site.value, site.adjoint()
    weight = None
    if adjoint is not None:
        outer = adjoint * p
        weight = outer - p * outer.sum(_dim(site), keepdim=True)
    return _push(site, p, weight, exponential=True)


def _dim(site: Site) -> int:
    return int(site.args[1])


def _push(site: Site, p: Tensor, weight: Tensor | None, *, exponential: bool) -> Tangent:
    """Both cases at once: q̇ = c, q̈ = z̈ − ⟨p, z̈⟩ − ⟨p, c²⟩, H̄ += Σ w c c, D3 += Σ w (c³ + 3 c q̈).

    In Σ p c q̈ what is constant along the axis drops out, since Σ p c = 0.
    """
    sums, z, dim = site.sums, site.moving(0), _dim(site)
    axis = dim + 1 if dim >= 0 else dim
    groups, dz = z.first.groups, z.first.data
    c = dz - (p * dz).sum(axis, keepdim=True)
    if weight is not None:
        sums.add_square(groups, flat(c * weight), flat(c))
    first = Rows(groups, [c * p if exponential else c], owned=True)
    if not site.third:
        return Tangent(first)
    square = c * c
    bent = -(p * square).sum(axis, keepdim=True)
    if z.second is not None:
        ddz = z.second.widen(groups)
        bent = bent + ddz - (p * ddz).sum(axis, keepdim=True)
    if weight is not None:
        sums.add_third(groups, row_dots(flat(c * weight), flat(square + 3 * bent)))
    second = p * (square + bent) if exponential else bent.expand_as(c).contiguous()
    return Tangent(first, Rows(groups, [second], owned=True))
