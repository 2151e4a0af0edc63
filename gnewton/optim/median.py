"""A bound on rates that is robust against their flicker."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnewton.arguments import check_whole


class MedianBound:
    """|η_s| <= the median of |η_s| over the last ``window`` updates, the present one included.

    A single large rate, as noise makes them, is cut to what is usual; a lasting rise passes after half a
    window. Of an even number of values the lower middle one is taken.

    Args:
        window: number of updates, at least 1 (at which nothing is bounded).
    """

    def __init__(self, window: int) -> None:
        check_whole("rate_median", window, 1)
        self._window = window
        self._history: list[Tensor] = []

    def bound(self, rates: Tensor) -> Tensor:
        """The bounded rates; ``rates`` are not kept."""
        recent = [*self._history[-(self._window - 1) :], rates] if self._window > 1 else [rates]
        limit = torch.stack(recent).abs().median(dim=0).values
        return rates.clamp(min=-limit, max=limit)

    def record(self, rates: Tensor) -> None:
        """Keep the unbounded rates of an update."""
        self._history = [*self._history, rates.clone()][-self._window :]

    def state_dict(self) -> dict[str, Any]:
        """The rates of the last updates."""
        return {"history": list(self._history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._history = list(state["history"])
