"""How the parameters moved since they were last looked at, and the objective along that way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.optim.grouping import Grouping
from gnewton.optim.measure import Measurer
from gnewton.partition import Partition
from gnewton.summary.api import Engine
from gnewton.summary.problem import Forward, LossFunction


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


class Displacement:
    """Keeps a copy of the parameters, and measures the objective along what has changed since.

    Args:
        model, loss_fn, maximize, forward, engine, max_memory: as in :class:`~gnewton.optim.measure.Measurer`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        *,
        maximize: bool,
        engine: Engine,
        max_memory: int | None,
        forward: Forward | None = None,
    ) -> None:
        self._grouping = Grouping(model, Partition.single(model))
        self._measurer = Measurer(
            model,
            loss_fn,
            self._grouping,
            maximize=maximize,
            forward=forward,
            third=False,
            engine=engine,
            max_memory=max_memory,
        )
        self._mark = Mark(self._grouping.parameters)

    def mark(self) -> None:
        """Measure from here on."""
        self._mark.set()

    def forget(self) -> None:
        """There is no mark until the next one is set."""
        self._mark.before = None

    def measure(self, inputs: Any, targets: Any, decay: Mapping[str, float]) -> tuple[float, float] | None:
        """⟨∇f, w⟩ and wᵀ∇²f w at the present parameters, w = θ at the mark − θ now.

        Args:
            inputs, targets: the batch.
            decay: wd by parameter name, 0 for none.

        Returns:
            None where there is no mark, nothing moved, or a number is not finite.
        """
        w = self._mark.way_back()
        if w is None:
            return None
        names = self._grouping.names
        found = self._measurer.measure(inputs, targets, [w], [decay[name] for name in names])
        slope, curvature = float(found.gradient), float(found.hessian)
        moved = float(found.norms) > 0
        return (slope, curvature) if moved and math.isfinite(slope) and math.isfinite(curvature) else None

    def state_dict(self) -> dict[str, Any]:
        """The parameters at the mark."""
        return {"before": self._mark.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._mark.restore(state["before"])
