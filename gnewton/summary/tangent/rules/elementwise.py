"""Element-wise functions σ of one argument: contributions, and the derivatives of those with a rule.

With w = x̄σ'' and c = x̄σ''' (x̄ the adjoint of the value):

    H̄   += Ż diag(w) Żᵀ
    D3_s += Σ c ż³ + 3 Σ w ż z̈
    ż    ↦ σ'ż          z̈ ↦ σ''ż² + σ'z̈

On a CPU the entries are processed in blocks. Derivatives, products and sums of a block are formed while its
rows are in the cache, so each row is read from memory once and written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnewton.summary.tangent.accumulator import blocks, flat, joined_blocks
from gnewton.summary.tangent.rules.general import general_rule
from gnewton.summary.tangent.rules.rule import RULES, OperationSite, Passed, TangentRule, overloads, rule
from gnewton.summary.tangent.tangent import Rows, Tangent, span

Derivatives = tuple[Tensor, "Tensor | None", "Tensor | None"]
AtEntries = Callable[[slice], Derivatives]


def push(site: OperationSite, z: Tangent, adjoint: Tensor | None, derivatives: AtEntries) -> Tangent:
    """The tangent of σ(z) from that of z; adds the contributions of σ.

    Args:
        site: the operation, whose sums receive the contributions.
        z: the tangent of the argument.
        adjoint: ∂L/∂σ(z) in the shape of z; None omits the contributions.
        derivatives: σ', σ'' and σ''' (None: zero) at a slice of the entries of z in memory order.
    """
    sums = site.sums
    groups, shape, k = z.first.groups, z.first.shape, len(z.first)
    sources = [flat(part) for part in z.first.parts]  # joined block by block, in the cache
    line = None if adjoint is None else adjoint.reshape(-1)
    first = sources[0]
    if len(sources) > 1 or not (z.first.owned and z.first.parts[0].is_contiguous()):
        first = first.new_empty((k, first.shape[1]))
    moved, second, at = _second_rows(site, z, first)
    grams: list[Tensor] = []
    cubes: list[Tensor] = []
    for entries in blocks(first):
        slope, bend, twist = derivatives(entries)
        pieces = [source[:, entries] for source in sources]
        rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        before = None if moved is None else moved[:, entries]
        weighted = None
        if line is not None and bend is not None:
            weighted = rows * (line[entries] * bend)
            grams.append(sums.gram(weighted, rows))
        if second is not None:
            square = rows * rows
            if line is not None:
                cubic = None if twist is None else line[entries] * twist
                _third(cubes, at, rows, square, weighted, before, cubic)
            _second(second[:, entries], square, before, at, slope, bend)
        torch.mul(rows, slope, out=first[:, entries])
    if grams:
        sums.add_gram(groups, joined_blocks(grams, first))
    if cubes:
        sums.add_third(groups, joined_blocks(cubes, first))
    out = Rows(groups, [first.view(k, *shape)], owned=True)
    return Tangent(out, None if second is None else Rows(groups, [second.view(k, *shape)], owned=True))


def push_linear(z: Tangent, slope: Tensor) -> Tangent:
    """The tangent of a piecewise linear σ(z): both orders are scaled by σ'."""
    return Tangent(_scaled(z.first, slope), None if z.second is None else _scaled(z.second, slope))


def _scaled(rows: Rows, slope: Tensor) -> Rows:
    data = rows.merge()
    return Rows(rows.groups, [data.mul_(slope) if rows.owned else data * slope], owned=True)


def _second_rows(
    site: OperationSite, z: Tangent, first: Tensor
) -> tuple[Tensor | None, Tensor | None, slice]:
    """z̈ as a matrix, the matrix (k, N) for the result, and the index of the rows of z̈ among its rows.

    The result takes the memory of z̈ if that is owned and has a row, or room for one, for every group.
    """
    if not site.third:
        return None, None, slice(0, 0)
    if z.second is None:
        return None, first.new_empty(first.shape), slice(0, 0)
    at, data = span(z.second.groups, z.first.groups), z.second
    if not isinstance(at, slice):  # rare: groups out of order
        wide = flat(data.widen(z.first.groups))
        return wide, wide, slice(0, len(z.first))
    moved = flat(data.merge())
    if data.owned and data.merge().is_contiguous():
        if len(data) == len(first):
            return moved, moved, at
        if data.room is not None and len(data.room) >= len(first) and at.start == 0:
            return moved, flat(data.room[: len(first)]), at
    return moved, first.new_empty(first.shape), at


