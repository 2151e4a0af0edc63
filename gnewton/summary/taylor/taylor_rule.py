"""Rules for power series: what one is, their table, and the two for operations that the table lacks.

A linear operation passes every coefficient as a tangent does, by the rule of the tangent engine: all
coefficients of all groups become the rows of one tangent. A rule of the tangent engine that reads no adjoint
is linear in what moves, or linear where the choice of an entry stays the same.

Any other operation is differentiated alone, nested. The curve x(t) = x_0 + x_1 t + … + x_d t^d of its
arguments is differentiated d times, by d nested forward modes, batched over the groups. Its cost doubles with
each order. torch's nested forward mode is wrong for a few operations, without an error: the first time, the
coefficients up to the third order of one group are compared with repeated reverse mode, which then takes over
where they differ.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import jvp, vmap

from gnewton.backend import is_exhausted
from gnewton.summary.tangent.accumulator import Accumulator
from gnewton.summary.tangent.program import Path, Ref, Step, call_with
from gnewton.summary.tangent.rules import rule_of
from gnewton.summary.tangent.rules.general import WRONG, filled, gradients, inner_product
from gnewton.summary.tangent.rules.rule import OperationSite, overloads, results_of
from gnewton.summary.tangent.tangent import Rows, Tangent
from gnewton.summary.taylor.jet import Groups, Jet, joined_groups


@dataclass(frozen=True)
class SeriesSite:
    """One operation of the program as its rule sees it.

    Attributes:
        step: the operation.
        args, kwargs: its arguments, with the values of earlier steps.
        value: its result, or the list of its results.
        jets: the jets of earlier steps, by number; several for a step with several values.
        order: d.
        outputs: of several values, those that the loss depends on.
        sums: what the rules of the tangent engine take beside their tangents; they add nothing to it.
    """

    step: Step
    args: list[Any]
    kwargs: dict[str, Any]
    value: Any
    jets: Mapping[int, Jet]
    order: int
    outputs: tuple[int, ...]
    sums: Accumulator

    def jet(self, position: int) -> Jet | None:
        """The jet of the argument at ``position``; None where no group moves it."""
        argument = self.step.args[position] if position < len(self.step.args) else None
        return self.jets.get(argument.step) if type(argument) is Ref else None

    def moving(self, position: int) -> Jet:
        """The jet of an argument that is known to move."""
        jet = self.jet(position)
        assert jet is not None
        return jet

    def only_moves(self, *positions: int) -> bool:
        """Whether no argument but those at ``positions`` moves, and one of these does."""
        present = {j for j in self.step.reads if j in self.jets}
        named = {
            argument.step
            for p in positions
            if p < len(self.step.args) and type(argument := self.step.args[p]) is Ref
        }
        return bool(present) and present <= named

    def option(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the schema of the operation."""
        if name in self.kwargs:
            return self.kwargs[name]
        for position, argument in enumerate(self.step.op._schema.arguments):
            if argument.name == name and position < len(self.args):
                return self.args[position]
        return default

    @property
    def first_value(self) -> Tensor:
        """The value, or the first of several."""
        return self.value if isinstance(self.value, Tensor) else self.value[0]


Result: TypeAlias = "Jet | list[Jet | None] | None"
SeriesRule = Callable[[SeriesSite], Result]

SERIES_RULES: dict[Any, SeriesRule] = {}


class NotApplicable(Exception):
    """A rule does not cover the arguments of an operation; the general rule does."""


def series_rule(*names: str) -> Callable[[SeriesRule], SeriesRule]:
    """Enter a function into the table as the rule of the operations of these names ("add.Tensor")."""

    def enter(function: SeriesRule) -> SeriesRule:
        SERIES_RULES.update(dict.fromkeys(overloads(*names), function))
        return function

    return enter


class _LinearSite(OperationSite):
    """A site without adjoints, for rules that are linear; the general rule, which is not, finds no entry."""

    def moving_arguments(self) -> list[tuple[Path, Tensor, Tangent]]:
        raise NotApplicable


def linear_rule(site: SeriesSite) -> Result:
    """The jets of a linear operation.

    Raises:
        NotApplicable: if the tangent engine has no linear rule for it, or not for these arguments.
    """
    rule = rule_of(site.step)
    if rule is None or rule.adjoint:
        raise NotApplicable
    present = {j: site.jets[j] for j in site.step.reads if j in site.jets}
    groups = joined_groups(*present.values())
    degree = max(jet.degree for jet in present.values())
    every = tuple(range(degree * len(groups)))
    if not every:
        raise NotApplicable
    tangents = {
        j: Tangent(Rows(every, [jet.widened(groups, degree).flatten(0, 1)], owned=False))
        for j, jet in present.items()
    }
    passed = rule.function(
        _LinearSite(site.step, site.args, site.kwargs, site.value, tangents, {}, site.sums)
    )

    def jet(tangent: Tangent | None, value: Any) -> Jet | None:
        if tangent is None:
            return None
        return Jet(value, tangent.first.merge().unflatten(0, (degree, len(groups))), groups)

    if isinstance(passed, list):
        return [jet(tangent, value) for tangent, value in zip(passed, site.value, strict=False)]
    return jet(passed, site.value)


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
    of_outputs: list[Jet | None] = [None] * len(outputs)
    for i, stack in zip(smooth, terms, strict=True):
        of_outputs[i] = _jet(outputs[i], stack, groups)
    return of_outputs if several else of_outputs[0]


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
    by_terms = inner_product(weights, [a[0, -1] for a in terms])
    return _near(by_terms, slope)


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

    by_order = vmap(row)(*stacks)
    return [
        torch.stack([rows / math.factorial(n) for n, rows in enumerate(filled(of_one), start=1)])
        for of_one in zip(*by_order, strict=True)
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
