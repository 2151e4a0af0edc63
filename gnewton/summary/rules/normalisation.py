"""Batch, layer and group normalisation: x̂ = c r with c = x − mean x, r = (mean c² + ε)^(-1/2), then x̂γ + β.

Over each normalised set of n entries, with ρ(v) = (v + ε)^(-1/2) and r̄ = Σ x̂̄ c the adjoint of r:

    ċ = ẋ − mean ẋ        v̇ = 2 mean(c ċ)                    ṙ = ρ' v̇
    c̈ = ẍ − mean ẍ        v̈ = 2 mean(ċ² + c c̈)               r̈ = ρ'' v̇² + ρ' v̈
    H̄_st += (Σ x̂̄ ċ^s) ṙ^t + (s ↔ t) + r̄ ρ'' v̇^s v̇^t + r̄ ρ' 2 mean(ċ^s ċ^t)
    D3_s += 3 Σ x̂̄ (ċ r̈ + c̈ ṙ) + r̄ (ρ''' v̇³ + 3 ρ'' v̇ v̈) + 6 r̄ ρ' mean(ċ c̈)
    x̂̇ = ċ r + c ṙ         x̂̈ = c̈ r + 2 ċ ṙ + c r̈
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnewton.summary.accumulate import Accumulator, flat, row_dots
from gnewton.summary.rules.product import gate, joined, push_product, spread_rows
from gnewton.summary.rules.table import Passed, overloads, rule
from gnewton.summary.site import Site
from gnewton.summary.tangents import Rows, Tangent


@dataclass(frozen=True)
class _Sets:
    """How a value splits into normalised sets: viewed as ``view``, they run along ``axes``."""

    view: tuple[int, ...]
    axes: tuple[int, ...]

    def mean(self, stack: Tensor) -> Tensor:
        """Means over the sets of a stack (k, *view), axes kept."""
        return stack.mean([a + 1 for a in self.axes], keepdim=True)

    def total(self, stack: Tensor) -> Tensor:
        """Sums over the sets of a stack (k, *view), axes kept."""
        return stack.sum([a + 1 for a in self.axes], keepdim=True)


def normalise(
    sums: Accumulator, x: Tensor, moved: Tangent, adjoint: Tensor | None, sets: _Sets, eps: float
) -> tuple[Tensor, Tangent]:
    """x̂ and its tangent, given x, its tangent and the adjoint of x̂; adds the contributions."""
    shape = x.shape
    x = x.reshape(1, *sets.view)
    c = x - sets.mean(x)
    r = (sets.mean(c * c) + eps).rsqrt()
    slope, bend, twist = -0.5 * r**3, 0.75 * r**5, -1.875 * r**7
    groups = moved.first.groups
    dx = moved.first.data
    dx = dx.reshape(dx.shape[0], *sets.view)
    dc = dx - sets.mean(dx)
    dv = 2 * sets.mean(c * dc)
    dr = slope * dv
    hat = (c * r).reshape(shape)
    first = Rows(groups, [(dc * r).addcmul_(c.expand_as(dc), dr.expand_as(dc)).view(-1, *shape)], owned=True)
    top = None if adjoint is None else adjoint.reshape(1, *sets.view)
    count = c.numel() // r.numel()
    if top is not None:
        r_bar = sets.total(top * c)
        v_bar = r_bar * slope
        pulled = sets.total(top * dc)
        sums.add_cross(Rows(groups, [pulled], owned=True), Rows(groups, [dr], owned=True))
        sums.add_square(groups, flat(dv * (r_bar * bend)), flat(dv))
        sums.add_square(groups, flat(dc * (v_bar * (2.0 / count))), flat(dc))
    if not sums.with_third:
        return hat, Tangent(first)
    square = dc * dc
    ddv = 2 * sets.mean(square)
    ddc = None
    if moved.second is not None:
        ddx = moved.second.widen(groups)
        ddx = ddx.reshape(ddx.shape[0], *sets.view)
        ddc = ddx - sets.mean(ddx)
        ddv = ddv + 2 * sets.mean(c * ddc)
    ddr = bend * dv * dv + slope * ddv
    if top is not None:
        small = 3 * pulled * ddr + r_bar * (twist * dv**3 + 3 * bend * dv * ddv)
        sums.add_third(groups, flat(small).sum(1))
        if ddc is not None:
            sums.add_third(groups, row_dots(flat(sets.total(top * ddc)), flat(dr)), 3.0)
            sums.add_third(
                groups, row_dots(flat(sets.total(dc * ddc)), flat((v_bar / count).expand_as(dr))), 6.0
            )
    second = torch.mul(dc, 2 * dr).addcmul_(c.expand_as(dc), ddr.expand_as(dc))
    if ddc is not None:
        second.addcmul_(ddc, r.expand_as(ddc))
    return hat, Tangent(first, Rows(groups, [second.view(-1, *shape)], owned=True))


def _affine(
    site: Site, hat: Tensor, moved: Tangent | None, gain: int, shift: int, shape: list[int]
) -> Tangent | None:
    """Scale by the argument ``gain`` and shift by the argument ``shift``, both viewed in ``shape``."""
    terms: list[Tangent | None] = []
    gamma = site.argument(gain)
    if gamma is None:
        terms.append(moved)
    else:
        product = gate(hat, gamma.reshape(shape))
        d_gamma = site.tangent(gain)
        if d_gamma is not None:
            d_gamma = d_gamma.map(lambda rows: rows.reshape(rows.shape[0], *shape), fresh=False)
        terms.extend(push_product(site.sums, product, moved, d_gamma, site.adjoint(0)))
    d_beta = site.tangent(shift)
    if d_beta is not None:
        d_beta = d_beta.map(
            lambda rows: spread_rows(rows.reshape(rows.shape[0], *shape), hat.shape), fresh=False
        )
        for rows in d_beta.rows():
            rows.owned = False
        terms.append(d_beta)
    return joined(terms)


def _hat_adjoint(site: Site, gain: int, shape: list[int]) -> Tensor | None:
    adjoint, gamma = site.adjoint(0), site.argument(gain)
    return adjoint if adjoint is None or gamma is None else adjoint * gamma.reshape(shape)


def _normalised(site: Site, sets: _Sets, eps: float, gain: int, shift: int, shape: list[int]) -> Passed:
    x, moved = site.args[0], site.tangent(0)
    if moved is not None:
        hat, out = normalise(site.sums, x, moved, _hat_adjoint(site, gain, shape), sets, eps)
        return [_affine(site, hat, out, gain, shift, shape)]
    c = x.reshape(1, *sets.view)
    c = c - sets.mean(c)
    hat = (c * (sets.mean(c * c) + eps).rsqrt()).reshape(x.shape)
    return [_affine(site, hat, None, gain, shift, shape)]


@rule(*overloads("native_batch_norm", "_native_batch_norm_legit_functional"), adjoint=True)
def _batch_norm(site: Site) -> Passed:
    """Over samples and positions in training mode, else by running statistics, which are constants."""
    x, _, _, mean, variance, training, _, eps = site.args[:8]
    channels = x.shape[1]
    shape = [1, channels, *[1] * (x.dim() - 2)]
    if training:
        sets = _Sets(tuple(x.shape), (0, *range(2, x.dim())))
        return _normalised(site, sets, eps, 1, 2, shape)
    r = (variance + eps).rsqrt().reshape(shape)
    hat = (x - mean.reshape(shape)) * r
    moved = site.tangent(0)
    out = None if moved is None else moved.map(lambda rows: rows * r, fresh=True)
    return [_affine(site, hat, out, 1, 2, shape)]


@rule(*overloads("native_layer_norm"), adjoint=True)
def _layer_norm(site: Site) -> Passed:
    x, normalised, _, _, eps = site.args
    axes = tuple(range(x.dim() - len(normalised), x.dim()))
    return _normalised(site, _Sets(tuple(x.shape), axes), eps, 2, 3, list(normalised))


@rule(*overloads("native_group_norm"), adjoint=True)
def _group_norm(site: Site) -> Passed:
    x, _, _, samples, channels, _, groups, eps = site.args
    sets = _Sets((samples, groups, x.numel() // max(samples * groups, 1)), (2,))
    return _normalised(site, sets, eps, 1, 2, [1, channels, *[1] * (x.dim() - 2)])
