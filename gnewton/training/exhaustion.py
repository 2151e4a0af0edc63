"""Out of memory: one message that names the option to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gnewton.errors import OutOfMemory
from gnewton.summary.memory import is_exhausted


@contextmanager
def memory_suffices(device: torch.device, work: str, options: str) -> Iterator[None]:
    """Within the block, running out of memory is an error that says what to lower.

    Args:
        device: where the memory is short.
        work: what was being done.
        options: the options that make it need less, with their values.

    Raises:
        OutOfMemory: in place of torch's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        raise OutOfMemory(f"out of memory on {device} in {work}; lower {options}") from error
