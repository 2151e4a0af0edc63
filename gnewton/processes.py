"""The processes of torch.distributed that share a batch, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # Optimizers of torch and tracing import this module. Its functions take the process group of that moment
    # as a default argument. Imported after init_process_group, it would keep the group and Gloo's threads
    # alive beyond destroy_process_group, and a thread that runs while the interpreter ends aborts it.
    import torch.distributed.nn


def world_size() -> int:
    """The number of processes; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all processes, by one all-reduce; the tensors themselves in one process.

    Args:
        tensors: of one type and device, in the same shapes in every process.
    """
    if world_size() == 1:
        return list(tensors)
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(packed)
    pieces = packed.split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def mean_over_processes(tensors: Sequence[Tensor], samples: int) -> list[Tensor]:
    """The means over the global batch of tensors that are means over each process's own ``samples``."""
    if world_size() == 1:
        return list(tensors)
    count = tensors[0].new_tensor(samples)
    *sums, total = sum_over_processes([*(tensor * samples for tensor in tensors), count])
    return [piece / total for piece in sums]
