"""The way back: what becomes of an update whose loss has left the band of those before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WINDOW = 10
"""Updates whose losses make the band."""

DEVIATIONS = 4.0
"""Standard deviations from the mean of the band to its edge."""

LEAST = 0.1
"""Of the mean: a deviation counts as being at least so large. Losses of a whole training set hardly vary."""

RISE = 2.0
"""Of the first loss: a loss that is higher than it by more than that is out, however slowly it got there."""

FALL, RECOVERY, LOWEST = 0.5, 1.1, 2.0**-10
"""What λ_1 is multiplied by at a rejection, at most ten times over, and at each update that is kept until it
is whole again."""


class Mark:
    """A copy of the parameters, and the way back to it.

    Args:
        parameters: θ, in the order of a partition.

    Attributes:
        before: θ when the mark was set; None before the first time.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self.before: list[Tensor] | None = None

    @torch.no_grad()
    def set(self) -> None:
        """Count from here on."""
        self.before = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def way_back(self) -> list[Tensor] | None:
        """w = θ at the mark − θ now; None where there is no mark."""
        if self.before is None:
            return None
        return list(torch._foreach_sub(self.before, self._parameters))  # type: ignore[arg-type]

    @torch.no_grad()
    def go_back(self) -> None:
        """Set the parameters to what they were at the mark; the mark stays."""
        if self.before is not None:
            for p, before in zip(self._parameters, self.before, strict=True):
                p.copy_(before)

    def restore(self, before: list[Tensor] | None) -> None:
        """Set it to a saved ``before``, on the device of the parameters."""
        device = self._parameters[0].device
        self.before = None if before is None else [tensor.to(device) for tensor in before]


class Safeguard:
    """Keeps the parameters of the last good update, and judges each update by the loss on its batch.

    The band is mean + 4 deviations of the last 10 losses that were kept. A loss above it may have two causes:
    the steps since the last update, or the data. The loss of the same batch at the kept parameters tells them
    apart: where that is in the band, the steps are undone; where it is not, the band starts anew.

    Args:
        parameters: of the model; a copy of them is the memory this takes.

    Attributes:
        scale: factor on λ_1, at most 1.
        rejected: updates rejected so far.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.scale = 1.0
        self.rejected = 0
        self._mark = Mark(parameters)
        self._recent: list[float] = []
        self._first: float | None = None

    @property
    def kept(self) -> list[Tensor] | None:
        """The parameters of the last good update, in the order of ``parameters``."""
        return self._mark.before

    def outside(self, loss: float) -> bool:
        """Whether a loss has left the band, or is not finite."""
        if not math.isfinite(loss):
            return True
        if not self._recent or self._first is None:
            return False
        count = len(self._recent)
        mean = math.fsum(self._recent) / count
        deviation = LEAST * abs(mean)
        if count > 1:
            spread = math.fsum((each - mean) ** 2 for each in self._recent) / (count - 1)
            deviation = max(deviation, math.sqrt(spread))
        else:  # one loss says nothing about its deviation
            deviation *= 3
        deviation = max(deviation, 1e-3 * abs(self._first))
        return loss > min(mean + DEVIATIONS * deviation, self._first + RISE * abs(self._first))

    def keep(self, loss: float) -> None:
        """Take the present parameters for good ones, and their loss into the band."""
        if self._first is None:
            self._first = loss
        self._recent = [*self._recent, loss][-WINDOW:]
        self._mark.set()
        self.scale = min(1.0, RECOVERY * self.scale)

    def restart(self) -> None:
        """Forget the band: the losses are of other data now."""
        self._recent, self._first = [], None

    def forget_parameters(self) -> None:
        """Until the next update there is no way back: the model trains others now."""
        self._mark.before = None

    @torch.no_grad()
    def reject(self) -> None:
        """Go back to the parameters that were kept, with half the damping λ_1."""
        self.rejected += 1
        self.scale = max(LOWEST, FALL * self.scale)
        self._mark.go_back()

    def state_dict(self) -> dict[str, Any]:
        """The kept parameters, the band and the counters."""
        return {
            "before": self._mark.before,
            "recent": list(self._recent),
            "first": self._first,
            "scale": self.scale,
            "rejected": self.rejected,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._mark.restore(state["before"])
        self._recent, self._first = list(state["recent"]), state["first"]
        self.scale, self.rejected = state["scale"], state["rejected"]
