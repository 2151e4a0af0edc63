"""Reductions: the largest or smallest entries, norms, standard deviations and variances; and angles.

Pooling, sorting and the maximum along an axis choose one entry: linear where the choice stays the same. The
maxima without an index choose all equal ones, each with the same share; so do their derivatives in torch.

Norms and variances are the length y = ‖c‖ of sets of entries, or its square. With c = x, or c = x − mean x,
per set, along the curve x + εẋ + ½ε²ẍ (with ċ, c̈ centred in the same way):

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
from gnewton.summary.tangent.program import Step
from gnewton.summary.tangent.rules.general import general_rule
from gnewton.summary.tangent.rules.product import joined
from gnewton.summary.tangent.rules.rule import OperationSite, Passed, overloads, rule
from gnewton.summary.tangent.tangent import Rows, Tangent, spread_rows, union

# --- one chosen entry ---------------------------------------------------------------------------------------


@rule(*overloads("max_pool2d_with_indices", "adaptive_max_pool2d", "fractional_max_pool2d"))
def _max_pool2d(site: OperationSite) -> Passed:
    return _gather_pixels(site, 2)


@rule(*overloads("max_pool3d_with_indices", "adaptive_max_pool3d", "fractional_max_pool3d"))
def _max_pool3d(site: OperationSite) -> Passed:
    return _gather_pixels(site, 3)


def _gather_pixels(site: OperationSite, dims: int) -> Passed:
    chosen = site.value[1].flatten(-dims)

    def gather(rows: Tensor) -> Tensor:
        k = rows.shape[0]
        picked = rows.flatten(-dims).gather(-1, chosen.expand(k, *chosen.shape))
        return picked.view(k, *site.value[1].shape)

    return [site.moving(0).map(gather, fresh=True), None]


@rule(*overloads("max.dim", "min.dim", "median.dim", "mode", "kthvalue", "topk", "sort", "sort.stable"))
def _chosen(site: OperationSite) -> Passed:
    x, indices = site.args[0], site.value[1]
    name = site.step.op.name()
    if "sort" in name:
        dim = site.kwargs.get("dim", -1) if "stable" in name else site.argument(1, -1)
    else:
        dim = site.argument(2 if "topk" in name or "kthvalue" in name else 1, -1)
    if x.dim() == 0:
        return [site.moving(0).map(lambda rows: rows, fresh=False), None]
    kept = indices.dim() == x.dim()
    dim = dim % x.dim()
    at = indices if kept else indices.unsqueeze(dim)

    def gather(rows: Tensor) -> Tensor:
        picked = rows.gather(dim + 1, at.expand(rows.shape[0], *at.shape))
        return picked if kept else picked.squeeze(dim + 1)

    return [site.moving(0).map(gather, fresh=True), None]


# --- all that are equal -------------------------------------------------------------------------------------


@rule(*overloads("amax", "amin", "max", "min"))
def _extreme(site: OperationSite) -> Tangent | None:
    x = site.args[0]
    if x.dim() == 0:
        return site.moving(0).map(lambda rows: rows, fresh=False)
    dims = site.argument(1) or list(range(x.dim()))
    axes = [d % x.dim() for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
    value = site.value
    if value.dim() < x.dim():
        for axis in sorted(axes):
            value = value.unsqueeze(axis)
    equal = (x == value).to(x.dtype)
    share = equal / equal.sum(axes, keepdim=True)
    along, shape = [axis + 1 for axis in axes], site.value.shape
    return site.moving(0).map(lambda rows: (rows * share).sum(along).reshape(len(rows), *shape), fresh=True)


@rule(*overloads("maximum", "minimum", "clamp_min.Tensor", "clamp_max.Tensor"))
def _larger(site: OperationSite) -> Tangent | None:
    """Of two values; a bound that is met leaves the value its derivative."""
    a, b = site.args
    name = site.step.op.name()
    first = a > b if "maximum" in name or "clamp_min" in name else a < b
    share = first.to(site.value.dtype) + (a == b).to(site.value.dtype) * (1.0 if "clamp" in name else 0.5)
    shape = site.value.shape
    terms = []
    for k, weight in enumerate((share, 1 - share)):
        tangent = site.tangent(k)
        if tangent is not None:
            terms.append(_weighted(tangent, weight, shape))
    return joined(terms)


def _weighted(tangent: Tangent, weight: Tensor, shape: torch.Size) -> Tangent:
    return tangent.map(lambda rows: spread_rows(rows, shape) * weight, fresh=True)


def _is_no_product(step: Step) -> bool:
    return bool(step.args[4] != "prod" and step.shape)


@rule(*overloads("scatter_reduce.two"), covers=_is_no_product)
def _scatter_reduce(site: OperationSite) -> Passed:
    """Sums and means are linear; of the largest entries, all equal ones have the same share."""
    x, dim, index, source, kind = site.args[:5]
    with_self = site.kwargs.get("include_self", site.argument(5, True))
    dim, k_index = dim % x.dim(), index.unsqueeze(0)
    source = source[tuple(slice(n) for n in index.shape)]  # the entries that are read
    ones = torch.ones_like(x)
    if kind in ("sum", "mean"):
        own, taken = ones, torch.ones_like(source)
    else:
        own = (x == site.value).to(x.dtype)
        taken = (source == site.value.gather(dim, index)).to(x.dtype)
    if not with_self:
        own = own.scatter(dim, index, 0.0)
        if kind not in ("sum", "mean"):
            own = torch.where(torch.zeros_like(x).scatter(dim, index, 1.0) > 0, 0.0, ones)
    if kind != "sum":
        count = (own + torch.zeros_like(x).scatter_add(dim, index, taken)).clamp_min(1)
        own, taken = own / count, taken / count.gather(dim, index)

    def scatter(rows: Tensor) -> Tensor:
        at = (slice(None), *(slice(n) for n in index.shape))
        read = rows[at] * taken
        zeros = rows.new_zeros(len(rows), *x.shape)
        return zeros.scatter_add(dim + 1, k_index.expand(len(rows), *index.shape), read)

    first, second = site.tangent(0), site.tangent(3)
    return joined(
        [
            None if first is None else first.map(lambda rows: rows * own, fresh=True),
            None if second is None else second.map(scatter, fresh=True),
        ]
    )


# --- norms and variances ------------------------------------------------------------------------------------


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


# --- angles -------------------------------------------------------------------------------------------------


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
