"""Whether torch.compile works on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError, first_line


def require_compiler(device: torch.device, option: str, instead: str) -> None:
    """Make sure that torch.compile works on a device.

    Args:
        option: what needs it, as the user wrote it.
        instead: the value to take without a compiler.

    Raises:
        InputError: naming the option and what torch says is missing.
    """
    reason = missing(device)
    if reason:
        raise InputError(f"{option}: torch.compile does not work on this machine ({reason}); use {instead}")


def missing(device: torch.device) -> str:
    """What a device lacks for torch.compile, as torch says it; empty where nothing is missing.

    A trifle is compiled and run: that is where it shows.
    """
    with _quiet():
        try:
            probe: Any = torch.compile(_probe)
            probe(torch.ones(2, device=device))
        except Exception as error:  # of the compiler, the linker, Triton, …: of no common kind
            return first_line(error, with_type=True)
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that a machine with CUDA's tools has no device."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _probe(x: Tensor) -> Tensor:
    return torch.sin(x) + 1
