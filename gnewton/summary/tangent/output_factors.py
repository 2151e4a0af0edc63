"""Columns of the curvature of a loss in the outputs of each sample: Λ_n = Σ_k w_n^k a_n^k (a_n^k)ᵀ.

One column is the gradient of the loss itself. For a softmax with one label per sample it is, up to a factor,
the first column of the Cholesky factor of diag(p) − ppᵀ with that label first (Tanabe & Sagae 1992), so K − 1
columns give gradient and curvature. Any other loss is differentiated twice in its outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.summary.cut import FLAT, NOT_CONVEX
from gnewton.summary.result import COARSE
from gnewton.summary.tangent.passes import call_step
from gnewton.summary.tangent.plan import PassPlan
from gnewton.summary.tangent.program import Ref, aten

_PRODUCTS = (aten.mul.Tensor, aten.mm.default, aten.bmm.default, aten.dot.default, aten.mv.default)
_QUOTIENTS = (aten.div.Tensor,)


@dataclass(frozen=True)
class Columns:
    """Cotangents of the outputs.

    Attributes:
        stacks: the columns of each output, (k, *output); the first is the gradient of the loss.
        weights: w_n^k of each sample, (k, N); that of the gradient may be zero.
    """

    stacks: list[Tensor]
    weights: Tensor


class OutputLoss:
    """The second half of a program as a function of the values z (N, *output) that its first half passes on.

    Args:
        plan: the plan of the passes.
        model: the steps of the first half.
        ends: the steps of z.

    Attributes:
        curved: the steps that bend the loss.
        tolerance: the relative error up to which two products that differ by factors are taken to agree.
    """

    def __init__(self, plan: PassPlan, model: frozenset[int], ends: tuple[int, ...]) -> None:
        self.program = plan.program
        self.ends = ends
        steps = self.program.steps
        self._steps = [i for i, step in enumerate(steps) if step.needed and i not in model and step.op]
        self.curved = frozenset(
            i
            for i in self._steps
            if steps[i].active and i in plan.rules and plan.rules[i].adjoint and not self._is_scaling(i)
        )
        only = min(self.curved) if len(self.curved) == 1 else -1
        self._softmax = only if self._is_softmax(only) else None
        self.tolerance = tolerance_of(step.dtype for step in steps if step.active and step.dtype is not None)

    def _is_scaling(self, i: int) -> bool:
        """Whether a step multiplies the one value that depends on parameters by a constant."""
        step = self.program.steps[i]
        moving = [k for k, a in enumerate(step.args) if type(a) is Ref and self.program.steps[a.step].active]
        return (step.op in _PRODUCTS and len(moving) == 1) or (step.op in _QUOTIENTS and moving == [0])

    def _is_softmax(self, i: int) -> bool:
        """Whether a step is the softmax of the only output, (N, K)."""
        step = self.program.steps[i]
        ends = self.ends
        return (
            i >= 0
            and len(ends) == 1
            and len(self.program.steps[ends[0]].shape) == 2
            and step.op is aten._log_softmax.default
            and step.args[:2] in ((Ref(ends[0]), 1), (Ref(ends[0]), -1))
        )

    def gradient(self, values: Sequence[Any], *, graph: bool) -> tuple[list[Tensor], list[Tensor], list[Any]]:
        """z, the gradient of the loss in z, and the values of all steps with their graph to z.

        Args:
            values: those of the program.
            graph: whether the gradient has a graph to z.
        """
        tracked = [v.detach() if isinstance(v, Tensor) else v for v in values]
        z = [values[at].detach().requires_grad_() for at in self.ends]
        for at, value in zip(self.ends, z, strict=True):
            tracked[at] = value
        with torch.enable_grad():
            for i in self._steps:
                tracked[i] = call_step(self.program, self.program.steps[i], tracked)
            slopes = torch.autograd.grad(tracked[self.program.loss], z, create_graph=graph, retain_graph=True)
        return z, list(slopes), tracked

    def columns(self, values: Sequence[Any]) -> Columns:
        """The columns whose sum of squares is Λ.

        Raises:
            InputError: if the loss is linear in the outputs, or not convex in those of a sample.
        """
        if not self.curved:
            raise InputError(FLAT)
        if self._softmax is not None:
            _, _, tracked = self.gradient(values, graph=False)
            q = tracked[self._softmax]
            (adjoint,) = torch.autograd.grad(tracked[self.program.loss], q)
            if bool(((adjoint != 0).sum(1) <= 1).all()):
                return _softmax_columns(q.detach(), adjoint)
        z, slopes, _ = self.gradient(values, graph=True)
        columns = _square_root(_blocks(z, slopes))
        widths = [value[0].numel() for value in z]
        return with_gradient(slopes, list(columns.split(widths, 2)))

    def separates(self, values: Sequence[Any], generator: torch.Generator) -> bool:
        """Whether the Hessian of the loss does not couple samples, by two products with random vectors."""
        z, slopes, _ = self.gradient(values, graph=True)
        curved = [slope for slope in slopes if slope.requires_grad]
        if not curved:
            return True
        probes = random_columns(z, generator)
        scales = sample_scales(len(z[0]), generator, z[0])
        scaled = [by_sample(v, scales) for v in probes]
        products = []
        for vectors in (probes, scaled):
            kept = [v for v, slope in zip(vectors, slopes, strict=True) if slope.requires_grad]
            products.append(torch.autograd.grad(curved, z, kept, retain_graph=True, materialize_grads=True))
        size = max(float(one.abs().amax()) for one in products[0]) * float(scales.abs().amax())
        allowed = self.tolerance * size
        return all(
            bool((other - by_sample(one, scales)).abs().amax() <= allowed)
            for one, other in zip(*products, strict=True)
        )


def random_columns(z: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Normal numbers in the shapes of z."""
    return [torch.randn(v.shape, generator=generator, dtype=v.dtype, device=v.device) for v in z]


