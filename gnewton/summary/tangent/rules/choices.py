"""Choices of the largest or smallest entries: linear where the choice stays the same.

Pooling, sorting and the maximum along an axis choose one entry. The maxima without an index choose all equal
ones, each with the same share; so do their derivatives in torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnewton.summary.tangent.program import Step
from gnewton.summary.tangent.rules.product import joined
from gnewton.summary.tangent.rules.rule import OperationSite, Passed, overloads, rule
from gnewton.summary.tangent.tangent import Tangent, spread_rows


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
