"""The element-wise functions that have a rule, each with its derivatives (see ``rules.pointwise``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnewton.summary.tangent.rules.general import general_rule
from gnewton.summary.tangent.rules.pointwise import Derivatives, push, push_linear
from gnewton.summary.tangent.rules.rule import RULES, OperationSite, Passed, TangentRule, overloads

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
