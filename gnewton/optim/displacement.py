"""How the parameters moved since they were last looked at, and the objective along that way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.optim.grouping import Grouping
from gnewton.optim.measure import Measurer
from gnewton.partition import Partition
from gnewton.summary.api import Engine
from gnewton.summary.problem import LossFunction


class Displacement:
    """Keeps a copy of the parameters, and measures the objective along what has changed since.

    Args:
        model, loss_fn, maximize, engine, max_memory: as in :class:`~gnewton.optim.measure.Measurer`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        *,
        maximize: bool,
        engine: Engine,
        max_memory: int | None,
    ) -> None:
        self._grouping = Grouping(model, Partition.single(model))
        self._measurer = Measurer(
            model,
            loss_fn,
            self._grouping,
            maximize=maximize,
            third=False,
            engine=engine,
            max_memory=max_memory,
        )
        self._before: list[Tensor] | None = None

    @torch.no_grad()
    def mark(self) -> None:
        """Measure from here on."""
        self._before = [p.detach().clone() for p in self._grouping.parameters]

    def measure(self, inputs: Any, targets: Any, decay: Mapping[str, float]) -> tuple[float, float] | None:
        """⟨∇f, w⟩ and wᵀ∇²f w at the present parameters, w = θ at the mark − θ now.

        Args:
            inputs, targets: the batch.
            decay: wd by parameter name, 0 for none.

        Returns:
            None where there is no mark, nothing moved, or a number is not finite.
        """
        if self._before is None:
            return None
        with torch.no_grad():
            w = torch._foreach_sub(self._before, self._grouping.parameters)  # type: ignore[arg-type]
        names = self._grouping.names
        found = self._measurer.measure(inputs, targets, [list(w)], [decay[name] for name in names])
        slope, curvature = float(found.gradient), float(found.hessian)
        moved = float(found.norms) > 0
        return (slope, curvature) if moved and math.isfinite(slope) and math.isfinite(curvature) else None

    def state_dict(self) -> dict[str, Any]:
        """The parameters at the mark."""
        return {"before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        before = state["before"]
        device = self._grouping.parameters[0].device
        self._before = None if before is None else [tensor.to(device) for tensor in before]
