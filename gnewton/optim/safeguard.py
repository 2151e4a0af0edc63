"""Protection of a training: the way back after a bad update, and the count of steps that were withheld."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WINDOW = 10
"""Number of updates whose losses make the band."""

DEVIATIONS = 4.0
"""Standard deviations from the mean of the band to its edge."""

LEAST = 0.1
"""Least standard deviation, relative to the mean: losses of a whole training set hardly vary."""

RISE = 2.0
"""A loss above the first one by more than this multiple of it is outside, however slowly it got there."""

FALL, RECOVERY, LOWEST = 0.5, 1.1, 2.0**-10
"""Factor on the scale of λ_1 at a rejection, factor at each kept update until the scale is 1 again, and the
lowest scale."""


class Snapshot:
    """A copy of the parameters, and the way back to it.

    Args:
        parameters: θ, in the order of a partition.

    Attributes:
        parameters: the copy; None before the first one.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._live = parameters
        self.parameters: list[Tensor] | None = None

    @torch.no_grad()
    def take(self) -> None:
        """Keep a copy of the current parameters."""
        self.parameters = [p.detach().clone() for p in self._live]

    def discard(self) -> None:
        """Drop the copy, and its memory."""
        self.parameters = None

    @torch.no_grad()
    def restore(self) -> None:
        """Set the parameters to the copy, which stays."""
        if self.parameters is not None:
            for p, copy in zip(self._live, self.parameters, strict=True):
                p.copy_(copy)

    def load(self, parameters: list[Tensor] | None) -> None:
        """Replace the copy by a saved one, moved to the device of the parameters."""
        device = self._live[0].device
        self.parameters = None if parameters is None else [tensor.to(device) for tensor in parameters]


class Safeguard:
    """Keeps the parameters of the last good update, and judges each update by the loss on its batch.

    The edge of the band is 4 deviations above the mean of the last 10 losses that were kept. A loss above it
    has one of two causes: the steps since the last update, or the data. The loss of the same batch at the
    kept parameters tells them apart: if it is in the band, the steps are undone; if not, the band starts
    anew.

    Args:
        parameters: of the model; their copy is the memory cost.

    Attributes:
        scale: factor on λ_1, at most 1: halved by a rejection, 10 % up at each update that is kept.
        rejected: number of updates rejected so far.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.scale = 1.0
        self.rejected = 0
        self._snapshot = Snapshot(parameters)
        self._recent: list[float] = []
        self._first: float | None = None

    @property
    def kept(self) -> list[Tensor] | None:
        """The parameters of the last good update, in the order of ``parameters``; None: there are none."""
        return self._snapshot.parameters

    def judge(self, loss: float, loss_at: Callable[[list[Tensor]], float], *, standing: bool) -> bool:
        """Whether training may go on; if not, the parameters are those of the last good update again.

        Args:
            loss: on the batches of this update, at the current parameters.
            loss_at: the loss on the same batches at other parameters.
            standing: whether no step since the last update was made, none of them being finite.
        """
        if self.kept is not None and (standing or self.outside(loss)):
            kept_loss = loss_at(self.kept)
            if standing or not self.outside(kept_loss):
                self.reject()
                return False
            if math.isfinite(kept_loss):
                self.restart()
        if math.isfinite(loss):
            self.keep(loss)
        return True

    def outside(self, loss: float) -> bool:
        """Whether a loss is above the band, or not finite."""
        if not math.isfinite(loss):
            return True
        if not self._recent or self._first is None:
            return False
        count = len(self._recent)
        mean = math.fsum(self._recent) / count
        deviation = LEAST * abs(mean)
        if count > 1:
            variance = math.fsum((recent - mean) ** 2 for recent in self._recent) / (count - 1)
            deviation = max(deviation, math.sqrt(variance))
        else:  # one loss says nothing about the deviation
            deviation *= 3
        deviation = max(deviation, 1e-3 * abs(self._first))
        return loss > min(mean + DEVIATIONS * deviation, self._first + RISE * abs(self._first))

    def keep(self, loss: float) -> None:
        """Accept the current parameters, and add their loss to the band."""
        if self._first is None:
            self._first = loss
        self._recent = [*self._recent, loss][-WINDOW:]
        self._snapshot.take()
        self.scale = min(1.0, RECOVERY * self.scale)

    def restart(self) -> None:
        """Empty the band: the data have changed."""
        self._recent, self._first = [], None

    def fit(self, parameters: Sequence[Tensor]) -> None:
        """Take these parameters from now on; none are kept yet."""
        self._snapshot = Snapshot(parameters)

    def forget_parameters(self) -> None:
        """Drop the kept parameters, since the model trains others now; the next update keeps new ones."""
        self._snapshot.discard()

    def reject(self) -> None:
        """Return to the kept parameters, and halve λ_1."""
        self.rejected += 1
        self.scale = max(LOWEST, FALL * self.scale)
        self._snapshot.restore()

    def state_dict(self) -> dict[str, Any]:
        """The kept parameters, the band and the counters."""
        return {
            "before": self._snapshot.parameters,
            "recent": list(self._recent),
            "first": self._first,
            "scale": self.scale,
            "rejected": self.rejected,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        self._snapshot.load(state["before"])
        self._recent, self._first = list(state["recent"]), state["first"]
        self.scale, self.rejected = state["scale"], state["rejected"]


class WithheldSteps:
    """The number of steps that moved no parameter because they were not finite.

    Args:
        device: of the parameters, where the steps are counted without waiting for them.

    Attributes:
        total: steps so far, a scalar on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), dtype=torch.int64, device=device)
        self._at_update = 0

    def count(self, taken: Tensor) -> None:
        """Count a step; ``taken`` tells whether it was made, a scalar bool on the device."""
        self.total += ~taken

    def since_update(self) -> int:
        """Steps since the last call, which each update makes; waits for the device."""
        withheld = int(self.total) - self._at_update
        self._at_update += withheld
        return withheld

    def state_dict(self) -> dict[str, Any]:
        """The total, and its value at the last update."""
        return {"total": int(self.total), "at_update": self._at_update}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        self.total.fill_(state["total"])
        self._at_update = state["at_update"]
