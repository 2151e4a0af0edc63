"""The rule for every operation without a rule of its own: differentiate that operation with torch.func.

For v = f(x) with adjoint v̄ and ψ(x) = ⟨v̄, f(x)⟩,

    H̄_st += ⟨ẋ^s, ∇²ψ ẋ^t⟩                   forward over reverse, batched over t
    D3_s  += d³/dε³ ψ(x + εẋ^s + ½ε²ẍ^s)      three nested forward modes, batched over s

and the first two derivatives of f along the same curve are the tangents to pass on.

Nested transformations have a price in Python, paid once for all groups. So few groups go by repeated reverse
mode instead, row by row (:func:`reverse_parts`).

torch's nested forward mode is wrong for some operations, without an error. Known ones, and those without a
forward mode, use reverse mode for many groups too. The others are compared with it the first time, and their
second order every time with the diagonal of their block of H̄, which is available:
⟨v̄, f̈⟩ − ⟨∇ψ, ẍ⟩ = ⟨ẋ, ∇²ψ ẋ⟩.

Reverse mode, with ψ_w(x) = ⟨w, f(x)⟩ and D the derivative along ẋ^s:

    ẏ = ∂(Dψ_w)/∂w        ÿ = ∂(D²ψ_w + ⟨∇ψ_w, ẍ⟩)/∂w        at w = v̄: D3 += D³ψ + 3 ⟨∇Dψ, ẍ⟩

and H̄_st += ⟨ẋ^s, ∇(Dψ along ẋ^t)⟩. It applies wherever the reference engine does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from gnewton.backend import is_exhausted
from gnewton.summary.tangent.accumulator import being_compiled, flat
from gnewton.summary.tangent.rules.rule import OperationSite, Passed, overloads, results_of
from gnewton.summary.tangent.tangent import Rows, Tangent, union


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
    outputs, smooth = results_of(site.value)
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
        psi = inner_product([results[i] for i in smooth], weights)
        slopes = gradients(psi, values)
        pushed: list[list[Tensor]] = []
        bent: list[list[Tensor]] = []
        columns: list[list[Tensor]] = []
        thirds: list[Tensor] = []
        for k in range(len(groups)):
            dx = [rows[k] for rows in first]
            along = inner_product(slopes, dx)
            column = gradients(along, values)
            pushed.append([g.detach() for g in gradients(along, weights)])
            columns.append([g.detach() for g in column])
            if site.third:
                ddx = [None if rows is None else rows[k] for rows in second]
                twice = inner_product(column, dx)
                bent.append([g.detach() for g in gradients(twice + inner_product(slopes, ddx), weights)])
                thirds.append(
                    (inner_product(gradients(twice, values), dx) + 3 * inner_product(column, ddx)).detach()
                )
    block = sum(
        (flat(rows) @ flat(torch.stack([c[i] for c in columns])).T for i, rows in enumerate(first)),
        torch.zeros((), device=first[0].device),
    )
    stacked = [torch.stack([row[j] for row in pushed]) for j in range(len(smooth))]
    curved = [torch.stack([row[j] for row in bent]) for j in range(len(smooth))] if site.third else None
    return OperationDerivatives(
        groups, several, smooth, stacked, curved, block, torch.stack(thirds) if site.third else None
    )


def inner_product(a: Sequence[Tensor], b: Sequence[Tensor | None]) -> Tensor:
    """The sum of the inner products of tensors, a scalar."""
    terms = [(x * y).sum() for x, y in zip(a, b, strict=True) if y is not None]
    return torch.stack(terms).sum() if terms else a[0].new_zeros(())


def gradients(scalar: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
    """∂(scalar)/∂(targets), which can be differentiated again; zeros where there is no dependence."""
    if not scalar.requires_grad:
        return [torch.zeros_like(t) for t in targets]
    grads = torch.autograd.grad(scalar, targets, create_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, targets, strict=True)]


log = logging.getLogger(__name__)

FEW = 32
"""Groups up to which reverse mode is the faster way on a CPU: 2 to 20 times for 16 or fewer, and for large
tensors twice for 64."""

# torch 2.11 to 2.14: wrong from the order given, against reverse mode and finite differences
WRONG = {
    **dict.fromkeys(overloads("_linalg_det", "_linalg_slogdet"), "third derivative, zero for log|det|"),
    **dict.fromkeys(overloads("_linalg_solve_ex"), "third derivative, with respect to the matrix"),
    **dict.fromkeys(overloads("linalg_householder_product"), "third derivative"),
}

# results of the comparison with reverse mode, by operation, kind of arguments and options
_verdicts: dict[Any, bool] = {}


def general_rule(site: OperationSite) -> Passed:
    """The tangent of any differentiable operation; adds its contributions.

    Raises:
        NotImplementedError, RuntimeError: torch's, where the operation has no derivatives of this order.
    """
    parts = _parts(site)
    if parts.block is not None:
        site.sums.add_block(parts.groups, (parts.block + parts.block.T) / 2)
    if parts.third is not None:
        site.sums.add_third(parts.groups, parts.third)
    return _outgoing(site, parts.several, parts.smooth, parts.groups, parts.first, parts.second)


def _outgoing(
    site: OperationSite, several: bool, smooth: list[int], groups: tuple[int, ...], first: Any, second: Any
) -> Passed:
    """The tangents of a value, or of those of several values that ``smooth`` lists."""
    tangents: list[Tangent | None] = [None] * (len(site.value) if several else 1)
    for j, i in enumerate(smooth):
        bent = None if second is None else Rows(groups, [second[j]], owned=True)
        tangents[i] = Tangent(Rows(groups, [first[j]], owned=True), bent)
    return tangents if several else tangents[0]


def _parts(site: OperationSite) -> OperationDerivatives:
    if site.step.op in WRONG:
        return reverse_parts(site)
    if _is_brief(site):
        try:
            parts = reverse_parts(site)
        except (NotImplementedError, RuntimeError) as error:  # not that often
            if is_exhausted(error):
                raise
        else:
            if all(bool(x.isfinite().all()) for x in numbers_of(parts)):
                return parts
    kind = _kind(site)
    verdict = _verdicts.get(kind)
    if verdict is False:
        return reverse_parts(site)
    try:
        parts, consistent = _by_forward_mode(site)
    except (NotImplementedError, RuntimeError) as error:
        if is_exhausted(error):
            raise
        return reverse_parts(site)  # no forward mode, or none of this order
    if being_compiled(parts.first[0]):
        return parts  # nothing to compare: passes run once with numbers before they are compiled
    if verdict is None:
        verdict = _compared(site, parts, kind)
    elif consistent is not None and parts.first[0].device.type == "cpu":
        verdict = bool(consistent)  # on other devices, reading it would wait
    return parts if verdict else reverse_parts(site)


def _is_brief(site: OperationSite) -> bool:
    """Whether an operation has few groups, on a CPU and not for the compiler."""
    rows = [tangent.first for _, _, tangent in site.moving_arguments()]
    sample = rows[0].parts[0]
    brief = len(union(*(r.groups for r in rows))) <= FEW
    return brief and sample.device.type == "cpu" and not being_compiled(sample)


def _compared(site: OperationSite, parts: OperationDerivatives, kind: Any) -> bool:
    """Whether forward mode agrees with reverse mode, where there is one."""
    try:
        other = reverse_parts(site)
    except (NotImplementedError, RuntimeError) as error:
        if is_exhausted(error):
            raise
        return True
    order = disagree(parts, other)
    if order is None:
        if site.third and any(bool(x.any()) for x in numbers_of(parts)):  # else nothing compared
            _verdicts[kind] = True
        return True
    _verdicts[kind] = False
    log.info("summary: forward mode is wrong for %s (%s); reverse mode is used", site.step.op, order)
    return False


def _kind(site: OperationSite) -> Any:
    """The key of an operation: dimensions and types of its tensors, those with tangents, its options."""
    moving = tuple(path for path, _, _ in site.moving_arguments())
    options = repr(
        [
            (x.dim(), x.dtype, x.device.type) if isinstance(x, Tensor) else x
            for a in (*site.args, *site.kwargs.items())
            for x in (a if isinstance(a, (list, tuple)) else [a])
        ]
    )
    return site.step.op, moving, options, site.third


def _by_forward_mode(site: OperationSite) -> tuple[OperationDerivatives, Tensor | None]:
    """The derivatives, and whether the second order agrees with the block (None: unknown)."""
    moving = site.moving_arguments()
    values = tuple(value.detach() for _, value, _ in moving)
    groups = union(*(tangent.first.groups for _, _, tangent in moving))
    first = tuple(tangent.first.widen(groups) for _, _, tangent in moving)
    several = not isinstance(site.value, Tensor)
    _, smooth = results_of(site.value)

    def call(*x: Tensor) -> tuple[Tensor, ...]:
        result = site.call_with([path for path, _, _ in moving], x)
        results = list(result) if several else [result]
        return tuple(results[i] for i in smooth)

    adjoints = [site.adjoint(i if several else None) for i in smooth]

    def weigh(results: tuple[Tensor, ...]) -> Tensor:
        return torch.stack(
            [(r * a).sum() for r, a in zip(results, adjoints, strict=True) if a is not None]
        ).sum()

    contributes = any(a is not None for a in adjoints)
    block: Any = None
    if contributes:
        gradient = grad(lambda x: weigh(call(*x)))
        columns = vmap(lambda *dx: jvp(gradient, (values,), (dx,))[1])(*first)
        block = sum(flat(a) @ flat(b).T for a, b in zip(first, columns, strict=True))
    if not site.third:
        pushed = filled(vmap(lambda *dx: jvp(call, values, dx)[1])(*first))
        return OperationDerivatives(groups, several, smooth, pushed, None, block, None), None

    bent = tuple(
        torch.zeros_like(rows) if tangent.second is None else tangent.second.widen(groups)
        for rows, (_, _, tangent) in zip(first, moving, strict=True)
    )
    one = torch.ones((), dtype=values[0].dtype, device=values[0].device)

    def derivatives(dx: tuple[Tensor, ...], ddx: tuple[Tensor, ...]) -> Any:
        def curve(e: Tensor) -> Any:
            at = tuple(x + e * (d + 0.5 * e * dd) for x, d, dd in zip(values, dx, ddx, strict=True))
            return call(*at)

        def slope(e: Tensor) -> Any:
            return jvp(curve, (e,), (one,))[1]

        def bend(e: Tensor) -> Any:
            value, tangent = jvp(slope, (e,), (one,))[:2]
            return tangent, value

        (second, initial), (third, _) = jvp(bend, (torch.zeros_like(one),), (one,))[:2]
        return initial, second, weigh(third) if contributes else torch.zeros_like(one)

    pushed, second, third = vmap(derivatives)(first, bent)
    bends = filled(second)
    parts = OperationDerivatives(
        groups, several, smooth, filled(pushed), bends, block, third if contributes else None
    )
    if not contributes or being_compiled(third):
        return parts, None
    slopes = gradient(values)
    weighted = [(flat(r), a.reshape(-1)) for r, a in zip(bends, adjoints, strict=True) if a is not None]
    curved = [(flat(rows), s.reshape(-1)) for rows, s in zip(bent, slopes, strict=True)]
    inner = sum(r @ a for r, a in weighted) - sum(rows @ s for rows, s in curved)
    size = sum(r.norm(dim=1) * a.norm() for r, a in weighted) + sum(
        rows.norm(dim=1) * s.norm() for rows, s in curved
    )
    tolerance = 1e-8 if one.dtype == torch.float64 else 1e-3
    gap = (inner - block.diagonal()).abs()
    return parts, ~(gap > tolerance * (size + block.diagonal().abs())).any()


def filled(rows: Any) -> list[Tensor]:
    """Tangents in ordinary memory: torch may mark zeros by a flag that later operations do not support."""
    return [r.clone() if r._is_zerotensor() else r for r in rows]
