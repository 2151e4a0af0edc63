"""Choices of the largest or smallest entry: linear where the choice stays the same."""

from __future__ import annotations

from torch import Tensor

from gnewton.summary.rules.table import Passed, overloads, rule
from gnewton.summary.site import Site


@rule(*overloads("max_pool2d_with_indices", "adaptive_max_pool2d", "fractional_max_pool2d"))
def _max_pool2d(site: Site) -> Passed:
    return _gather_pixels(site, 2)


@rule(*overloads("max_pool3d_with_indices", "adaptive_max_pool3d", "fractional_max_pool3d"))
def _max_pool3d(site: Site) -> Passed:
    return _gather_pixels(site, 3)


def _gather_pixels(site: Site, dims: int) -> Passed:
    chosen = site.value[1].flatten(-dims)

    def gather(rows: Tensor) -> Tensor:
        k = rows.shape[0]
        picked = rows.flatten(-dims).gather(-1, chosen.expand(k, *chosen.shape))
        return picked.view(k, *site.value[1].shape)

    return [site.moving(0).map(gather, fresh=True), None]


@rule(*overloads("max.dim", "min.dim", "median.dim", "mode", "kthvalue", "topk", "sort", "sort.stable"))
def _chosen(site: Site) -> Passed:
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
