"""How often checkpoints are written: a number of steps, epochs or seconds. Torch-free."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gnewton.errors import InputError

STEPS, EPOCHS, SECONDS = "steps", "epochs", "seconds"

_UNITS = {"": EPOCHS, "epoch": EPOCHS, "epochs": EPOCHS, "step": STEPS, "steps": STEPS} | dict.fromkeys(
    ("s", "second", "seconds"), SECONDS
)
ALLOWED = "must be a number of epochs, steps or seconds: 2 epochs, 100 steps, 60 s"


@dataclass(frozen=True)
class Interval:
    """``count`` of a ``unit``: ``STEPS``, ``EPOCHS`` or ``SECONDS``; only seconds may be a fraction."""

    count: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Interval:
        """The interval written as ``100 steps``, ``2 epochs`` (or just ``2``) or ``60 s``.

        Raises:
            InputError: saying what is allowed.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text)
        if match is None or match[2] not in _UNITS:
            raise InputError(ALLOWED)
        count, unit = float(match[1]), _UNITS[match[2]]
        if not 0 < count < math.inf or (unit != SECONDS and not count.is_integer()):
            raise InputError(ALLOWED)
        return cls(count, unit)

    def due_after(self, unit: str, done: float) -> bool:
        """Whether ``done`` of ``unit`` call for a checkpoint; never where the interval has another unit."""
        if unit != self.unit:
            return False
        return done >= self.count if unit == SECONDS else done % self.count == 0
