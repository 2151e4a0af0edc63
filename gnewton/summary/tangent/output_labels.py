"""Labels drawn from the model's own likelihood, for the Fisher matrix.

The loss is Σ_i s_i ℓ_i with ℓ_i the negative log-likelihood of a label under a distribution with parameters
π_i, in one or several places: the *sites*. A drawn label has the column √s_i ∇_π ℓ_i, which is sent back to
the outputs through whatever lies between (a softplus of a variance, a view). Draws are independent, so the
columns of all sites may be added: E[ccᵀ] = Σ_i s_i J_iᵀ F_i J_i, with F_i the Fisher matrix of π_i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.summary.likelihoods import LIKELIHOOD, normalised
from gnewton.summary.tangent.output_factors import Columns, OutputLoss, with_gradient
from gnewton.summary.tangent.program import Ref, Step, aten
from gnewton.summary.tangent.rules.elementwise import ELEMENTWISE
from gnewton.summary.tangent.rules.losses import MEAN
from gnewton.summary.tangent.rules.rule import overloads

LIKELIHOODS = (
    "cross-entropy, NLL of log-probabilities, MSE, binary cross-entropy of logits or probabilities, Gaussian "
    "and Poisson NLL, and sums of them"
)
UNKNOWN = (
    "summary: curvature=fisher: the loss is not the negative log-likelihood of a known distribution "
    f"({LIKELIHOODS}); use curvature=gauss_newton"
)

Scores = list[tuple[Tensor, Tensor]]
"""Parameters of a distribution, each with the scores of drawn labels, (draws, *shape)."""


class LabelDraws:
    """Draws labels for the outputs of a program.

    Args:
        loss: the second half of the program.
    """

    def __init__(self, loss: OutputLoss) -> None:
        self._loss = loss
        self._sites = _sites(loss)

    def columns(self, values: Sequence[Any], count: int, generator: torch.Generator) -> Columns:
        """The gradient, and ``count`` columns of labels from the likelihood, divided by √count.

        Raises:
            InputError: if the loss is no likelihood that is known, or has a term of negative weight.
        """
        if not self._sites:
            raise InputError(UNKNOWN)
        z, slopes, tracked = self._loss.gradient(values, graph=False)
        program = self._loss.program
        columns = [value.new_zeros((count, *value.shape)) for value in z]
        for i in self._sites:
            step = program.steps[i]
            value = tracked[i] if isinstance(tracked[i], Tensor) else tracked[i][0]
            (adjoint,) = torch.autograd.grad(tracked[program.loss], value, retain_graph=True)
            args, _ = program.arguments(step, tracked)
            scores = _SITES[step.op](args, value, adjoint, _Stream(count, generator))
            moving = [(p, score.to(p.dtype)) for p, score in scores if p.requires_grad]
            parts = torch.autograd.grad(
                [p for p, _ in moving], z, [score for _, score in moving],
                is_grads_batched=True, retain_graph=True, materialize_grads=True,
            )  # fmt: skip
            columns = [total + part for total, part in zip(columns, parts, strict=True)]
        return with_gradient(slopes, [part / math.sqrt(count) for part in columns])


def _sites(loss: OutputLoss) -> tuple[int, ...]:
    """The likelihoods of the loss, the first ones on every way back from it; empty if one is unknown.

    Whatever is linear before the sites weights them; what has kinks (clamp, max) makes them no likelihoods.
    Behind the sites, towards the outputs, all is allowed. A term that reaches an output without a site must
    be linear in logits z of log σ(z): then it sets the label, as (1 − t) z − log σ(z) does.
    """
    program = loss.program
    steps, sites = program.steps, set()
    free: set[int] = set()  # outputs in terms that have no site
    visited: set[int] = set()
    stack = [program.loss]
    while stack:
        i = stack.pop()
        if i in visited or not steps[i].active:
            continue
        visited.add(i)
        if i in loss.ends:
            free.add(i)
        elif _is_site(steps, i):
            sites.add(i)
        elif not _is_linear(loss, i) or steps[i].op is LIKELIHOOD:
            return ()
        else:
            stack.extend(steps[i].reads)
    return tuple(sorted(sites)) if free <= _logits(loss, sites) else ()


def _is_linear(loss: OutputLoss, i: int) -> bool:
    """Whether a step of the loss is linear in what depends on parameters, and has no kinks."""
    op = loss.program.steps[i].op
    return not (i in loss.curved or op in ELEMENTWISE or op in _CHOICES)


def _logits(loss: OutputLoss, sites: Iterable[int]) -> set[int]:
    """The outputs of which the logits of coins are linear functions."""
    steps = loss.program.steps
    outputs: set[int] = set()
    stack = [j for i in sites if steps[i].op is aten.log_sigmoid_forward.default for j in steps[i].reads]
    while stack:
        i = stack.pop()
        if i in loss.ends:
            outputs.add(i)
        elif steps[i].active and _is_linear(loss, i):
            stack.extend(steps[i].reads)
    return outputs


def _is_site(steps: Sequence[Step], i: int) -> bool:
    step = steps[i]
    if step.op not in _SITES:
        return False
    if step.op is LIKELIHOOD:
        target = step.args[3]
        return not (type(target) is Ref and steps[target.step].active)
    moving = [k for k, a in enumerate(step.args) if type(a) is Ref and steps[a.step].active]
    if moving != [0]:  # a target that moves
        return False
    if step.op not in _NLL:
        return True
    source = step.reads[0]
    while steps[source].op is not None and getattr(steps[source].op, "is_view", False):
        source = steps[source].reads[0]
    return steps[source].op is not aten._log_softmax.default  # that one is the site


class _Stream:
    """Random numbers in float64, a stack of ``count`` of each."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count = count
        self._generator = generator

    def uniform(self, like: Tensor) -> Tensor:
        return torch.rand(
            self._shape(like), generator=self._generator, dtype=torch.float64, device=like.device
        )

    def normal(self, like: Tensor) -> Tensor:
        shape = self._shape(like)
        return torch.randn(shape, generator=self._generator, dtype=torch.float64, device=like.device)

    def poisson(self, rate: Tensor) -> Tensor:
        return torch.poisson(rate.double().expand(self._shape(rate)), generator=self._generator)

    def classes(self, q: Tensor, axis: int) -> Tensor:
        """One-hot classes drawn by their log-probabilities, (count, *shape)."""
        gumbel = q.double() - (-(self.uniform(q).clamp_min(1e-300)).log()).log()
        drawn = torch.zeros_like(gumbel)
        return drawn.scatter_(axis + 1, gumbel.argmax(axis + 1, keepdim=True), 1.0)

    def coins(self, p: Tensor) -> Tensor:
        return (self.uniform(p) < p.double()).double()

    def _shape(self, like: Tensor) -> tuple[int, ...]:
        return self._count, *like.shape


