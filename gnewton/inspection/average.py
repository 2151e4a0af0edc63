"""Gradient and summary as means over the samples of several batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gnewton.data.splits import Batch
from gnewton.summary import Summarizer, Summary
from gnewton.summary.problem import batch_size

Batches = Callable[[], Iterable[Batch]]
"""Gives the same batches anew at every call: direction and summary are made in passes of their own."""


@dataclass(frozen=True)
class Averaged:
    """A summary over several batches.

    Attributes:
        summary: the mean over all samples, each batch weighted by its size.
        samples, batches: how many there were.
    """

    summary: Summary
    samples: int
    batches: int


def averaged_summary(
    summarizer: Summarizer, batches: Iterable[Batch], direction: Mapping[str, Tensor]
) -> Averaged:
    """The summary of the mean loss over all samples of ``batches`` along one direction, in float64.

    It is that of the batches joined to one, exactly, unless a layer mixes the samples of a batch (batch
    normalisation in training mode) or draws at random (dropout): then it is the mean of the batches' own.
    """
    total: list[Tensor] | None = None
    samples = count = 0
    for inputs, targets in batches:
        summary = summarizer.summarize(inputs, targets, direction)
        weight = batch_size(inputs, targets)
        third = summary.third if summary.third is not None else torch.zeros_like(summary.gradient)
        parts = [part * weight for part in (summary.gradient, summary.hessian, third, summary.loss)]
        total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
        samples, count = samples + weight, count + 1
    if total is None:
        raise ValueError("there is no batch to average over")
    gradient, hessian, third, loss = (part / samples for part in total)
    return Averaged(
        Summary(gradient, hessian, third if summarizer.third else None, loss), samples=samples, batches=count
    )


def mean_gradient(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """∇ of the mean loss over all samples of ``batches``, by parameter name; summed in float64.

    It is left in ``.grad`` too, for optimizers to read.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in named.items()}
    samples = 0
    for inputs, targets in batches:
        model.zero_grad(set_to_none=True)
        loss_fn(model(inputs), targets).backward()
        weight = batch_size(inputs, targets)
        samples += weight
        for name, p in named.items():
            if p.grad is not None:
                sums[name].add_(p.grad, alpha=weight)
    for name, p in named.items():
        p.grad = (sums[name] / max(samples, 1)).to(p.dtype)
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}


def group_norms(direction: Mapping[str, Tensor], index: Mapping[str, int], groups: int) -> Tensor:
    """‖P_s u‖, float64 on the CPU, shape (S,); ``index`` gives the group of each parameter."""
    squares = torch.zeros(groups, dtype=torch.float64)
    for name, s in index.items():
        squares[s] += direction[name].double().square().sum().cpu()
    return squares.sqrt()
