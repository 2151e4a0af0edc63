"""The summary of a global batch, of which every process holds a part."""

from __future__ import annotations

import torch

from gnewton.processes import sum_over_processes, world_size
from gnewton.summary.result import Summary


def all_reduced(summary: Summary, samples: int, reduction: str) -> Summary:
    """Join the summaries of all processes by one all-reduce of S² + 2S + 2 numbers.

    Exact where the global loss is the mean (or sum) of the samples' losses and the direction is the same
    everywhere. A mean is weighted by ``samples``, the size of this process's part. Where samples mix within
    a part (batch normalisation in training mode), the result is that of the mean of the parts' losses.
    """
    if world_size() == 1:
        return summary
    weight = float(samples) if reduction == "mean" else 1.0
    parts = [summary.gradient, summary.hessian.reshape(-1), summary.loss.reshape(1)]
    if summary.third is not None:
        parts.append(summary.third)
    count = torch.full((1,), weight, dtype=torch.float64, device=summary.loss.device)
    packed = sum_over_processes(torch.cat([*(part * weight for part in parts), count]))
    packed, total = packed[:-1], packed[-1]
    if reduction == "mean":
        packed = packed / total
    sizes = [part.numel() for part in parts]
    pieces = packed.split(sizes)
    return Summary(
        gradient=pieces[0],
        hessian=pieces[1].view_as(summary.hessian),
        third=pieces[3] if summary.third is not None else None,
        loss=pieces[2].reshape(()),
    )