def _third(
    cubes: list[Tensor],
    at: slice,
    rows: Tensor,
    square: Tensor,
    weighted: Tensor | None,
    before: Tensor | None,
    cubic: Tensor | None,
) -> None:
    """Append Σ cż³ + 3 Σ (wż) z̈ of one block."""
    terms = None if cubic is None else (rows * cubic).mul_(square)
    if before is not None and weighted is not None:
        if terms is None:
            terms = torch.zeros_like(rows)
        terms[at].addcmul_(weighted[at], before, value=3)
    if terms is not None:
        cubes.append(terms.sum(1))


def _second(
    target: Tensor, square: Tensor, before: Tensor | None, at: slice, slope: Tensor, bend: Tensor | None
) -> None:
    """Write σ''ż² + σ'z̈ of one block to ``target``, whose rows ``at`` may be the memory of z̈."""
    if before is None:
        at = slice(0, 0)
    else:
        torch.mul(before, slope, out=target[at])
        if bend is not None:
            target[at].addcmul_(square[at], bend)
    for rest in (slice(0, at.start), slice(at.stop, len(target))):
        if rest.start < rest.stop:
            target[rest].zero_() if bend is None else torch.mul(square[rest], bend, out=target[rest])


ELEMENTWISE: set[Any] = set()
"""The functions of one argument, entry by entry."""

Formula = Callable[[Tensor, Tensor, list[Any], bool], Derivatives]


def elementwise(*names: str, curved: bool = True) -> Callable[[Formula], Formula]:
    """Enter σ by its derivatives: a function of (x, σ(x), further arguments, third) → (σ', σ'', σ''').

    σ'' and σ''' may be None where they vanish; σ''' is read only if ``third``. ``curved=False`` means that σ
    is piecewise linear, so no adjoint is needed.
    """

    def enter(formula: Formula) -> Formula:
        def function(site: OperationSite) -> Passed:
            z = site.tangent(0)
            if z is None or any(site.tangent(i) is not None for i in range(1, len(site.args))):
                return general_rule(site)
            x, y, rest = site.args[0], site.value, [*site.args[1:], *site.kwargs.values()]
            if not curved:
                return push_linear(z, formula(x, y, rest, False)[0])
            x, y = x.reshape(-1), y.reshape(-1)
            return push(site, z, site.adjoint(), lambda at: formula(x[at], y[at], rest, site.third))

        ELEMENTWISE.update(overloads(*names))
        for op in overloads(*names):
            RULES[op] = TangentRule(function, adjoint=curved)
        return formula

    return enter


