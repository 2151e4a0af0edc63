"""One update of the rates: as the controllers of the dampings see it, and as it is logged."""

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
        step: number of training steps made before it.
        solved: the rates before damping, with what they were solved from.
        names: what each entry of the vectors in ``solved`` belongs to: a group of the partition, or
            ``group:direction`` where there are several directions.
        damping: λ_1 of each entry at this update.
        loss: of the curvature batch, at the parameters before the step.
        summary_seconds, solve_seconds: wall time of the two parts; trials of the controller count as solving.
        warming_up: whether the update only fed the average, and its rates are not put in force.
        rejected: updates rejected so far (:class:`~gnewton.optim.safeguard.Safeguard`).
        readings: what the controller of the dampings measured, by column of rates.csv.
    """

    step: int
    solved: Solved
    names: tuple[str, ...]
    damping: list[float]
    loss: float
    summary_seconds: float
    solve_seconds: float
    warming_up: bool
    rejected: int = 0
    readings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Update(Site):
    """What has been measured at an update, and with what more can be.

    Attributes:
        rule, measurer, grouping: of the optimizer.
        silent: the entries that take no part, (R,), bool.
        watched: where the parameters were at the last update, if that is kept.
        average: what the rule returned for the summaries of this update.
        measured: the last of these summaries.
        batch: on which it was taken.
        directions: u_1 … u_k.
        decay: wd of each parameter, 0 for none.
        lr: λ_1 of each entry, before the controller.
    """

    rule: RateRule
    measurer: Measurer
    grouping: Grouping
    silent: Tensor
    watched: Displacement | None
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

    def propose(self, damping: float, internal_damping: float) -> Proposal:
        """Rates; nothing is put in force."""
        return self.rule.propose(
            self.average, self.measured.norms, factor=internal_damping, silent=self.silent
        )

    def predicted(self, proposal: Proposal, damping: float, internal_damping: float) -> float:
        """The decrease of the averaged model."""
        rates = self.lr * damping * proposal.solved.rates
        return self.rule.predicted(self.average, self.measured.norms, rates, factor=internal_damping)

    def decreases(self, proposal: Proposal, damping: float, slices: int) -> Tensor:
        """The decrease on slices of the curvature batch; the directions stay as they are."""
        rates = (self.lr * damping * proposal.solved.rates).tolist()
        step = combined(self.directions, Plan(rates), self.grouping)
        return self.measurer.decreases(*self.batch, step, self.decay, slices)

    def displacement(self) -> tuple[float, float] | None:
        """Along what has changed since the last update."""
        if self.watched is None:
            return None
        return self.watched.measure(*self.batch, dict(zip(self.grouping.names, self.decay, strict=True)))
