"""Settings of GroupedNewton by name, for code: the arguments behind ``optimizer=grouped_newton_paper``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gnewton.arguments import check_name
from gnewton.optim.averaging import NoAveraging, UniformAveraging
from gnewton.optim.controllers import Constant


def _paper() -> dict[str, Any]:
    return {
        "direction": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
        "along": "step",
        "warmup": 3,
        "step_size": 0.1,
        "averaging": UniformAveraging(3),
        "controller": Constant(),
        "cap": None,
        "safeguard": False,
        "shrinkage": 0.0,
        "proximal": 0.0,
        "normalise": False,
    }


def _noiseless() -> dict[str, Any]:
    return {
        "direction": "gradient",
        "along": "step",
        "period": 1,
        "negative_rates": "keep",
        "averaging": NoAveraging(),
        "controller": Constant(),
        "cap": None,
        "safeguard": False,
        "shrinkage": 0.0,
        "proximal": 0.0,
        "normalise": False,
    }


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {"paper": _paper, "noiseless": _noiseless}
"""Functions that return new arguments, by the name of the preset."""


def preset(name: str) -> dict[str, Any]:
    """Keyword arguments of :class:`~gnewton.optim.grouped_newton.GroupedNewton`, for one optimizer.

    Example::

        optimizer = GroupedNewton(model, loss_fn, **gnewton.preset("paper"), curvature=other_batches)

    Args:
        name: "paper", as the author ran it, whose summaries are best taken on batches of their own
            (``curvature=``) and whose λ_1 is halved on plateaus by torch's ``ReduceLROnPlateau``; or
            "noiseless", for losses without noise: new rates at every step along the gradient.

    Raises:
        InputError: for an unknown name.
    """
    check_name("preset", name, PRESETS)
    return PRESETS[name]()