@elementwise("tanh")
def _tanh(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    slope = 1 - y * y
    return slope, -2 * y * slope, slope * (4 - 6 * slope) if third else None


@elementwise("sigmoid")
def _sigmoid(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    slope = y * (1 - y)
    return slope, slope * (1 - 2 * y), slope * (1 - 6 * slope) if third else None


@elementwise("exp")
def _exp(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    return y, y, y


@elementwise("log")
def _log(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    slope = 1 / x
    return slope, -slope * slope, 2 * slope**3 if third else None


@elementwise("reciprocal")
def _reciprocal(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    square = y * y
    return -square, 2 * square * y, -6 * square * square if third else None


@elementwise("sqrt")
def _sqrt(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    slope = 0.5 / y
    return slope, -0.5 * slope / x, 0.75 * slope / (x * x) if third else None


@elementwise("rsqrt")
def _rsqrt(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    slope = -0.5 * y / x
    return slope, -1.5 * slope / x, 3.75 * slope / (x * x) if third else None


@elementwise("sin")
def _sin(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    slope = torch.cos(x)
    return slope, -y, -slope


@elementwise("cos")
def _cos(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    slope = -torch.sin(x)
    return slope, -y, -slope


@elementwise("elu")
def _elu(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    alpha, scale, inner = (rest[i] if i < len(rest) else 1.0 for i in range(3))
    below = x <= 0
    decay = torch.where(below, inner * (y + alpha * scale), 0.0)  # σ' below zero
    return torch.where(below, decay, scale), inner * decay, inner * inner * decay if third else None


@elementwise("gelu")
def _gelu(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    if "tanh" in rest:
        return by_differentiation(lambda z: F.gelu(z, approximate="tanh"), x, third=third)
    square = x * x
    density = torch.exp(-0.5 * square).mul_(1 / math.sqrt(2 * math.pi))
    slope = torch.erf(x * math.sqrt(0.5)).add_(1).mul_(0.5).addcmul_(x, density)
    return slope, density * (2 - square), density * x * (square - 4) if third else None


@elementwise("silu")
def _silu(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    s = torch.sigmoid(x)
    rise = s * (1 - s)
    bend = rise * (2 + x * (1 - 2 * s))
    return s + x * rise, bend, rise * (3 - 6 * s + x * (1 - 6 * rise)) if third else None


@elementwise("pow.Tensor_Scalar")
def _power(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    p = rest[0]
    if p == 2:
        return 2 * x, torch.full_like(x, 2.0), None
    return by_differentiation(lambda z: torch.pow(z, p), x, third=third)


@elementwise("relu", curved=False)
def _relu(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    return (y > 0).to(y.dtype), None, None


@elementwise("leaky_relu", curved=False)
def _leaky_relu(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    below = rest[0] if rest else 0.01
    return (x > 0).to(y.dtype) * (1 - below) + below, None, None


@elementwise("abs", curved=False)
def _abs(x: Tensor, y: Tensor, rest: list[Any], third: bool) -> Derivatives:
    return torch.sgn(x), None, None


@rule(*overloads("log_sigmoid_forward"), adjoint=True)
def _log_sigmoid(site: OperationSite) -> Passed:
    """log σ(x), which torch returns beside a buffer: σ' = 1 − s with s = σ(x)."""
    x = site.args[0].reshape(-1)

    def derivatives(at: slice) -> Derivatives:
        s = torch.sigmoid(x[at])
        rise = s * (1 - s)
        return torch.sigmoid(-x[at]), -rise, rise * (2 * s - 1) if site.third else None

    return [push(site, site.moving(0), site.adjoint(0), derivatives), None]


# --- others: derivatives by autograd, which cost little beside the S tangents -------------------------------

CURVED = (
    "mish softplus expm1 log1p log2 log10 exp2 erf erfc tan atan asin acos sinh cosh asinh acosh "
    "atanh hardswish lgamma digamma sinc logit log_sigmoid"
)
PIECEWISE_LINEAR = "hardtanh clamp clamp_min clamp_max hardsigmoid threshold softshrink hardshrink relu6"


def by_differentiation(
    function: Callable[[Tensor], Tensor], x: Tensor, *, third: bool, curved: bool = True
) -> Derivatives:
    """The first three derivatives of an element-wise function at x: those of its sum."""
    orders = 1 + curved + (curved and third)
    derivatives: list[Tensor | None] = []
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        current = function(x)
        for order in range(1, orders + 1):
            if not current.requires_grad:
                break
            (grad,) = torch.autograd.grad(current.sum(), x, create_graph=order < orders, allow_unused=True)
            if grad is None:
                break
            derivatives.append(grad.detach())
            current = grad
    slope, bend, twist = [*derivatives, None, None, None][:3]
    return torch.zeros_like(x) if slope is None else slope, bend, twist


def _enter(names: str, *, curved: bool) -> None:
    ELEMENTWISE.update(overloads(*names.split()))
    for op in overloads(*names.split()):

        def function(site: OperationSite, op: Any = op) -> Passed:
            z = site.tangent(0)
            if z is None or any(site.tangent(i) is not None for i in range(1, len(site.args))):
                return general_rule(site)

            def call(x: Tensor) -> Tensor:
                return op(x, *site.args[1:], **site.kwargs)

            if not curved:
                return push_linear(z, by_differentiation(call, site.args[0], third=False, curved=False)[0])
            x = site.args[0].reshape(-1)
            return push(site, z, site.adjoint(), lambda at: by_differentiation(call, x[at], third=site.third))

        RULES[op] = TangentRule(function, adjoint=curved)


_enter(CURVED, curved=True)
_enter(PIECEWISE_LINEAR, curved=False)
