"""Whether torch.compile works on this machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError


def require_compiler(device: torch.device) -> None:
    """Compile a trifle and run it: what a machine lacks shows only then.

    Raises:
        InputError: naming the option and what torch says is missing.
    """
    try:
        probe: Any = torch.compile(_probe)
        probe(torch.ones(2, device=device))
    except Exception as error:  # of the compiler, the linker, Triton, …: of no common kind
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}{': ' if lines else ''}{lines[0] if lines else ''}"
        raise InputError(
            f"trainer.compile=true: torch.compile does not work on this machine ({reason}); use false"
        ) from error


def _probe(x: Tensor) -> Tensor:
    return torch.sin(x) + 1
