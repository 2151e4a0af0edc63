"""A damping that falls or rises by the same factor at every update."""

from __future__ import annotations

from typing import Any

from gnewton.optim.damping.controller import QuantityController, Site
from gnewton.optim.rates import Proposal


class Geometric(QuantityController):
    """λ_k = λ_0 · factor^k at the k-th update after the warm-up, k = 0, 1, …, within a limit.

    Args:
        quantity, factor, limit: see :class:`~gnewton.optim.damping.controller.QuantityController`.
    """

    def __init__(self, quantity: str, factor: float, limit: float | None = None) -> None:
        super().__init__(quantity, factor, limit)
        self._started = False

    def settle(self, site: Site) -> Proposal:
        """Multiply, except at the first update, then solve."""
        if self._started:
            self.multiply()
        self._started = True
        return self.propose(site)

    def state_dict(self) -> dict[str, Any]:
        """The factors, and whether there has been an update."""
        return {**super().state_dict(), "started": self._started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._started = bool(state["started"])