def tolerance_of(dtypes: Iterable[torch.dtype]) -> float:
    """The relative error of a product that is computed twice, with factors 2^r: that of the coarsest type.

    The same operations on the same numbers give the same result but for the order of sums. In half precision
    every result is rounded by itself, so a few units suffice; 10³ of them would hide every coupling.
    """
    unit = max((torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point), default=0.0)
    return (4 if unit > COARSE else 1e3) * unit


def by_sample(value: Tensor, scales: Tensor) -> Tensor:
    """A value (N, *shape), multiplied by a factor for each sample."""
    return scales.to(value.dtype).view(-1, *[1] * (value.dim() - 1)) * value


def sample_scales(samples: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """A random factor ±2^r for each sample, (N,): products with them are exact."""
    signs = torch.randint(0, 2, (samples,), generator=generator, device=like.device) * 2 - 1
    powers = torch.randint(-4, 5, (samples,), generator=generator, device=like.device)
    return torch.ldexp(signs.to(like.dtype), powers)


def with_gradient(slopes: Sequence[Tensor], columns: Sequence[Tensor]) -> Columns:
    """The gradient, of weight zero, before the columns (k, …) of each output."""
    stacks = [
        torch.cat([slope.detach().unsqueeze(0), part.to(slope.dtype).reshape(len(part), *slope.shape)])
        for slope, part in zip(slopes, columns, strict=True)
    ]
    shape = len(stacks[0]), len(slopes[0])
    weights = torch.ones(shape, dtype=torch.float64, device=slopes[0].device)
    weights[0] = 0.0
    return Columns(stacks, weights)


def _softmax_columns(q: Tensor, adjoint: Tensor) -> Columns:
    """For log-probabilities q (N, K) and adjoints with a single entry −s_n at the label of each sample."""
    p, classes = q.exp(), q.shape[1]
    share, label = (-adjoint).max(1)
    if bool((adjoint > 0).any()):
        raise InputError(NOT_CONVEX)
    order = torch.arange(classes, device=q.device).expand_as(q).clone()
    order.scatter_(1, label[:, None], 0)
    order[:, 0] = label
    ordered = p.gather(1, order)
    tails = ordered.flip(1).cumsum(1).flip(1)  # Σ of the probabilities from j on
    after = torch.cat([tails[:, 1:], torch.zeros_like(tails[:, :1])], 1)
    tiny = torch.finfo(q.dtype).tiny
    diagonal = (ordered * after / tails.clamp_min(tiny)).sqrt()
    ratio = diagonal / after.clamp_min(tiny)
    stack = torch.empty(max(classes - 1, 1), *q.shape, dtype=q.dtype, device=q.device)
    root = share.sqrt()[:, None]
    for j in range(1, classes - 1):
        column = torch.zeros_like(q)
        column[:, j] = diagonal[:, j]
        column[:, j + 1 :] = -ordered[:, j + 1 :] * ratio[:, j : j + 1]
        stack[j] = torch.zeros_like(q).scatter_(1, order, column * root)
    rest = after[:, 0]
    gradient = ordered.clone()
    gradient[:, 0] = -rest
    stack[0] = torch.zeros_like(q).scatter_(1, order, gradient * share[:, None])
    weights = torch.ones(len(stack), len(q), dtype=torch.float64, device=q.device)
    size = share.double() * rest.double()
    weights[0] = torch.where(size > 0, ordered[:, 0].double() / size.clamp_min(1e-300), 0.0)
    return Columns([stack], weights)


def _blocks(z: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """The Hessian of the loss in all outputs of each sample, (N, K, K)."""
    samples, widths = len(z[0]), [value[0].numel() for value in z]
    width = sum(widths)
    curved = [k for k, slope in enumerate(slopes) if slope.requires_grad]
    if not curved:
        raise InputError(FLAT)
    basis = torch.eye(width, dtype=z[0].dtype, device=z[0].device).view(width, 1, width)
    parts = basis.expand(width, samples, width).split(widths, 2)
    directions = [parts[k].reshape(width, *z[k].shape).to(z[k].dtype) for k in curved]
    products = torch.autograd.grad(
        [slopes[k] for k in curved], z, directions, is_grads_batched=True, allow_unused=True
    )
    rows = torch.cat(
        [
            z[0].new_zeros(width, samples, n) if part is None else part.reshape(width, samples, n)
            for part, n in zip(products, widths, strict=True)
        ],
        2,
    )
    blocks: Tensor = rows.transpose(0, 1)
    return (blocks + blocks.mT) / 2


def _square_root(blocks: Tensor) -> Tensor:
    """A with A_n A_nᵀ = Λ_n, as columns (k, N, K); columns that are zero everywhere are left out."""
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    if not bool((blocks - torch.diag_embed(diagonal)).any()):
        values, factor = diagonal, torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
        factor = factor.expand_as(blocks)
    else:
        values, factor = torch.linalg.eigh(blocks.double())
    size = values.abs().amax()
    tolerance = 64 * torch.finfo(blocks.dtype).eps * size
    if bool((values < -tolerance).any()):
        raise InputError(NOT_CONVEX)
    columns = (factor * values.clamp_min(0).sqrt()[:, None, :]).permute(2, 0, 1)
    kept = (values > torch.finfo(values.dtype).eps * size).any(0)
    return columns[kept].to(blocks.dtype)
