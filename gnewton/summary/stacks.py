"""Memory for large stacks, used again and again.

On a CPU the system hands out fresh memory page by page, as it is first written, which takes as long as
several passes over the data, and large pieces go back to it as soon as they are free. The stacks of every
layer would pay for that at every summary.
"""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

LEAST = 1 << 25  # bytes from which it pays: smaller ones glibc keeps by itself
ALIGNED = 64  # bytes, as torch does it


def _references(pieces: list[bytearray], i: int) -> int:
    return sys.getrefcount(pieces[i])


HELD = _references([bytearray()], 0)  # to a free piece: the list's, and what this version of Python adds


class Stacks:
    """Pieces of memory that outlive the tensors in them.

    A piece is free once no tensor lies in it any more: torch holds a reference to it for as long. Where no
    free one is large enough for a new stack, all of them but the largest are given up.
    """

    def __init__(self) -> None:
        self._pieces: list[bytearray] = []  # by size

    @property
    def bytes(self) -> int:
        """Bytes of all pieces, free or not."""
        return sum(map(len, self._pieces))

    def release(self) -> None:
        """Give up all pieces; those in use go with their last tensor."""
        self._pieces = []

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A contiguous tensor, not initialised, in the precision and on the device of ``like``."""
        count = math.prod(shape)
        size = count * like.element_size()
        if size < LEAST or like.device.type != "cpu" or isinstance(like, FakeTensor):
            return like.new_empty(tuple(shape))
        piece = self._piece(size + ALIGNED)
        start = -torch.frombuffer(piece, dtype=torch.uint8, count=1).data_ptr() % ALIGNED
        return torch.frombuffer(piece, dtype=like.dtype, count=count, offset=start).view(tuple(shape))

    def _piece(self, size: int) -> bytearray:
        free = [i for i in range(len(self._pieces)) if _references(self._pieces, i) == HELD]
        for i in free:
            if len(self._pieces[i]) >= size:
                return self._pieces[i]
        for i in reversed(free[:-1]):
            self._pieces.pop(i)
        made = bytearray(size)
        bisect.insort(self._pieces, made, key=len)
        return made
