"""The processes of torch.distributed that work on one batch together; one where it is not in use."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # Optimizers of torch and tracing import this module, whose functions take the process group that stands
    # at that moment as a default argument. Imported after init_process_group it would keep the group and
    # Gloo's threads alive beyond destroy_process_group, and a thread still running while the interpreter ends
    # aborts the process.
    import torch.distributed.nn


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all processes; the tensor itself where there is one process."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def mean_over_processes(tensors: list[Tensor], samples: int) -> list[Tensor]:
    """The means over the global batch of tensors that are means over each process's own ``samples``."""
    if world_size() == 1:
        return tensors
    count = tensors[0].new_tensor([samples])
    packed = sum_over_processes(torch.cat([*(tensor.flatten() * samples for tensor in tensors), count]))
    pieces = (packed[:-1] / packed[-1]).split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
