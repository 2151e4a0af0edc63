"""The rule for every operation without a rule of its own: differentiate that operation with torch.func.

For v = f(x) with adjoint v̄ and ψ(x) = ⟨v̄, f(x)⟩,

    H̄_st += ⟨ẋ^s, ∇²ψ ẋ^t⟩                   forward over reverse, batched over t
    D3_s  += d³/dε³ ψ(x + εẋ^s + ½ε²ẍ^s)      three nested forward modes, batched over s

and the first two derivatives of f along the same curve are the tangents to pass on.

torch's nested forward mode is wrong for some operations, without an error. Known ones use reverse mode
(:mod:`gnewton.summary.tangent.rules.reverse`). The others are compared with reverse mode the first time, and
their second order every time with the diagonal of their block of H̄, which is available:
⟨v̄, f̈⟩ − ⟨∇ψ, ẍ⟩ = ⟨ẋ, ∇²ψ ẋ⟩.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from gnewton.backend import is_exhausted
from gnewton.summary.tangent.accumulator import being_compiled, flat
from gnewton.summary.tangent.rules.reverse import OperationDerivatives, disagree, numbers_of, reverse_parts
from gnewton.summary.tangent.rules.rule import OperationSite, Passed, overloads
from gnewton.summary.tangent.tangent import Rows, Tangent, union

log = logging.getLogger(__name__)

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
    outputs = list(site.value) if several else [site.value]
    smooth = [i for i, out in enumerate(outputs) if isinstance(out, Tensor) and out.is_floating_point()]

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
        pushed = _filled(vmap(lambda *dx: jvp(call, values, dx)[1])(*first))
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
    bends = _filled(second)
    parts = OperationDerivatives(
        groups, several, smooth, _filled(pushed), bends, block, third if contributes else None
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


def _filled(rows: Any) -> list[Tensor]:
    """Tangents in ordinary memory: torch may mark zeros by a flag that later operations do not support."""
    return [r.clone() if r._is_zerotensor() else r for r in rows]
