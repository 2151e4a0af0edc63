"""The processes of torch.distributed that train together; one where it is not in use."""

from __future__ import annotations

import torch.distributed as dist


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
