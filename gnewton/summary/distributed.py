"""The summary of a global batch, of which every process holds a part."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # Tracing imports this module, whose functions take the process group that stands at that moment as a
    # default argument. Imported after init_process_group it would keep the group and Gloo's threads alive
    # beyond destroy_process_group, and a thread still running while the interpreter ends aborts the process.
    import torch.distributed.nn

from gnewton.summary.result import Summary


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all processes; the tensor itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def mean_over_processes(tensors: list[Tensor], samples: int) -> list[Tensor]:
    """The means over the global batch of tensors that are means over each process's own ``samples``."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensors
    count = tensors[0].new_tensor([samples])
    packed = sum_over_processes(torch.cat([*(tensor.flatten() * samples for tensor in tensors), count]))
    pieces = (packed[:-1] / packed[-1]).split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def all_reduced(summary: Summary, samples: int, reduction: str) -> Summary:
    """Join the summaries of all processes by one all-reduce of S² + 2S + 2 numbers.

    Exact where the global loss is the mean (or sum) of the samples' losses and the direction is the same
    everywhere. A mean is weighted by ``samples``, the size of this process's part. Where samples mix within
    a part (batch normalisation in training mode), the result is that of the mean of the parts' losses.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return summary
    weight = float(samples) if reduction == "mean" else 1.0
    parts = [summary.gradient, summary.hessian.reshape(-1), summary.loss.reshape(1)]
    if summary.third is not None:
        parts.append(summary.third)
    count = torch.full((1,), weight, dtype=torch.float64, device=summary.loss.device)
    packed = torch.cat([*(part * weight for part in parts), count])
    dist.all_reduce(packed)
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
