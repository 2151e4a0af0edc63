"""λ_1 controlled by the overshoot of the steps since the last update, and the measurement of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from gnewton.arguments import check_options
from gnewton.optim.controllers.controller import STEP_SIZE, Controller, Site
from gnewton.optim.grouping import Grouping
from gnewton.optim.hyperparameters import OvershootHyperparameters
from gnewton.optim.measure import Measurer, Objective
from gnewton.optim.rate_rule import Proposal
from gnewton.optim.safeguard import Snapshot
from gnewton.partition import Partition


class Overshoot(Controller):
    """λ_1 ← λ_1 exp(κ (c̄ − c*)), with c̄ the fraction by which the last displacement fell short.

    Let −w be the displacement since the last update. Along it the objective is lowest at θ − c·w with
    c = ⟨∇f, w⟩ / wᵀ∇²f w: for c > 0 the steps were too short, for c < 0 too long. Both numbers are noisy, so
    each has its own running mean Σ_j m^(k−j) x_j, and c̄ is the ratio of the means, clamped to [−1, 1]; if
    the mean curvature is not positive, it is the downhill bound. c* = 0 is the greedy choice. It pays in the
    short run only and shrinks the steps; when one direction serves many steps, overshooting pays in the long
    run, hence c* < 0.

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
        check_options(OvershootHyperparameters, target=target, gain=gain, momentum=momentum, bound=bound)
        self._target = target
        self._gain = gain
        self._momentum = momentum
        self._bound = bound
        self._slope = 0.0
        self._curvature = 0.0
        self._c = math.nan

    @property
    def quantity(self) -> str | None:
        """λ_1 moves."""
        return STEP_SIZE

    def settle(self, site: Site) -> Proposal:
        """Measure the last displacement, move λ_1, then solve."""
        derivatives = site.displacement()
        if derivatives is not None:
            slope, curvature = derivatives
            self._slope = self._momentum * self._slope + slope
            self._curvature = self._momentum * self._curvature + curvature
            self._c = self._ratio()
            moved = self.step_size * math.exp(self._gain * (self._c - self._target))
            self.step_size = min(max(moved, 1 / self._bound), self._bound)
        return site.propose(self.step_size, 1.0)

    def readings(self) -> dict[str, float]:
        """c̄; NaN before the first displacement."""
        return {"overshoot": self._c}

    def state_dict(self) -> dict[str, Any]:
        """The factors, both running means and their ratio."""
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
    """The displacement of the parameters since the last update, and the objective along it."""

    def __init__(self, objective: Objective) -> None:
        self._grouping = Grouping(objective.model, Partition.single(objective.model))
        self._measurer = Measurer(objective, self._grouping, third=False)
        self._start = Snapshot(self._grouping.parameters)

    def begin(self) -> None:
        """Measure the displacement from the current parameters on."""
        self._start.take()

    def forget(self) -> None:
        """Drop the starting point; there is no displacement until the next :meth:`begin`."""
        self._start.discard()

    def measure(self, inputs: Any, targets: Any, decay: Mapping[str, float]) -> tuple[float, float] | None:
        """⟨∇f, w⟩ and wᵀ∇²f w at the current parameters, w = θ at the start − θ now.

        Args:
            inputs, targets: the batch.
            decay: wd by parameter name, 0 for none.

        Returns:
            None without a starting point, if nothing moved, or if a number is not finite.
        """
        w = self._start.way_back()
        if w is None:
            return None
        names = self._grouping.names
        measured = self._measurer.measure(inputs, targets, [w], [decay[name] for name in names])
        slope, curvature = float(measured.gradient), float(measured.hessian)
        moved = float(measured.norms) > 0
        return (slope, curvature) if moved and math.isfinite(slope) and math.isfinite(curvature) else None

    def state_dict(self) -> dict[str, Any]:
        """The parameters at the start."""
        return {"before": self._start.parameters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._start.load(state["before"])
