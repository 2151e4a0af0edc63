"""Controllers: rules that move the step size λ_1 or the internal damping λ_int from update to update."""

from gnewton.optim.controllers.adaptive import Adaptive
from gnewton.optim.controllers.controller import (
    INTERNAL_DAMPING,
    QUANTITIES,
    STEP_SIZE,
    Constant,
    Controller,
    Geometric,
    Plateau,
    Site,
)
from gnewton.optim.controllers.overshoot import Displacement, Overshoot
from gnewton.optim.controllers.trend import Progress

__all__ = [
    "INTERNAL_DAMPING",
    "QUANTITIES",
    "STEP_SIZE",
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
