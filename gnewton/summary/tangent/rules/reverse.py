"""Operations without a forward mode: derivatives by repeated reverse mode, row by row.

With ψ_w(x) = ⟨w, f(x)⟩ and D the derivative along ẋ^s,

    ẏ = ∂(Dψ_w)/∂w        ÿ = ∂(D²ψ_w + ⟨∇ψ_w, ẍ⟩)/∂w        at w = v̄: D3 += D³ψ + 3 ⟨∇Dψ, ẍ⟩

and H̄_st += ⟨ẋ^s, ∇(Dψ along ẋ^t)⟩. It applies wherever the reference engine does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import flat
from gnewton.summary.tangent.rules.rule import OperationSite
from gnewton.summary.tangent.tangent import union


@dataclass(frozen=True)
class OperationDerivatives:
    """Tangents and contributions of one operation, k groups.

    Attributes:
        groups: the groups on which the operation depends.
        several: whether the operation has several values.
        smooth: the values that have derivatives.
        first, second: their tangents, (k, *shape) each; ``second`` is None without third derivatives.
        block: the contribution to the Hessian, (k, k), not yet symmetric; None for none.
        third: the contribution to the third derivatives, (k,); None for none.
    """

    groups: tuple[int, ...]
    several: bool
    smooth: list[int]
    first: Sequence[Tensor]
    second: Sequence[Tensor] | None
    block: Tensor | None
    third: Tensor | None


def numbers_of(parts: OperationDerivatives) -> list[Tensor]:
    """The entries beyond first order."""
    return [*(parts.second or []), *(x for x in (parts.block, parts.third) if x is not None)]


def disagree(a: OperationDerivatives, b: OperationDerivatives) -> str | None:
    """The first part in which two results differ by more than rounding; None if they agree.

    Entries of ``b`` that are not finite are not compared.
    """
    tolerance = 1e-6 if a.first[0].dtype == torch.float64 else 2e-2
    zero = torch.zeros((), device=a.first[0].device)
    pairs = [
        *(("first derivative", x, y) for x, y in zip(a.first, b.first, strict=True)),
        *(("second derivative", x, y) for x, y in zip(a.second or [], b.second or [], strict=True)),
        ("curvature", zero if a.block is None else a.block, zero if b.block is None else b.block),
        ("third derivative", zero if a.third is None else a.third, zero if b.third is None else b.third),
    ]
    for order, x, y in pairs:
        right = y.isfinite()
        gap = torch.where(right, x - y, 0).norm()
        scale = torch.where(right, y, 0).norm() + torch.where(right & x.isfinite(), x, 0).norm()
        if not bool(gap <= tolerance * scale + 1e-30):
            return order
    return None


def reverse_parts(site: OperationSite) -> OperationDerivatives:
    """Tangents and contributions of any operation that autograd differentiates often enough."""
    moving = site.moving_arguments()
    groups = union(*(tangent.first.groups for _, _, tangent in moving))
    first = [tangent.first.widen(groups) for _, _, tangent in moving]
    second = [None if t.second is None else t.second.widen(groups) for _, _, t in moving]
    several = not isinstance(site.value, Tensor)
    outputs = list(site.value) if several else [site.value]
    smooth = [i for i, out in enumerate(outputs) if isinstance(out, Tensor) and out.is_floating_point()]
    with torch.enable_grad():
        values = [value.detach().requires_grad_() for _, value, _ in moving]
        result = site.call_with([path for path, _, _ in moving], tuple(values))
        results = list(result) if several else [result]
        weights = []
        for i in smooth:
            adjoint = site.adjoint(i if several else None)
            weights.append(
                (torch.zeros_like(outputs[i]) if adjoint is None else adjoint).detach().requires_grad_()
            )
        psi = _dot([results[i] for i in smooth], weights)
        slopes = _grad(psi, values)
        pushed: list[list[Tensor]] = []
        bent: list[list[Tensor]] = []
        columns: list[list[Tensor]] = []
        thirds: list[Tensor] = []
        for k in range(len(groups)):
            dx = [rows[k] for rows in first]
            along = _dot(slopes, dx)
            column = _grad(along, values)
            pushed.append([g.detach() for g in _grad(along, weights)])
            columns.append([g.detach() for g in column])
            if site.third:
                ddx = [None if rows is None else rows[k] for rows in second]
                twice = _dot(column, dx)
                bent.append([g.detach() for g in _grad(twice + _dot(slopes, ddx), weights)])
                thirds.append((_dot(_grad(twice, values), dx) + 3 * _dot(column, ddx)).detach())
    block = sum(
        (flat(rows) @ flat(torch.stack([c[i] for c in columns])).T for i, rows in enumerate(first)),
        torch.zeros((), device=first[0].device),
    )
    stacked = [torch.stack([row[j] for row in pushed]) for j in range(len(smooth))]
    curved = [torch.stack([row[j] for row in bent]) for j in range(len(smooth))] if site.third else None
    return OperationDerivatives(
        groups, several, smooth, stacked, curved, block, torch.stack(thirds) if site.third else None
    )


def _dot(a: Sequence[Tensor], b: Sequence[Tensor | None]) -> Tensor:
    terms = [(x * y).sum() for x, y in zip(a, b, strict=True) if y is not None]
    return torch.stack(terms).sum() if terms else a[0].new_zeros(())


def _grad(scalar: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
    if not scalar.requires_grad:
        return [torch.zeros_like(t) for t in targets]
    grads = torch.autograd.grad(scalar, targets, create_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, targets, strict=True)]
