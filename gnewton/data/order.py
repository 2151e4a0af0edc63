"""Seeds and orders: every random choice of a data set is a pure function of its name."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def mixed_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part: equal parts give equal seeds on every machine.

    Adding seed and epoch would let run 1 at epoch 0 repeat run 0 at epoch 1; hashing keeps them apart.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(device: torch.device, *parts: int | str) -> torch.Generator:
    """A generator on ``device`` seeded by :func:`mixed_seed` of ``parts``."""
    return torch.Generator(device=device).manual_seed(mixed_seed(*parts))


def shuffled(count: int, generator: torch.Generator) -> Tensor:
    """A random permutation of 0 … count-1, (count,) int64, on the device of ``generator``."""
    return torch.randperm(count, generator=generator, device=generator.device)
