"""Negative log-likelihoods that a trace would not show: written out, and marked with their distribution.

A mark is the identity of the entries ℓ_i = −log p(y_i | π_i) of a loss, beside the parameters π of their
distribution, and the target y. The loss weights every entry, L = Σ s_i ℓ_i, so the adjoint of a mark is the
share s_i of each entry, and labels can be drawn from p(· | π_i)
(:mod:`gnewton.summary.tangent.output_labels`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction as _Reduction

from gnewton.summary.tangent.program import CONSTANT


class Entries(NamedTuple):
    """The entries of a loss: their distribution, its parameters (in their shape), target, reduction."""

    value: Tensor
    family: str
    parameters: list[Tensor]
    target: Tensor
    reduction: str


_library = torch.library.Library("gnewton", "FRAGMENT")
_library.define("likelihood(Tensor entries, str family, Tensor[] parameters, Tensor target) -> Tensor")
_library.impl("likelihood", lambda entries, *_: entries.clone(), "CompositeExplicitAutograd")


def _keep_count(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.count = len(inputs[2])


def _pull(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None, list[None], None]:
    return adjoint, None, [None] * ctx.count, None


torch.library.register_autograd("gnewton::likelihood", _pull, setup_context=_keep_count, lib=_library)
LIKELIHOOD = torch.ops.gnewton.likelihood.default


def marked(entries: Entries) -> Tensor:
    """The loss, with the mark on its entries."""
    return reduced(LIKELIHOOD(*entries[:4]), entries.reduction)


def unmarked(entries: Entries) -> Tensor:
    """The loss alone."""
    return reduced(entries.value, entries.reduction)


def reduced(entries: Tensor, reduction: str) -> Tensor:
    """Mean, sum or none of it; any other name is an error, as in torch."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return {"mean": entries.mean, "sum": entries.sum}.get(reduction, lambda: entries)()


def _reduction(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction, by its former names where these are given."""
    if size_average is None and reduce is None:
        return reduction
    return _Reduction.legacy_get_string(size_average, reduce)


def gaussian_entries(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
    *,
    checked: bool = True,
) -> Entries:
    """½ (log v + (μ − y)²/v), as ``F.gaussian_nll_loss``, with its errors.

    Args:
        input, target, var, full, eps, reduction: as there.
        checked: whether the values of the variances are looked at, which a trace cannot.

    Raises:
        ValueError: for a negative variance, or variances in another shape than that of the input, of the
            input without its last axis, or with a single axis of size 1.
    """
    variance = torch.full_like(input, var) if isinstance(var, float) else var
    if checked and bool((variance.detach() < 0).any()):
        raise ValueError("var has negative entry/entries")
    if variance.shape != input.shape and variance.shape == input.shape[:-1]:
        variance = variance.unsqueeze(-1)
    elif variance.shape != input.shape:
        other = [b for a, b in zip(input.shape, variance.shape, strict=False) if a != b]
        if variance.dim() != input.dim() or sum(other) != 1:
            raise ValueError("var is of incorrect size")
    below = CONSTANT((variance.clamp(min=eps) - variance).detach())  # the bound does not stop the gradient
    variance = variance + below
    loss = 0.5 * (variance.log() + (input - target).square() / variance)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    parameters = [input.expand_as(loss), variance.expand_as(loss)]
    return Entries(loss, "gaussian", parameters, target, reduction)


def poisson_entries(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Entries:
    """λ − y log λ, as ``F.poisson_nll_loss``: the input is log λ, or λ."""
    if log_input:
        rate = torch.exp(input)
        loss = rate - target * input
    else:
        rate = input + eps
        loss = input - target * torch.log(rate)
    if full:
        stirling = target * torch.log(target) - target + 0.5 * torch.log(2 * math.pi * target)
        loss = loss + torch.where(target > 1, stirling, 0.0)
    reduction = _reduction(reduction, size_average, reduce)
    return Entries(loss, "poisson", [rate.expand_as(loss)], target, reduction)


def bernoulli_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """The binary cross-entropy with logits z, written with log σ(z), by which it is recognised.

    Raises:
        ValueError: as in torch, where the target has another shape than the input.
    """
    if target.shape != input.shape:
        raise ValueError(f"Target size ({target.size()}) must be the same as input size ({input.size()})")
    log_likelihood = F.logsigmoid(input)
    if pos_weight is not None:
        log_likelihood = (1 + (pos_weight - 1) * target) * log_likelihood
    loss = (1 - target) * input - log_likelihood
    return reduced(loss if weight is None else loss * weight, _reduction(reduction, size_average, reduce))


def normalised(q: Any) -> bool:
    """Whether q (N, K, …) holds the logarithms of probabilities; a trace asks for the answer again."""
    axis = 1 if q.dim() > 1 else 0
    allowed = 64 * q.shape[axis] * torch.finfo(q.dtype).eps
    return bool((torch.logsumexp(q.detach(), axis).abs() <= allowed).all())


VIEWS = frozenset(
    {
        Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.unflatten, Tensor.permute, Tensor.transpose,
        Tensor.movedim, Tensor.squeeze, Tensor.unsqueeze, Tensor.contiguous, Tensor.__getitem__,
        torch.reshape, torch.flatten, torch.permute, torch.transpose, torch.movedim, torch.squeeze,
        torch.unsqueeze,
    }
)  # fmt: skip
"""Functions that reorder or pick the entries of a tensor."""


def holds(tensors: Sequence[Tensor], one: Any) -> bool:
    """Whether ``one`` is among them, by identity."""
    return any(one is other for other in tensors)
