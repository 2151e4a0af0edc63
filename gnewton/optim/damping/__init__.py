"""What moves the dampings λ_1 and λ_int from update to update, one class per rule."""

from gnewton.optim.damping.adaptive import Adaptive
from gnewton.optim.damping.constant import Constant
from gnewton.optim.damping.controller import DAMPING, INTERNAL_DAMPING, QUANTITIES, Controller, Site
from gnewton.optim.damping.geometric import Geometric
from gnewton.optim.damping.overshoot import Overshoot
from gnewton.optim.damping.plateau import Plateau
from gnewton.optim.damping.progress import Progress

__all__ = [
    "DAMPING",
    "INTERNAL_DAMPING",
    "QUANTITIES",
    "Adaptive",
    "Constant",
    "Controller",
    "Geometric",
    "Overshoot",
    "Plateau",
    "Progress",
    "Site",
]
