"""The rule for every operation without one of its own: nested differentiation of that operation alone.

The curve x(t) = x_0 + x_1 t + … + x_d t^d of its arguments is differentiated d times, by d nested forward
modes, batched over the groups. Its cost doubles with each order. torch's nested forward mode is wrong for a
few operations, without an error: the first time, the coefficients up to the third order of one group are
compared with repeated reverse mode, which then takes over where they differ.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from gnewton.backend import is_exhausted
from gnewton.summary.tangent.program import call_with
from gnewton.summary.tangent.rules.general import WRONG, filled, gradients, inner_product
from gnewton.summary.tangent.rules.rule import results_of
from gnewton.summary.taylor.jet import Groups, Jet, joined_groups
from gnewton.summary.taylor.taylor_rule import Result, SeriesSite

log = logging.getLogger(__name__)

COMPARED = 3  # orders compared with reverse mode

Curve = Callable[[Tensor, list[Tensor]], tuple[Tensor, ...]]

# whether nested forward mode agreed with reverse mode, by operation, number of moving arguments and precision
_verdicts: dict[Any, bool] = {}


def nested_rule(site: SeriesSite) -> Result:
    """The jets of any differentiable operation.

    Raises:
        NotImplementedError, RuntimeError: torch's, where the operation has no derivatives of this order.
    """
    moving = [(path, j) for path, j in site.step.references() if j in site.jets]
    paths = [path for path, _ in moving]
    jets = [site.jets[j] for _, j in moving]
    groups = joined_groups(*jets)
    degree = max(jet.degree for jet in jets)
    stacks = [jet.widened(groups, degree).movedim(0, 1) for jet in jets]  # (k, m, *shape)
    several = not isinstance(site.value, Tensor)
    outputs, smooth = results_of(site.value)

    def curve(t: Tensor, coefficients: list[Tensor]) -> tuple[Tensor, ...]:
        """The smooth results along the curve, by Horner's scheme."""
        moved = []
        for jet, series in zip(jets, coefficients, strict=True):
            rise = torch.zeros_like(jet.value)
            for x in reversed(series.unbind(0)):
                rise = (rise + x) * t
            moved.append(jet.value + rise)
        result = call_with(site.step, site.args, site.kwargs, paths, moved)
        results = list(result) if several else [result]
        return tuple(results[i] for i in smooth)

    terms = _coefficients(site, curve, stacks, len(paths))
    found: list[Jet | None] = [None] * len(outputs)
    for i, stack in zip(smooth, terms, strict=True):
        found[i] = _jet(outputs[i], stack, groups)
    return found if several else found[0]


def _jet(value: Tensor, stack: Tensor, groups: Groups) -> Jet:
    return Jet(value, stack.to(value.dtype), groups)


def _coefficients(site: SeriesSite, curve: Curve, stacks: list[Tensor], count: int) -> list[Tensor]:
    """The coefficients of each smooth result, (d, k, *shape)."""
    kind = site.step.op, count, stacks[0].dtype
    if site.step.op in WRONG or _verdicts.get(kind) is False:
        return _by_reverse_mode(curve, stacks, site.order)
    try:
        terms = _by_forward_mode(curve, stacks, site.order)
    except (NotImplementedError, RuntimeError) as error:
        if is_exhausted(error):
            raise
        return _by_reverse_mode(curve, stacks, site.order)
    if kind not in _verdicts:
        verdict = _agrees(site, curve, stacks, terms)
        if verdict is not None:
            _verdicts[kind] = verdict
        if not verdict:
            return _by_reverse_mode(curve, stacks, site.order)
    return terms


def _agrees(site: SeriesSite, curve: Curve, stacks: list[Tensor], terms: list[Tensor]) -> bool | None:
    """Whether the low orders of one group agree with reverse mode, where there is one.

    None where either is not finite, which tells nothing of the operation.
    """
    orders = min(site.order, COMPARED)
    try:
        other = _by_reverse_mode(curve, [stack[-1:] for stack in stacks], orders)
    except (NotImplementedError, RuntimeError) as error:
        if is_exhausted(error) or not _slope_agrees(curve, stacks, terms):
            raise
        return True
    pairs = [(a[:orders, -1:], b) for a, b in zip(terms, other, strict=True)]
    if not all(x.isfinite().all() for pair in pairs for x in pair):
        return None
    for a, b in pairs:
        if not _near(a, b):
            log.info("summary: forward mode is wrong for %s; reverse mode is used", site.step.op)
            return False
    return True


def _slope_agrees(curve: Curve, stacks: list[Tensor], terms: list[Tensor]) -> bool:
    """Whether the first order of one group agrees with one backward pass, where that cannot be nested.

    An operation without forward mode may pass on zeros, without an error.
    """
    with torch.enable_grad():
        t = torch.zeros((), dtype=stacks[0].dtype, device=stacks[0].device, requires_grad=True)
        results = curve(t, [stack[-1] for stack in stacks])
        generator = torch.Generator(t.device).manual_seed(0)
        weights = [torch.rand(y.shape, generator=generator, dtype=y.dtype, device=y.device) for y in results]
        psi = inner_product(weights, results)
        (slope,) = torch.autograd.grad(psi, t)
    found = inner_product(weights, [a[0, -1] for a in terms])
    return _near(found, slope)


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= (1e-6 if b.dtype == torch.float64 else 2e-2) * b.norm() + 1e-30)


def _by_forward_mode(curve: Curve, stacks: list[Tensor], order: int) -> list[Tensor]:
    def row(*coefficients: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        one = torch.ones((), dtype=stacks[0].dtype, device=stacks[0].device)

        def tower(n: int) -> Callable[[Tensor], tuple[tuple[Tensor, ...], ...]]:
            """The derivatives of orders 0 … n."""
            if n == 0:
                return lambda t: (curve(t, list(coefficients)),)
            lower = tower(n - 1)

            def rise(t: Tensor) -> tuple[tuple[Tensor, ...], ...]:
                values, tangents = jvp(lower, (t,), (one,))[:2]
                return (*values, tangents[-1])

            return rise

        return tower(order)(torch.zeros_like(one))[1:]

    found = vmap(row)(*stacks)
    return [
        torch.stack([rows / math.factorial(n) for n, rows in enumerate(filled(of_one), start=1)])
        for of_one in zip(*found, strict=True)
    ]


def _by_reverse_mode(curve: Curve, stacks: list[Tensor], order: int) -> list[Tensor]:
    """With ψ_w(t) = ⟨w, y(t)⟩, the n-th derivative of y is ∂ψ_w⁽ⁿ⁾/∂w."""
    rows: list[list[list[Tensor]]] = []
    with torch.enable_grad():
        for coefficients in zip(*stacks, strict=True):
            t = torch.zeros((), dtype=stacks[0].dtype, device=stacks[0].device, requires_grad=True)
            results = curve(t, list(coefficients))
            weights = [torch.zeros_like(y).requires_grad_() for y in results]
            psi = inner_product(weights, results)
            orders = []
            for n in range(1, order + 1):
                psi = gradients(psi, [t])[0]
                scale = 1 / math.factorial(n)
                orders.append([g.detach() * scale for g in gradients(psi, weights)])
            rows.append(orders)
    return [
        torch.stack([torch.stack([row[n][i] for row in rows]) for n in range(order)])
        for i in range(len(rows[0][0]))
    ]