def _root(share: Tensor) -> Tensor:
    if bool((share < -1e-6 * share.abs().amax()).any()):
        raise InputError("summary: curvature=fisher: the loss has a term of negative weight")
    return share.clamp_min(0).sqrt()


def _shares(adjoint: Tensor, like: Tensor, reduction: int) -> Tensor:
    """The weight of every entry of a loss that reduces its entries itself."""
    share = adjoint / max(like.numel(), 1) if reduction == MEAN else adjoint
    return share.expand(like.shape)


def _softmax(args: list[Any], q: Tensor, adjoint: Tensor, stream: _Stream) -> Scores:
    """Logits: p − onehot(y)."""
    axis = args[1] % max(q.dim(), 1)
    q = q.detach()
    share = -adjoint.sum(axis, keepdim=True)
    return [(args[0], (q.exp() - stream.classes(q, axis)) * _root(share))]


def _log_probabilities(args: list[Any], value: Tensor, adjoint: Tensor, stream: _Stream) -> Scores:
    """Log-probabilities: p − onehot(y) too, since Σ p q̇ = 0 for all that remain normalised."""
    q = args[0]
    if not normalised(q):
        raise InputError(
            "summary: curvature=fisher: the NLL takes values that are no log-probabilities (their "
            "exponentials do not add up to 1); use F.cross_entropy, or curvature=gauss_newton"
        )
    (slope,) = torch.autograd.grad(value, q, adjoint, retain_graph=True)
    return _softmax([q, 1 if q.dim() > 1 else 0], q, slope, stream)


def _squared(args: list[Any], value: Tensor, adjoint: Tensor, stream: _Stream) -> Scores:
    """(x − y)² of a Gaussian of variance ½: 2 (x − y) = √2 noise."""
    share = _shares(adjoint, args[0], args[2] if len(args) > 2 else MEAN)
    return [(args[0], stream.normal(args[0]) * _root(2 * share))]


def _log_sigmoid(args: list[Any], value: Tensor, adjoint: Tensor, stream: _Stream) -> Scores:
    """Logits of a coin: σ(x) − y."""
    p = torch.sigmoid(args[0].detach())
    return [(args[0], (p - stream.coins(p)) * _root(-adjoint))]


def _coin(args: list[Any], value: Tensor, adjoint: Tensor, stream: _Stream) -> Scores:
    """The probability of a coin: (p − y) / p(1 − p)."""
    p = args[0].detach()
    share = _shares(adjoint, p, args[3] if len(args) > 3 else MEAN)
    weight = args[2] if len(args) > 2 else None
    share = share if weight is None else share * weight
    spread = (p * (1 - p)).clamp_min(torch.finfo(p.dtype).tiny)
    return [(args[0], (p - stream.coins(p)) / spread * _root(share))]


def _family(args: list[Any], value: Tensor, adjoint: Tensor, stream: _Stream) -> Scores:
    """A marked likelihood: Gaussian (μ, v), or Poisson (λ)."""
    _, family, parameters, _ = args
    root, known = _root(adjoint), [p.detach() for p in parameters]
    if family == "poisson":
        return [(parameters[0], (1 - stream.poisson(known[0]) / known[0]) * root)]
    noise, v = stream.normal(known[0]), known[1]
    return [(parameters[0], noise / v.sqrt() * root), (parameters[1], (1 - noise**2) / (2 * v) * root)]


_CHOICES = overloads(
    "max", "min", "max.dim", "min.dim", "amax", "amin", "median.dim", "mode", "kthvalue", "topk", "sort",
    "sort.stable", "maximum", "minimum", "clamp_min.Tensor", "clamp_max.Tensor", "scatter_reduce.two",
    "max_pool2d_with_indices", "adaptive_max_pool2d", "max_pool3d_with_indices", "adaptive_max_pool3d",
    "fractional_max_pool2d", "fractional_max_pool3d",
)  # fmt: skip
_NLL = (aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
_SITES: dict[Any, Callable[[list[Any], Tensor, Tensor, _Stream], Scores]] = {
    aten._log_softmax.default: _softmax,
    aten.mse_loss.default: _squared,
    aten.log_sigmoid_forward.default: _log_sigmoid,
    aten.binary_cross_entropy.default: _coin,
    LIKELIHOOD: _family,
    **dict.fromkeys(_NLL, _log_probabilities),
}
