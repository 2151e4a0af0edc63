"""Controllers: rules that move the damping λ_1 or λ_int from update to update."""

from gnewton.optim.controllers.adaptive import Adaptive
from gnewton.optim.controllers.controller import (
    DAMPING,
    INTERNAL_DAMPING,
    QUANTITIES,
    Constant,
    Controller,
    Geometric,
    Plateau,
    Site,
)
from gnewton.optim.controllers.overshoot import Displacement, Overshoot
from gnewton.optim.controllers.trend import Progress

__all__ = [
    "DAMPING",
    "INTERNAL_DAMPING",
    "QUANTITIES",
    "Adaptive",
    "Constant",
    "Controller",
    "Displacement",
    "Geometric",
    "Overshoot",
    "Plateau",
    "Progress",
    "Site",
]
