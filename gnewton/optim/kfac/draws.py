"""The random stream of the labels that K-FAC draws, apart from torch's own."""

from __future__ import annotations

import hashlib

import torch

from gnewton.processes import rank


class Draws:
    """Generators for one draw after the other, each seeded by (seed, process, number of the draw).

    Args:
        seed: of the stream; None: torch's initial seed.

    Attributes:
        seed: of the stream.
        count: draws so far.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = torch.initial_seed() if seed is None else seed
        self.count = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def next(self, device: torch.device) -> torch.Generator:
        """The generator for the next draw, valid until the one after it."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        key = f"{self.seed},{rank()},{self.count}"
        self.count += 1
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        return self._generators[device].manual_seed(seed)
