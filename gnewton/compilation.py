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
    """Check that torch.compile works on a device.

    Args:
        option: the option that needs it, as the user wrote it.
        instead: the value to use without a compiler.

    Raises:
        InputError: if it does not; the message names the option and the reason.
    """
    reason = missing(device)
    if reason:
        raise InputError(f"{option}: torch.compile does not work on this machine ({reason}); use {instead}")


def missing(device: torch.device) -> str:
    """The reason why torch.compile does not work on a device, in torch's words; empty where it works.

    A small function is compiled and run, since only that shows it.
    """
    with _quiet():
        try:
            probe: Any = torch.compile(_probe)
            probe(torch.ones(2, device=device))
        except Exception as error:  # of the compiler, the linker, Triton, …: these have no common type
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
