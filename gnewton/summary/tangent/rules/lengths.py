"""Norms, standard deviations, variances and angles. The length y = ‖c‖ of sets of entries, or its square:

With c = x, or c = x − mean x, per set, along the curve x + εẋ + ½ε²ẍ (with ċ, c̈ centred in the same way):

    q = ‖c‖²      q̇ = 2⟨c, ċ⟩      q̈ = 2⟨ċ, ċ⟩ + 2⟨c, c̈⟩      q⃛ = 6⟨ċ, c̈⟩
    y = √q        ẏ = q̇ / 2y       ÿ = (q̈ / 2 − ẏ²) / y        y⃛ = (q⃛ / 2 − 3 ẏ ÿ) / y

    q: H̄_st += 2 q̄ ⟨ċ^s, ċ^t⟩                       D3_s += q̄ q⃛
    y: H̄_st += (ȳ / y) (⟨ċ^s, ċ^t⟩ − ẏ^s ẏ^t)       D3_s += ȳ y⃛

As in torch, the derivatives of a norm are zero where it is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import flat
from gnewton.summary.tangent.rules.general import general_rule
from gnewton.summary.tangent.rules.rule import OperationSite, Passed, overloads, rule
from gnewton.summary.tangent.tangent import Rows, Tangent, spread_rows, union


@rule(*overloads("linalg_vector_norm", "norm.ScalarOpt_dim", "norm.Scalar"), adjoint=True)
def _vector_norm(site: OperationSite) -> Passed:
    order, dims = site.argument(1, 2), site.argument(2)
    if order not in (2, None) or site.value.dtype != site.args[0].dtype:
        return general_rule(site)
    return _length(site, dims, centred=False, square=False, scale=1.0)


@rule(*overloads("var.correction", "std.correction"), adjoint=True)
def _spread(site: OperationSite) -> Passed:
    x, dims = site.args[0], site.argument(1)
    count = math.prod(x.shape[d] for d in _axes(x, dims))
    scale = variance_scale(count, site.kwargs.get("correction"))
    square = "var" in site.step.op.name()
    scale = scale if square else math.sqrt(scale)
    return _length(site, dims, centred=True, square=square, scale=scale)


def variance_scale(count: int, correction: float | None) -> float:
    """1/(n − δ); nan without degrees of freedom, where variances in torch are nan or infinite."""
    free = count - (1 if correction is None else correction)
    return 1.0 / free if free > 0 else math.nan


def _axes(x: Tensor, dims: Sequence[int] | int | None) -> list[int]:
    if dims is None or dims == []:
        return list(range(x.dim()))
    several = [dims] if isinstance(dims, int) else dims
    return sorted(d % max(x.dim(), 1) for d in several)


def _length(
    site: OperationSite, dims: Sequence[int] | None, *, centred: bool, square: bool, scale: float
) -> Passed:
    """The tangent of ``scale`` · ‖c‖ or ``scale`` · ‖c‖² of the sets along ``dims``."""
    x, z, sums = site.args[0], site.moving(0), site.sums
    axes = _axes(x, dims)
    if x.dim() == 0:
        return general_rule(site)
    groups, rest = z.first.groups, [d for d in range(x.dim()) if d not in axes]
    sets = math.prod(x.shape[d] for d in rest)

    def lined(stack: Tensor) -> Tensor:
        """A stack (k, *shape) as centred sets, (k, sets, entries)."""
        lines = stack.permute(0, *(d + 1 for d in rest), *(d + 1 for d in axes)).reshape(len(stack), sets, -1)
        return lines - lines.mean(2, keepdim=True) if centred else lines

    c, dc = lined(x.unsqueeze(0)), lined(z.first.merge())
    ddc = None if z.second is None else lined(z.second.widen(groups))
    along, squares = (dc * c).sum(2), (dc * dc).sum(2)  # (k, sets)
    adjoint = site.adjoint()
    top = None if adjoint is None else adjoint.reshape(1, sets) * scale
    inverse: Tensor | float = 1.0
    if not square:
        y = torch.linalg.vector_norm(c, dim=2)
        inverse = torch.where(y > 0, 1 / y, 0.0)
    slope = 2 * along if square else along * inverse
    if top is not None:
        weight = 2 * top if square else top * inverse
        sums.add_square(groups, flat(dc * weight.unsqueeze(2)), flat(dc))
        if not square:
            sums.add_square(groups, slope * -weight, slope)
    bend = None
    if site.third:
        bend = squares if ddc is None else squares + (ddc * c).sum(2)
        mixed = None if ddc is None else 3 * (dc * ddc).sum(2)
        if square:
            bend = 2 * bend
            twist = None if mixed is None else 2 * mixed
        else:
            bend = (bend - slope * slope) * inverse
            twist = (-3 * slope * bend if mixed is None else mixed - 3 * slope * bend) * inverse
        if top is not None and twist is not None:
            sums.add_third(groups, (twist * top).sum(1))
    shape = site.value.shape

    def out(entries: Tensor) -> Rows:
        return Rows(groups, [(entries * scale).reshape(-1, *shape)], owned=True)

    return Tangent(out(slope), None if bend is None else out(bend))


@rule(*overloads("atan2"), adjoint=True)
def _angle(site: OperationSite) -> Passed:
    """atan2(a, b) = Im log z of z = b + ia. With w = ż/z = p + iq and z̈/z = P + iQ:

    first q        second Q − 2pq        H̄_st −= v̄ (p^s q^t + q^s p^t)
    D3_s += v̄ (2 (3p²q − q³) − 3 (pQ + qP))
    """
    a, b = site.args
    shape, sums = site.value.shape, site.sums
    x, y = site.tangent(0), site.tangent(1)
    groups = union(*(t.first.groups for t in (x, y) if t is not None))
    square = a * a + b * b

    def over_z(da: Tensor | None, db: Tensor | None) -> tuple[Tensor, Tensor]:
        zero = a.new_zeros(())
        da, db = (zero if rows is None else rows for rows in (da, db))
        return flat(((b * db + a * da) / square).expand(len(groups), *shape)), flat(
            ((b * da - a * db) / square).expand(len(groups), *shape)
        )

    def rows_of(tangent: Tangent | None, second: bool) -> Tensor | None:
        rows = None if tangent is None else tangent.second if second else tangent.first
        return None if rows is None else spread_rows(rows.widen(groups), shape)

    p, q = over_z(rows_of(x, False), rows_of(y, False))
    adjoint = site.adjoint()
    top = None if adjoint is None else adjoint.reshape(1, -1)
    if top is not None:
        sums.add_cross(Rows(groups, [-top * p], owned=True), Rows(groups, [q], owned=False))
    bend = None
    if site.third:
        large_p, large_q = over_z(rows_of(x, True), rows_of(y, True))
        bend = large_q - 2 * p * q
        if top is not None:
            twist = 2 * (3 * p * p * q - q**3) - 3 * (p * large_q + q * large_p)
            sums.add_third(groups, (twist * top).sum(1))

    def out(entries: Tensor) -> Rows:
        return Rows(groups, [entries.reshape(-1, *shape)], owned=True)

    return Tangent(out(q), None if bend is None else out(bend))
