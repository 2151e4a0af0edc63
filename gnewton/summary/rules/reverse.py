"""The last resort among the rules: an operation without a forward mode, by repeated reverse mode, row by row.

With ψ_w(x) = ⟨w, f(x)⟩ and D the derivative along ẋ^s,

    ẏ = ∂(Dψ_w)/∂w        ÿ = ∂(D²ψ_w + ⟨∇ψ_w, ẍ⟩)/∂w        at w = v̄: D3 += D³ψ + 3 ⟨∇Dψ, ẍ⟩

and H̄_st += ⟨ẋ^s, ∇(Dψ along ẋ^t)⟩. It works wherever the reference engine does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.summary.accumulate import flat
from gnewton.summary.rules.arguments import call_with, moving_arguments
from gnewton.summary.rules.parts import Parts
from gnewton.summary.site import Site
from gnewton.summary.tangents import union


def reverse_parts(site: Site) -> Parts:
    """Tangents and contributions of any operation that autograd differentiates often enough."""
    moving = moving_arguments(site)
    groups = union(*(tangent.first.groups for _, _, tangent in moving))
    first = [tangent.first.widen(groups) for _, _, tangent in moving]
    second = [None if t.second is None else t.second.widen(groups) for _, _, t in moving]
    several = not isinstance(site.value, Tensor)
    outputs = list(site.value) if several else [site.value]
    smooth = [i for i, out in enumerate(outputs) if isinstance(out, Tensor) and out.is_floating_point()]
    with torch.enable_grad():
        values = [value.detach().requires_grad_() for _, value, _ in moving]
        result = call_with(site, [path for path, _, _ in moving], tuple(values))
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
    return Parts(groups, several, smooth, stacked, curved, block, torch.stack(thirds) if site.third else None)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor | None]) -> Tensor:
    terms = [(x * y).sum() for x, y in zip(a, b, strict=True) if y is not None]
    return torch.stack(terms).sum() if terms else a[0].new_zeros(())


def _grad(scalar: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
    if not scalar.requires_grad:
        return [torch.zeros_like(t) for t in targets]
    found = torch.autograd.grad(scalar, targets, create_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, targets, strict=True)]
