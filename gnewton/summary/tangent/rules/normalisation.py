"""Batch, layer and group normalisation: x̂ = c r with c = x − mean x, r = (mean c² + ε)^(-1/2), then x̂γ + β.

Over each normalised set of n entries, with ρ(v) = (v + ε)^(-1/2) and r̄ = Σ x̂̄ c the adjoint of r:

    ċ = ẋ − mean ẋ        v̇ = 2 mean(c ċ)                    ṙ = ρ' v̇
    c̈ = ẍ − mean ẍ        v̈ = 2 mean(ċ² + c c̈)               r̈ = ρ'' v̇² + ρ' v̈
    H̄_st += (Σ x̂̄ ċ^s) ṙ^t + (s ↔ t) + r̄ ρ'' v̇^s v̇^t + r̄ ρ' 2 mean(ċ^s ċ^t)
    D3_s += 3 Σ x̂̄ (ċ r̈ + c̈ ṙ) + r̄ (ρ''' v̇³ + 3 ρ'' v̇ v̈) + 6 r̄ ρ' mean(ċ c̈)
    x̂̇ = ċ r + c ṙ         x̂̈ = c̈ r + 2 ċ ṙ + c r̈
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from gnewton.summary.tangent.accumulator import Accumulator, flat, slabs
from gnewton.summary.tangent.rules.product import gate, joined, push_product, spread_rows, take_gradient
from gnewton.summary.tangent.rules.rule import OperationSite, Passed, overloads, rule
from gnewton.summary.tangent.tangent import Rows, Tangent


@dataclass(frozen=True)
class _Sets:
    """The normalised sets of a value: in the shape ``view`` they extend along ``axes``.

    Sets that differ along the axis ``cut`` do not mix, so a few of them are processed at a time.
    """

    view: tuple[int, ...]
    axes: tuple[int, ...]
    cut: int

    def mean(self, values: Tensor) -> Tensor:
        """Means over the sets of values (1, *view), axes kept."""
        return values.mean([a + 1 for a in self.axes], keepdim=True)

    def stack(self, rows: Tensor) -> Tensor:
        """A stack (k, *shape) of the value as a stack (k, *view)."""
        return rows.reshape(rows.shape[0], *self.view)

    def some(self, stack: Tensor, at: slice) -> Tensor:
        """The sets ``at`` of a stack (k, *view), set by set: (sets, k, *rest of the view)."""
        return stack.narrow(self.cut + 1, at.start, at.stop - at.start).movedim(self.cut + 1, 0)


def normalise(
    site: OperationSite, x: Tensor, moved: Tangent, adjoint: Tensor | None, sets: _Sets, eps: float
) -> Tangent:
    """The tangent of x̂, given x, its tangent and the adjoint of x̂; adds the contributions."""
    sums = site.sums
    groups, shape = moved.first.groups, x.shape
    dx = sets.stack(moved.first.merge())
    ddx = None if moved.second is None else sets.stack(moved.second.widen(groups))
    first = _target(moved.first, dx)
    second = None
    if sums.with_third:
        second = first.new_empty(first.shape) if moved.second is None else _target(moved.second, ddx)
    x = sets.stack(x.unsqueeze(0))
    top = None if adjoint is None else sets.stack(adjoint.unsqueeze(0))
    collected = _Collected()
    for at in slabs(sets.view[sets.cut], flat(dx)):
        _normalise_some(
            collected,
            sums.diagonal,
            eps,
            sets.some(x, at),
            sets.some(dx, at),
            None if ddx is None else sets.some(ddx, at),
            None if top is None else sets.some(top, at),
            sets.some(first, at),
            None if second is None else sets.some(second, at),
        )
    if collected.gram:
        collected.add_to(sums, groups, x.numel() // sets.mean(x).numel())
    out = Rows(groups, [first.view(-1, *shape)], owned=True)
    return Tangent(out, None if second is None else Rows(groups, [second.view(-1, *shape)], owned=True))


def _target(rows: Rows, stack: Tensor | None) -> Tensor:
    """The memory for the result: that of ``stack``, all rows of ``rows``, if it may be overwritten."""
    assert stack is not None
    free = rows.owned and rows.merge().is_contiguous()  # then the stack is a view of it
    return stack if free and len(stack) == len(rows) else stack.new_empty(stack.shape)


class _Collected:
    """Sums over the entries of the normalised sets, and their contributions once all sets are done.

    All are (m, k, 1) for m sets and k rows, or (m, 1, 1).

    Attributes:
        start: mean ẋ.
        pulled, dr, dv: Σ x̂̄ċ, ṙ, v̇.
        bowed: r̄ρ''.
        lengths: Σ ċ².
        worth: |mean x| ‖x̂̄‖ r², the effect of an error of ẋ on the gradient, in units of the error of x.
        third: the contributions to D3.
        gram: Σ_sets 2 r̄ρ' mean(ċ^s ċ^t), (k, k) for each slab, or its diagonal (k, 1).
    """

    def __init__(self) -> None:
        self.start: list[Tensor] = []
        self.pulled: list[Tensor] = []
        self.dr: list[Tensor] = []
        self.dv: list[Tensor] = []
        self.bowed: list[Tensor] = []
        self.lengths: list[Tensor] = []
        self.worth: list[Tensor] = []
        self.third: list[Tensor] = []
        self.gram: list[Tensor] = []

    def add_to(self, sums: Accumulator, groups: tuple[int, ...], n: int) -> None:
        """Add the contributions of all sets, of n entries each."""
        pulled, dr, dv = (torch.cat(part).squeeze(2).T for part in (self.pulled, self.dr, self.dv))
        sums.add_cross(Rows(groups, [pulled], owned=True), Rows(groups, [dr], owned=True))
        sums.add_square(groups, dv * torch.cat(self.bowed).view(1, -1), dv)
        gram = torch.stack(self.gram).sum(0)
        sums.add_gram(groups, gram[:, 0] if sums.diagonal else gram)
        if self.third:
            sums.add_third(groups, torch.cat(self.third).squeeze(2).sum(0, dtype=torch.float64))
        # the mean of the adjoint of x has an error too, which is multiplied by the mean of ẋ
        square = torch.cat(self.lengths) + n * torch.cat(self.start).square()
        sizes = (square.sqrt() * torch.cat(self.worth)).squeeze(2).sum(0)
        sums.add_gradient_noise(groups, sizes, n)


def _normalise_some(
    collected: _Collected,
    diagonal: bool,
    eps: float,
    x: Tensor,
    dx: Tensor,
    ddx: Tensor | None,
    top: Tensor | None,
    first: Tensor,
    second: Tensor | None,
) -> None:
    """:func:`normalise` for m sets of n entries each; the tangents are written to ``first`` and ``second``.

    Stacks have the shape (m, k, …), the value and its adjoint (m, 1, …). One product of the stack with the
    rows c, x̂̄ and 1 gives every sum over its entries, one product with itself the sums over products of its
    rows. Where the mean of x is many times its spread, x̂ has as many times the rounding error of x.
    """
    m = len(dx)
    c, (dc, start) = x.reshape(m, 1, -1), _from_first(dx)
    n = c.shape[2]
    mean = c.mean(2, keepdim=True)
    c = c - mean
    r = ((c * c).mean(2, keepdim=True) + eps).rsqrt()
    slope, bend, twist = -0.5 * r**3, 0.75 * r**5, -1.875 * r**7
    ones = torch.ones_like(c)
    centred = torch.zeros_like(c) if top is None else top.reshape(m, 1, n)
    r_bar = (centred * c).sum(2, keepdim=True)
    basis = torch.cat([c, centred - centred.mean(2, keepdim=True), ones], 1).mT  # (m, n, 3)
    along, pulled, total = torch.bmm(dc, basis).split(1, dim=2)  # (m, k, 1) each
    dc -= total / n
    dv = along * (2 / n)
    dr = slope * dv
    squares = (dc * dc).sum(2, keepdim=True) if diagonal else torch.bmm(dc, dc.mT)
    lengths = squares if diagonal else squares.diagonal(dim1=1, dim2=2).unsqueeze(2)
    if top is not None:
        weight = r_bar * slope * (2 / n)
        collected.start.append(start + total / n)
        collected.pulled.append(pulled)
        collected.dr.append(dr)
        collected.dv.append(dv)
        collected.bowed.append(r_bar * bend)
        collected.lengths.append(lengths)
        collected.worth.append(mean.abs() * r * r * vector_norm(centred, dim=2, keepdim=True))
        collected.gram.append((squares * weight).sum(0, dtype=torch.float64))
    if second is not None:
        ddv = (2 / n) * lengths
        bent = shift = mixed = None
        if ddx is not None:
            bent = _compact(ddx)
            along, shift, total = torch.bmm(bent, basis).split(1, dim=2)
            ddv = ddv + along * (2 / n)
            mixed = (dc * bent).sum(2, keepdim=True)
        ddr = bend * dv * dv + slope * ddv
        if top is not None:
            small = 3 * pulled * ddr + r_bar * (twist * dv**3 + 3 * bend * dv * ddv)
            if shift is not None and mixed is not None:
                small = small + 3 * shift * dr + 3 * weight * mixed
            collected.third.append(small)
        curved = dc * (2 * dr)
        if bent is None:
            curved.baddbmm_(ddr, c)
        else:
            curved.addcmul_(bent, r)
            curved.baddbmm_(torch.cat([ddr, total * (-r / n)], 2), torch.cat([c, ones], 1))
        second.copy_(curved.view(second.shape))
    first.copy_(dc.mul_(r).baddbmm_(dr, c).view(first.shape))


def _from_first(stack: Tensor) -> tuple[Tensor, Tensor]:
    """A stack (m, k, …) as a new one (m, k, n), every row less its first entry, and these entries, (m, k, 1).

    The mean is subtracted afterwards in any case. So a constant row, such as that of a bias, becomes exactly
    zero, where the mean of large equal numbers would leave rounding errors.
    """
    out = torch.empty(stack.shape, dtype=stack.dtype, device=stack.device)
    first = stack
    for axis in range(2, stack.dim()):
        first = first.narrow(axis, 0, 1)
    return torch.sub(stack, first, out=out).view(*stack.shape[:2], -1), first.reshape(*stack.shape[:2], 1)


def _compact(stack: Tensor) -> Tensor:
    """A copy of a stack (m, k, …) as (m, k, n)."""
    return stack.clone(memory_format=torch.contiguous_format).view(*stack.shape[:2], -1)


def _affine(
    site: OperationSite, hat: Tensor, moved: Tangent | None, gain: int, shift: int, shape: list[int]
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
            d_gamma = _viewed(d_gamma, shape)
        terms.extend(push_product(site.sums, product, moved, d_gamma, site.adjoint(0)))
    d_beta = site.tangent(shift)
    if d_beta is not None:
        d_beta, adjoint = _viewed(d_beta, shape), site.adjoint(0)
        if d_beta.leaf and adjoint is not None:
            take_gradient(site.sums, d_beta.first, adjoint)
        terms.append(d_beta.map(lambda rows: spread_rows(rows, hat.shape), fresh=False).borrowed())
    return joined(terms)


def _viewed(parameter: Tangent, shape: list[int]) -> Tangent:
    out = parameter.map(lambda rows: rows.reshape(rows.shape[0], *shape), fresh=False)
    out.leaf = parameter.leaf
    return out


def _hat_adjoint(site: OperationSite, gain: int, shape: list[int]) -> Tensor | None:
    adjoint, gamma = site.adjoint(0), site.argument(gain)
    return adjoint if adjoint is None or gamma is None else adjoint * gamma.reshape(shape)


def _normalised(
    site: OperationSite, sets: _Sets, eps: float, gain: int, shift: int, shape: list[int]
) -> Passed:
    x, moved = site.args[0], site.tangent(0)
    values = sets.stack(x.unsqueeze(0))
    centred = values - sets.mean(values)
    hat = (centred * (sets.mean(centred * centred) + eps).rsqrt()).reshape(x.shape)
    if moved is not None:
        moved = normalise(site, x, moved, _hat_adjoint(site, gain, shape), sets, eps)
    return [_affine(site, hat, moved, gain, shift, shape)]


def _refuse_statistics(site: OperationSite) -> None:
    """Raise an error if the loss reads mean or spread, which are values of the operation too."""
    if site.adjoint(1) is not None or site.adjoint(2) is not None:
        raise NotImplementedError("the loss reads the statistics of a normalisation")


@rule(
    *overloads("native_batch_norm", "_native_batch_norm_legit_functional"),
    adjoint=True,
    takes_gradient=(1, 2),
)
def _batch_norm(site: OperationSite) -> Passed:
    """Over samples and positions in training mode, else by running statistics, which are constants."""
    _refuse_statistics(site)
    x, _, _, mean, variance, training, _, eps = site.args[:8]
    channels = x.shape[1]
    shape = [1, channels, *[1] * (x.dim() - 2)]
    if training:
        sets = _Sets((x.shape[0], channels, x[0, 0].numel()), (0, 2), cut=1)
        return _normalised(site, sets, eps, 1, 2, shape)
    r = (variance + eps).rsqrt().reshape(shape)
    hat = (x - mean.reshape(shape)) * r
    moved = site.tangent(0)
    out = None if moved is None else moved.map(lambda rows: rows * r, fresh=True)
    return [_affine(site, hat, out, 1, 2, shape)]


@rule(*overloads("native_layer_norm"), adjoint=True, takes_gradient=(2, 3))
def _layer_norm(site: OperationSite) -> Passed:
    _refuse_statistics(site)
    x, normalised, _, _, eps = site.args
    size = math.prod(normalised)
    sets = _Sets((x.numel() // max(size, 1), size), (1,), cut=0)
    return _normalised(site, sets, eps, 2, 3, list(normalised))


@rule(*overloads("native_group_norm"), adjoint=True, takes_gradient=(1, 2))
def _group_norm(site: OperationSite) -> Passed:
    _refuse_statistics(site)
    x, _, _, samples, channels, _, groups, eps = site.args
    sets = _Sets((samples * groups, x.numel() // max(samples * groups, 1)), (1,), cut=0)
    return _normalised(site, sets, eps, 1, 2, [1, channels, *[1] * (x.dim() - 2)])
