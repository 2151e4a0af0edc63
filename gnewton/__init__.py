"""GroupedNewton: one exact learning rate per group of parameters, every few steps, with none to tune.

The library part needs torch alone: ``from gnewton import GroupedNewton, Partition, summarize, solve_cubic``.
Names are loaded on first use, so that the command line can answer without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnewton.cubic import CubicSolution, CubicStatus, solve_cubic
    from gnewton.optim.grouped_newton import GroupedNewton
    from gnewton.optim.hessian_vector import HessianVector
    from gnewton.optim.kfac import KFAC
    from gnewton.optim.outer_newton import OuterNewton
    from gnewton.partition import Partition
    from gnewton.summary import Summary, summarize

__version__ = "0.1.0"

_HOMES = {
    "CubicSolution": "gnewton.cubic",
    "CubicStatus": "gnewton.cubic",
    "GroupedNewton": "gnewton.optim.grouped_newton",
    "HessianVector": "gnewton.optim.hessian_vector",
    "KFAC": "gnewton.optim.kfac",
    "OuterNewton": "gnewton.optim.outer_newton",
    "Partition": "gnewton.partition",
    "Summary": "gnewton.summary",
    "solve_cubic": "gnewton.cubic",
    "summarize": "gnewton.summary",
}

__all__ = [
    "KFAC",
    "CubicSolution",
    "CubicStatus",
    "GroupedNewton",
    "HessianVector",
    "OuterNewton",
    "Partition",
    "Summary",
    "__version__",
    "solve_cubic",
    "summarize",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gnewton' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
