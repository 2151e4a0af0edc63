"""The summary of a global batch, of which every process holds a part."""

from __future__ import annotations

import torch

from gnewton.processes import sum_over_processes, world_size
from gnewton.summary.result import Summary


def all_reduced(summary: Summary, samples: int, reduction: str) -> Summary:
    """Join the summaries of all processes by one all-reduce of 2S² + 4S + 2 numbers.

    Exact where the global loss is the mean (or sum) of the samples' losses and the direction is the same
    everywhere. A mean is weighted by ``samples``, the size of this process's part. Where samples mix within
    a part (batch normalisation in training mode), the result is that of the mean of the parts' losses. The
    noise of an entry is joined like the entry.
    """
    if world_size() == 1:
        return summary
    weight = float(samples) if reduction == "mean" else 1.0
    parts = summary.parts()
    count = torch.full((1,), weight, dtype=torch.float64, device=summary.loss.device)
    flat = [part.reshape(-1) * weight for part in parts.values()]
    packed = sum_over_processes(torch.cat([*flat, count]))
    packed, total = packed[:-1], packed[-1]
    if reduction == "mean":
        packed = packed / total
    pieces = packed.split([part.numel() for part in parts.values()])
    return Summary.of(
        {name: piece.view_as(part) for (name, part), piece in zip(parts.items(), pieces, strict=True)}
    )
