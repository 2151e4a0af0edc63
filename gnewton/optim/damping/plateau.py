"""A damping that moves when the objective has stopped falling."""

from __future__ import annotations

import math
from typing import Any

from gnewton.errors import InputError
from gnewton.optim.damping.controller import QuantityController, Site
from gnewton.optim.rates import Proposal


class Plateau(QuantityController):
    """Multiplies a damping when the objective on the curvature batches, averaged over ``window`` updates, has
    not improved for more than ``patience`` windows in a row.

    Args:
        quantity, factor, limit: see :class:`~gnewton.optim.damping.controller.QuantityController`.
        window: updates whose mean is one value, >= 1.
        patience: windows without improvement that are let pass, >= 0.
        threshold: share of the best value by which a better one must be lower, >= 0.
    """

    def __init__(
        self,
        quantity: str,
        factor: float,
        limit: float | None = None,
        *,
        window: int = 20,
        patience: int = 2,
        threshold: float = 1e-3,
    ) -> None:
        super().__init__(quantity, factor, limit)
        for name, value, least in (("window", window, 1), ("patience", patience, 0)):
            if not (isinstance(value, int) and value >= least):
                raise InputError(f"{name}={value}: must be an integer >= {least}")
        if not threshold >= 0:
            raise InputError(f"threshold={threshold}: must be >= 0")
        self._window = window
        self._patience = patience
        self._threshold = threshold
        self._values: list[float] = []
        self._best = math.inf
        self._bad = 0

    def settle(self, site: Site) -> Proposal:
        """Take in the objective, multiply if it is time, then solve."""
        self._values.append(site.objective)
        if len(self._values) == self._window:
            mean = math.fsum(self._values) / self._window
            self._values = []
            if mean < self._best - self._threshold * abs(self._best) or self._best == math.inf:
                self._best, self._bad = mean, 0
            else:
                self._bad += 1
            if self._bad > self._patience:
                self.multiply()
                self._bad = 0
        return self.propose(site)

    def state_dict(self) -> dict[str, Any]:
        """The factors, the values of the present window, the best one and the windows since."""
        return {
            **super().state_dict(),
            "values": list(self._values),
            "best": self._best,
            "bad": self._bad,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._values, self._best, self._bad = list(state["values"]), state["best"], state["bad"]
