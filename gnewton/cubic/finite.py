"""Whether arrays are free of infinities and NaN, at the price of a dot product."""

from __future__ import annotations

import math

import numpy as np


def all_finite(array: np.ndarray) -> bool:
    """Whether every entry is finite.

    A finite sum of squares settles it in one pass. Entries beyond 1e154 overflow it: then each is looked at.
    """
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())
