"""GroupedNewton: one exact learning rate per group of parameters, every few steps, with none to tune.

The library part needs torch alone: ``from gnewton import GroupedNewton, Partition, summarize, solve_cubic``
(docs/python.md).
Names are loaded on first use, so that the command line can answer without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnewton.cubic import CubicSolution, CubicStatus, solve_cubic
    from gnewton.interactive.loss_inspection import inspect
    from gnewton.interactive.rate_suggestion import suggest_rates
    from gnewton.optim.averaging import ExponentialAveraging, NoAveraging, StaticAveraging, UniformAveraging
    from gnewton.optim.controllers import Constant, Progress
    from gnewton.optim.directions import muon_with_adamw
    from gnewton.optim.grouped_newton import GroupedNewton
    from gnewton.optim.kfac import KFAC
    from gnewton.optim.presets import preset
    from gnewton.partition import Partition
    from gnewton.summary import Summary, loss_derivatives, summarize

__version__ = "0.1.0"

_HOMES = {
    "Constant": "gnewton.optim.controllers",
    "CubicSolution": "gnewton.cubic",
    "CubicStatus": "gnewton.cubic",
    "ExponentialAveraging": "gnewton.optim.averaging",
    "GroupedNewton": "gnewton.optim.grouped_newton",
    "KFAC": "gnewton.optim.kfac",
    "NoAveraging": "gnewton.optim.averaging",
    "Partition": "gnewton.partition",
    "Progress": "gnewton.optim.controllers",
    "StaticAveraging": "gnewton.optim.averaging",
    "Summary": "gnewton.summary",
    "UniformAveraging": "gnewton.optim.averaging",
    "inspect": "gnewton.interactive.loss_inspection",
    "loss_derivatives": "gnewton.summary",
    "muon_with_adamw": "gnewton.optim.directions",
    "preset": "gnewton.optim.presets",
    "solve_cubic": "gnewton.cubic",
    "suggest_rates": "gnewton.interactive.rate_suggestion",
    "summarize": "gnewton.summary",
}

__all__ = [
    "KFAC",
    "Constant",
    "CubicSolution",
    "CubicStatus",
    "ExponentialAveraging",
    "GroupedNewton",
    "NoAveraging",
    "Partition",
    "Progress",
    "StaticAveraging",
    "Summary",
    "UniformAveraging",
    "__version__",
    "inspect",
    "loss_derivatives",
    "muon_with_adamw",
    "preset",
    "solve_cubic",
    "suggest_rates",
    "summarize",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gnewton' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
