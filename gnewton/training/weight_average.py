"""An exponential moving average of the weights over training steps, at which the model is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of θ_1 … θ_k, the weights after each training step; a step earlier counts d times as much.

    Without the pull to zero of an average that starts from nothing (Kingma, Ba 2015, section 3):

        θ̄_k = Σ_j d^(k−j) θ_j / Σ_j d^(k−j) = θ̄_(k−1) + w_k (θ_k − θ̄_(k−1)),   w_k = (1 − d) / (1 − d^k)

    so that θ̄_1 = θ_1, and the first 1 / (1 − d) steps are averaged about evenly. The initial weights are not
    in it. Floating-point buffers, such as the running statistics of batch normalisation, are averaged alike;
    counts are the latest ones. Nothing waits for the device.

    Args:
        model: the network in training. Its ``state_dict`` is averaged.
        decay: d, in (0, 1).

    Attributes:
        count: k, the training steps in the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self._model = model
        self._values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after one more training step into the average."""
        self.count += 1
        weight = (1 - self.decay) / (1 - self.decay**self.count)
        averages, latest = [], []
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                averages.append(self._values[name])
                latest.append(value)
            else:
                self._values[name].copy_(value)
        torch._foreach_lerp_(averages, latest, weight)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within the block the model has the average; then it has its own weights again, bit for bit.

        Before the first training step there is no average, and the model keeps its weights.
        """
        if self.count == 0:
            yield
            return
        current = self._model.state_dict()
        kept = {name: value.detach().clone() for name, value in current.items()}
        self._copy(self._values, current)
        try:
            yield
        finally:
            self._copy(kept, current)

    def state_dict(self) -> dict[str, Any]:
        """``count``, and the average as a ``state_dict`` of the model: ``values``."""
        return {"count": self.count, "values": dict(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.count = int(state["count"])
        self._copy(state["values"], self._values)

    @staticmethod
    @torch.no_grad()
    def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        for name, value in target.items():
            value.copy_(source[name])
