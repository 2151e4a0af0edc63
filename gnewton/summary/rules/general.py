"""The rule for every operation that has none of its own: differentiate it, and nothing else, with torch.func.

For v = f(x) with adjoint v̄ and ψ(x) = ⟨v̄, f(x)⟩,

    H̄_st += ⟨ẋ^s, ∇²ψ ẋ^t⟩                   forward over reverse, batched over t
    D3_s  += d³/dε³ ψ(x + εẋ^s + ½ε²ẍ^s)      three nested forward modes, batched over s

and the first two derivatives of f along the same curve are the tangents to pass on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from gnewton.summary.accumulate import flat
from gnewton.summary.rules.arguments import call_with, moving_arguments, outgoing
from gnewton.summary.rules.reverse import reverse_rule
from gnewton.summary.rules.table import Passed
from gnewton.summary.site import Site
from gnewton.summary.tangents import union


def general_rule(site: Site) -> Passed:
    """Pass the tangents of any differentiable operation on, and add its contributions."""
    try:
        return _by_forward_mode(site)
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return reverse_rule(site)  # no forward mode, or none of this order


def _by_forward_mode(site: Site) -> Passed:
    """All contributions are added last, so that an operation without a forward mode leaves no trace."""
    moving = moving_arguments(site)
    values = tuple(value.detach() for _, value, _ in moving)
    groups = union(*(tangent.first.groups for _, _, tangent in moving))
    first = tuple(tangent.first.widen(groups) for _, _, tangent in moving)
    several = not isinstance(site.value, Tensor)
    outputs = list(site.value) if several else [site.value]
    smooth = [i for i, out in enumerate(outputs) if isinstance(out, Tensor) and out.is_floating_point()]

    def call(*x: Tensor) -> tuple[Tensor, ...]:
        result = call_with(site, [path for path, _, _ in moving], x)
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
        pushed = vmap(lambda *dx: jvp(call, values, dx)[1])(*first)
        if contributes:
            site.sums.add_block(groups, (block + block.T) / 2)
        return outgoing(site, several, smooth, groups, pushed, None)

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
    if contributes:
        site.sums.add_block(groups, (block + block.T) / 2)
        site.sums.add_third(groups, third)
    return outgoing(site, several, smooth, groups, pushed, second)
