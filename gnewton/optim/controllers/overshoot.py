"""λ_1 controlled by how far the steps since the last update overshot, and the measurement of that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from gnewton.errors import InputError
from gnewton.optim.controllers.controller import DAMPING, Controller, Site
from gnewton.optim.grouping import Grouping
from gnewton.optim.measure import Measurer
from gnewton.optim.rate_rule import Proposal
from gnewton.optim.safeguard import Mark
from gnewton.partition import Partition
from gnewton.summary.api import EngineName
from gnewton.summary.problem import Forward, LossFunction


class Overshoot(Controller):
    """λ_1 ← λ_1 exp(κ (c̄ − c*)), where c̄ tells how much further the last displacement should have gone.

    With −w the displacement since the last update, the objective along it is best at θ − c·w,
    c = ⟨∇f, w⟩ / wᵀ∇²f w: c > 0 the steps went too short, c < 0 too far. Both numbers are noisy, so each has
    a running mean of its own, Σ_j m^(k−j) x_j, and c̄ is their ratio, within [−1, 1]; where the mean curvature
    is not positive, the bound on the side that goes downhill. c* = 0 is the greedy choice, which steps ever
    less: minimising one step ahead pays in the short run only. Where the same direction is used for many
    steps, overshooting pays in the long run, hence c* < 0.

    Args:
        target: c*, >= −1 and < 1.
        gain: κ > 0.
        momentum: m of the running means, in [0, 1).
        bound: λ_1 stays within this factor of its initial value, > 1.
    """

    watches_displacement: ClassVar[bool] = True

    def __init__(
        self, target: float = -0.45, gain: float = 0.15, momentum: float = 0.9, bound: float = 100.0
    ) -> None:
        super().__init__()
        if not -1 <= target < 1:
            raise InputError(f"target={target}: must be >= -1 and < 1")
        if not 0 < gain < math.inf:
            raise InputError(f"gain={gain}: must be a finite number > 0")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum={momentum}: must be >= 0 and < 1")
        if not 1 < bound < math.inf:
            raise InputError(f"bound={bound}: must be a finite number > 1")
        self._target = target
        self._gain = gain
        self._momentum = momentum
        self._bound = bound
        self._slope = 0.0
        self._curvature = 0.0
        self._c = math.nan

    @property
    def quantity(self) -> str | None:
        """λ_1."""
        return DAMPING

    def settle(self, site: Site) -> Proposal:
        """Measure the last displacement, move λ_1, then solve."""
        found = site.displacement()
        if found is not None:
            self._slope = self._momentum * self._slope + found[0]
            self._curvature = self._momentum * self._curvature + found[1]
            self._c = self._ratio()
            moved = self.damping * math.exp(self._gain * (self._c - self._target))
            self.damping = min(max(moved, 1 / self._bound), self._bound)
        return site.propose(self.damping, 1.0)

    def readings(self) -> dict[str, float]:
        """c̄, NaN before the first displacement."""
        return {"overshoot": self._c}

    def state_dict(self) -> dict[str, Any]:
        """The factor, both means and their ratio."""
        means = {"slope": self._slope, "curvature": self._curvature, "c": self._c}
        return {**super().state_dict(), **means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._slope, self._curvature, self._c = state["slope"], state["curvature"], state["c"]

    def _ratio(self) -> float:
        if self._curvature <= 0:
            return math.copysign(1.0, self._slope) if self._slope else 0.0
        return min(max(self._slope / self._curvature, -1.0), 1.0)


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
        engine: EngineName,
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
