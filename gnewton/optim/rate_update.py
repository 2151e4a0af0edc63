"""One update of the rates, as it is logged and as the controllers see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gnewton.optim.bound_optimizer import Batch
from gnewton.optim.controllers import Displacement, Site
from gnewton.optim.finite_step import Plan, combined
from gnewton.optim.grouping import Grouping
from gnewton.optim.measure import Measured, Measurer
from gnewton.optim.rate_rule import Proposal, RateRule, Solved


@dataclass(frozen=True)
class RateUpdate:
    """One update of the rates, for logs.

    Attributes:
        step: number of training steps before it.
        solved: the rates before the step size λ_1, and the model that they were solved from.
        names: name of each entry of the vectors in ``solved``: a group of the partition, or
            ``group:direction`` for several directions.
        step_size: λ_1 of each entry at this update.
        loss: loss of the curvature batch, at the parameters before the step.
        summary_seconds, solve_seconds: wall time of the two parts; trials of the controller count as solving.
        warming_up: whether the update only fed the average, and its rates are not put in force.
        rejected: number of updates rejected so far (:class:`~gnewton.optim.safeguard.Safeguard`).
        readings: values measured by the controller, by column of rates.csv.
    """

    step: int
    solved: Solved
    names: tuple[str, ...]
    step_size: list[float]
    loss: float
    summary_seconds: float
    solve_seconds: float
    warming_up: bool
    rejected: int = 0
    readings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Update(Site):
    """The measurements of an update, and the means to measure more.

    Attributes:
        rule, measurer, grouping: those of the optimizer.
        silent: entries that take no part, (R,), bool.
        displaced: the displacement since the last update, if it is measured.
        average: the packed average after the summaries of this update.
        measured: the last of these summaries.
        batch: the batch of the last summary.
        directions: u_1 … u_k.
        decay: wd of each parameter, 0 for none.
        lr: λ_1 of each entry, before the controller.
    """

    rule: RateRule
    measurer: Measurer
    grouping: Grouping
    silent: Tensor
    displaced: Displacement | None
    average: Tensor
    measured: Measured
    batch: Batch
    directions: list[list[Tensor]]
    decay: list[float]
    lr: Tensor

    @property
    def objective(self) -> float:
        """±L on the curvature batch."""
        return self.measurer.sign * self.measured.loss

    def propose(self, step_size: float, internal_damping: float) -> Proposal:
        """Rates at these factors, not yet in force."""
        return self.rule.propose(
            self.average, self.measured.norms, factor=internal_damping, silent=self.silent
        )

    def predicted(self, proposal: Proposal, step_size: float, internal_damping: float) -> float:
        """The predicted decrease, by the averaged model."""
        rates = self.lr * step_size * proposal.solved.rates
        return self.rule.predicted(self.average, self.measured.norms, rates, factor=internal_damping)

    def decreases(self, proposal: Proposal, step_size: float, slices: int) -> Tensor:
        """The actual decrease on slices of the curvature batch."""
        rates = (self.lr * step_size * proposal.solved.rates).tolist()
        step = combined(self.directions, Plan(rates), self.grouping)
        return self.measurer.decreases(*self.batch, step, self.decay, slices)

    def displacement(self) -> tuple[float, float] | None:
        """The derivatives along the displacement since the last update."""
        if self.displaced is None:
            return None
        return self.displaced.measure(*self.batch, dict(zip(self.grouping.names, self.decay, strict=True)))
