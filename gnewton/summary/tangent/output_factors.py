"""Columns of the curvature of a loss in the outputs of each sample: Λ_n = Σ_k w_n^k a_n^k (a_n^k)ᵀ.

One column is the gradient of the loss itself. For a softmax with one label per sample it is, up to a factor,
the first column of the Cholesky factor of diag(p) − ppᵀ with that label first (Tanabe & Sagae 1992), so K − 1
columns give gradient and curvature. Any other loss is differentiated twice in its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.summary.cut import FLAT, NOT_CONVEX
from gnewton.summary.tangent.passes import call_step
from gnewton.summary.tangent.plan import PassPlan
from gnewton.summary.tangent.program import Ref, aten

_PRODUCTS = (aten.mul.Tensor, aten.mm.default, aten.bmm.default, aten.dot.default, aten.mv.default)
_QUOTIENTS = (aten.div.Tensor,)
LIKELIHOODS = "cross-entropy, NLL of log-probabilities, MSE, binary cross-entropy with logits"


@dataclass(frozen=True)
class Columns:
    """Cotangents of the outputs.

    Attributes:
        stack: the columns, (k, *outputs); the first is the gradient of the loss.
        weights: w_n^k of each sample, (k, N); that of the gradient may be zero.
    """

    stack: Tensor
    weights: Tensor


class OutputLoss:
    """The second half of a program as a function of one value z (N, *outputs) of its first half.

    Args:
        plan: the plan of the passes.
        model: the steps of the first half.
        at: the step of z.
    """

    def __init__(self, plan: PassPlan, model: frozenset[int], at: int) -> None:
        program = plan.program
        self._program = program
        self._at = at
        steps = program.steps
        self._steps = [i for i, step in enumerate(steps) if step.needed and i not in model and step.op]
        curved = [
            i
            for i in self._steps
            if steps[i].active and i in plan.rules and plan.rules[i].adjoint and not self._is_scaling(i)
        ]
        self.flat = not curved
        self._softmax = curved[0] if len(curved) == 1 and self._is_softmax(curved[0]) else None
        self._entrywise = curved[0] if len(curved) == 1 and steps[curved[0]].args[:1] == (Ref(at),) else None

    def _is_scaling(self, i: int) -> bool:
        """Whether a step multiplies the one value that depends on parameters by a constant."""
        step = self._program.steps[i]
        moving = [k for k, a in enumerate(step.args) if type(a) is Ref and self._program.steps[a.step].active]
        return (step.op in _PRODUCTS and len(moving) == 1) or (step.op in _QUOTIENTS and moving == [0])

    def _is_softmax(self, i: int) -> bool:
        step = self._program.steps[i]
        return step.op is aten._log_softmax.default and step.args[0] == Ref(self._at)

    def _gradient(self, values: Sequence[Any], *, graph: bool) -> tuple[Tensor, Tensor, list[Any]]:
        z = values[self._at].detach().requires_grad_()
        own = [v.detach() if isinstance(v, Tensor) else v for v in values]
        own[self._at] = z
        with torch.enable_grad():
            for i in self._steps:
                own[i] = call_step(self._program, self._program.steps[i], own)
            (slope,) = torch.autograd.grad(own[self._program.loss], z, create_graph=graph, retain_graph=True)
        return z, slope, own

    def _share(self, own: list[Any]) -> tuple[Tensor, Tensor]:
        """log p and the adjoint of log p, where the rest is linear in it."""
        assert self._softmax is not None
        q = own[self._softmax]
        (adjoint,) = torch.autograd.grad(own[self._program.loss], q)
        return q.detach(), adjoint

    def columns(self, values: Sequence[Any]) -> Columns:
        """The columns whose sum of squares is Λ.

        Raises:
            InputError: if the loss is linear in the outputs, or not convex in them.
        """
        if self.flat:
            raise InputError(FLAT)
        if self._softmax is not None and values[self._at].dim() == 2:
            _, slope, own = self._gradient(values, graph=False)
            q, adjoint = self._share(own)
            if bool(((adjoint != 0).sum(1) <= 1).all()):
                return _softmax_columns(q, adjoint)
        z, slope, _ = self._gradient(values, graph=True)
        return _with_gradient(slope.detach(), _square_root(_blocks(z, slope)), z.shape)

    def separates(self, values: Sequence[Any], generator: torch.Generator) -> bool:
        """Whether the Hessian of the loss does not couple samples, by two products with random vectors."""
        z, slope, _ = self._gradient(values, graph=True)
        if not slope.requires_grad:
            return True
        v = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        scales = sample_scales(len(z), generator, z)
        scaled = scales.view(-1, *[1] * (z.dim() - 1)) * v
        one, other = (torch.autograd.grad(slope, z, w, retain_graph=True)[0] for w in (v, scaled))
        gap = (other - scales.view(-1, *[1] * (z.dim() - 1)) * one).abs().amax()
        return bool(gap <= 1e3 * torch.finfo(z.dtype).eps * one.abs().amax() * scales.abs().amax())

    def draws(self, values: Sequence[Any], count: int, generator: torch.Generator) -> Columns:
        """The gradient, and ``count`` columns of labels drawn from the model's own likelihood.

        Column m is √s_n ∇_z (−log p(ŷ_n | z_n)) / √M with s_n the weight of the sample in the loss.

        Raises:
            InputError: if the loss is no likelihood that is known.
        """
        _, slope, own = self._gradient(values, graph=False)
        z = values[self._at].detach()
        shape = (count, *z.shape)
        step = None if self._entrywise is None else self._program.steps[self._entrywise]
        name = "" if step is None else step.op.name()
        if self._softmax is not None:
            q, adjoint = self._share(own)
            axis = self._program.steps[self._softmax].args[1] % z.dim()
            share = -adjoint.sum(axis, keepdim=True)
            noise = torch.rand(shape, generator=generator, dtype=torch.float64, device=z.device)
            gumbel = q.double() - (-(noise.clamp_min(1e-300)).log()).log()
            drawn = torch.zeros(shape, dtype=z.dtype, device=z.device)
            drawn.scatter_(axis + 1, gumbel.argmax(axis + 1, keepdim=True), 1.0)
            columns = (q.exp() - drawn) * _root(share)
        elif name in ("aten::mse_loss", "aten::log_sigmoid_forward"):
            moving, curved, _ = self._gradient(values, graph=True)
            (diagonal,) = torch.autograd.grad(curved, moving, torch.ones_like(moving))
            if name == "aten::mse_loss":
                noise = torch.randn(shape, generator=generator, dtype=torch.float64, device=z.device)
                columns = noise.to(z.dtype) * _root(diagonal)
            else:
                p = torch.sigmoid(z)
                variance = p * torch.sigmoid(-z)
                share = torch.where(variance > 0, diagonal / variance, 0.0)
                noise = torch.rand(shape, generator=generator, dtype=torch.float64, device=z.device)
                columns = (p - (noise < p.double()).to(z.dtype)) * _root(share)
        else:
            raise InputError(
                "summary: curvature=fisher: the loss is not the negative log-likelihood of a known "
                f"distribution ({LIKELIHOODS}); use curvature=gauss_newton"
            )
        return _with_gradient(slope.detach(), columns / math.sqrt(count), z.shape)


def sample_scales(samples: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """A random factor ±2^r for each sample, (N,): products with them are exact."""
    signs = torch.randint(0, 2, (samples,), generator=generator, device=like.device) * 2 - 1
    powers = torch.randint(-4, 5, (samples,), generator=generator, device=like.device)
    return torch.ldexp(signs.to(like.dtype), powers)


def _root(share: Tensor) -> Tensor:
    if bool((share < -1e-6 * share.abs().amax()).any()):
        raise InputError("summary: curvature=fisher: the loss has a term of negative weight")
    return share.clamp_min(0).sqrt()


def _with_gradient(slope: Tensor, columns: Tensor, shape: torch.Size) -> Columns:
    stack = torch.cat([slope.unsqueeze(0), columns.to(slope.dtype).reshape(-1, *shape)])
    weights = torch.ones(len(stack), shape[0], dtype=torch.float64, device=slope.device)
    weights[0] = 0.0
    return Columns(stack, weights)


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
    return Columns(stack, weights)


def _blocks(z: Tensor, slope: Tensor) -> Tensor:
    """The Hessian of the loss in the outputs of each sample, (N, K, K)."""
    samples = len(z)
    width = z[0].numel()
    if not slope.requires_grad:
        raise InputError(FLAT)
    basis = torch.eye(width, dtype=z.dtype, device=z.device).view(width, 1, width)
    basis = basis.expand(width, samples, width).reshape(width, *z.shape)
    (rows,) = torch.autograd.grad(slope, z, basis, is_grads_batched=True)
    blocks: Tensor = rows.reshape(width, samples, width).transpose(0, 1)
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
