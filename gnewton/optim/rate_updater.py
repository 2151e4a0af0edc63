"""The updates of GroupedNewton's rates: when one is due, and the way from a batch to new rates in force."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import GnewtonError, InputError, first_line
from gnewton.optim.bound_optimizer import Batch, CurvatureBatches, WarnOnce
from gnewton.optim.controllers import Controller
from gnewton.optim.directions import Directions
from gnewton.optim.grouping import Grouping
from gnewton.optim.measure import Measured, Measurer, Objective, spread
from gnewton.optim.rate_rule import INVALID, RateRule, RateUpdate, Solved, invalid, unmeasured
from gnewton.optim.rates_in_force import RatesInForce
from gnewton.optim.safeguard import Safeguard, WithheldSteps

_FAILURES = (GnewtonError, RuntimeError, NotImplementedError, MemoryError)
"""Errors of a summary that leave the rates as they are; an InputError is none of them."""


@dataclass
class UpdateSchedule:
    """The steps at which the rates are updated.

    Attributes:
        period: number of steps between two updates.
        warmup: number of leading steps that only feed the average, each with an update.
        total_steps: number of steps of the whole run; None: not known.
        steps: number of steps made.
        since: the step before which the last group was added; warm-up and period count from it.
        held: whether the rates stay, without updates.
    """

    period: int
    warmup: int
    total_steps: int | None = None
    steps: int = 0
    since: int = 0
    held: bool = False

    @property
    def warming_up(self) -> bool:
        """Whether the next step only feeds the average."""
        return self.steps - self.since < self.warmup and not self.held

    @property
    def due(self) -> bool:
        """Whether the next step begins with an update."""
        on_period = (self.steps - self.since - self.warmup) % self.period == 0
        return self.warming_up or (on_period and not self.held)

    @property
    def ended(self) -> bool:
        """Whether all steps of the run have been made."""
        return self.total_steps is not None and self.steps >= self.total_steps

    @property
    def annealing(self) -> float:
        """The factor on λ_1 of what remains of the run; 1 if its length is not known."""
        return 1.0 if self.total_steps is None else annealed(self.steps / self.total_steps)

    def advance(self) -> None:
        """Count a step."""
        self.steps += 1

    def restart(self) -> None:
        """Begin warm-up and period anew, since a group was added."""
        self.since = self.steps

    def state_dict(self) -> dict[str, Any]:
        """The position in the run."""
        return {"steps": self.steps, "since": self.since, "held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        self.steps, self.since, self.held = state["steps"], state["since"], state["held"]


def annealed(progress: float) -> float:
    """The factor on λ_1 after this share of a run: 1 in its first half, then on a line to 0."""
    return min(1.0, max(0.0, 2 * (1 - progress)))


class RateUpdater:
    """Measures the loss along the directions, solves for rates and puts them in force.

    Args:
        objective: what is minimised.
        directions, grouping: see :meth:`fit`.
        schedule: the steps at which rates are updated.
        rates: the rates in force.
        rule: the way from summaries to rates.
        controller: the rule that moves λ_1.
        batches: the curvature batches.
        safeguard: judges each update; None: none is undone.
        warn: logs what goes wrong.
        on_update: called after each update; None: nothing is called.

    Attributes:
        rule, controller, safeguard: as above.
        withheld: the steps that were not finite; the optimizer counts them.
        fallbacks: number of updates in which the model had no minimiser.
    """

    def __init__(
        self,
        objective: Objective,
        directions: Directions,
        grouping: Grouping,
        *,
        schedule: UpdateSchedule,
        rates: RatesInForce,
        rule: RateRule,
        controller: Controller,
        batches: CurvatureBatches,
        safeguard: Safeguard | None,
        warn: WarnOnce,
        on_update: Callable[[RateUpdate], None] | None,
    ) -> None:
        self.rule = rule
        self.controller = controller
        self.safeguard = safeguard
        self.withheld = WithheldSteps(grouping.parameters[0].device)
        self.fallbacks = 0
        self._objective, self._schedule, self._rates = objective, schedule, rates
        self._batches, self._warn, self._on_update = batches, warn, on_update
        self._updated: int | None = None  # the step before which the last update was made
        self.fit(directions, grouping)

    def fit(self, directions: Directions, grouping: Grouping) -> None:
        """Measure along these directions and in these groups from now on."""
        if self.safeguard is not None:
            self.safeguard.fit(grouping.parameters)
        self._directions = directions
        self._measurer = Measurer(
            self._objective,
            grouping,
            labels=directions.labels,
            shared=directions.shared,
            third=self.rule.needs_third,
            diagonal=self.rule.solver.diagonal,
        )

    def restart(self, kinds: Sequence[int]) -> None:
        """Average from nothing, over entries of these kinds, since the model trains other parameters now."""
        self.rule.restart(kinds)
        if self.safeguard is not None:
            self.safeguard.forget_parameters()

    @property
    def factor(self) -> float:
        """The factor on λ_1 of the controller, the safeguard and what remains of the run."""
        scale = 1.0 if self.safeguard is None else self.safeguard.scale
        return self.controller.step_size * (scale * self._schedule.annealing)

    @property
    def rejected(self) -> int:
        """Number of updates that the safeguard has undone."""
        return 0 if self.safeguard is None else self.safeguard.rejected

    def update(self, directions: list[list[Tensor]], batch: Any) -> bool:
        """Measure along the directions and put new rates in force.

        Args:
            directions: u_1 … u_k, each in the order of the partition's parameters.
            batch: the training batch, for an optimizer without curvature batches of its own.

        Returns:
            False if the safeguard has returned to earlier parameters instead.
        """
        started = time.perf_counter()
        step, warming_up = self._schedule.steps, self._schedule.warming_up
        decay = self._directions.quadratic_decay()
        batches = self._batches.for_update(batch)
        measured = self._measure(batches, directions, decay)
        summarised = time.perf_counter()
        withheld = self.withheld.since_update()
        if withheld:
            self._warn("steps that are not finite are withheld: a gradient holds NaN or inf, or overflows")
        kept = self._judge(measured, batches, standing=0 < step - (self._updated or 0) <= withheld)
        if kept:
            solved = self._solve(measured, warming_up)
            self.fallbacks += solved.solution.fell_back
            if withheld or solved.solution.status == INVALID:  # a direction may keep a NaN for ever
                self._directions.renew(always=withheld > 0)
            if measured and not warming_up:
                solved = self._enforce(solved, measured[-1])
        else:
            solved = unmeasured(self._rates.eta())
        self._updated = step
        if self._on_update is not None:
            step_size, places = self._rates.step_size(self.factor), self._measurer.places
            self._on_update(
                RateUpdate(
                    step=step,
                    solved=solved.at(list(places.values())),
                    names=tuple(places),
                    step_size=[step_size[place] for place in places.values()],
                    loss=_mean([summary.loss for summary in measured]),
                    summary_seconds=summarised - started,
                    solve_seconds=time.perf_counter() - summarised,
                    warming_up=warming_up,
                    rejected=self.rejected,
                )
            )
        return kept

    def _measure(
        self, batches: list[Batch], directions: list[list[Tensor]], decay: list[float]
    ) -> list[Measured]:
        """A summary on each batch; none, and a warning, if one fails.

        Raises:
            Exception: the error of the summary, for an engine chosen by name, or if there are no rates yet.
        """
        first = self._schedule.steps * len(batches)
        try:
            return [
                self._measurer.measure(*batch, directions, decay, seed)
                for seed, batch in enumerate(batches, first)
            ]
        except InputError:
            raise
        except _FAILURES as error:
            if self._objective.engine in ("tangent", "compiled") or self._updated is None:
                raise
            reason = first_line(error, with_type=True)
        self._warn(f"no summary, so the rates in force stay: {reason}")
        return []

    def _judge(self, measured: list[Measured], batches: list[Batch], *, standing: bool) -> bool:
        """Whether training may go on from here; otherwise it is back at the last good update."""
        if self.safeguard is None or not measured:
            return True
        loss = _mean([self._measurer.sign * summary.loss for summary in measured])

        def loss_at(parameters: list[Tensor]) -> float:
            return _mean([self._measurer.objective(*batch, parameters) for batch in batches])

        if self.safeguard.judge(loss, loss_at, standing=standing):
            return True
        self._directions.renew(always=True)
        self._rates.shrink()
        reason = "steps that were not finite" if standing else f"a loss of {loss:.3g}"
        self._warn(f"after {reason} at step {self._schedule.steps} back to the last good parameters")
        return False

    def _solve(self, measured: list[Measured], warming_up: bool) -> Solved:
        """New rates; the previous ones if there is no summary, or one that is not finite."""
        if not measured:
            return unmeasured(self._rates.eta())
        wrong = next((summary for summary in measured if not summary.finite), None)
        if wrong is not None:
            return invalid(self._rates.eta(), wrong.gradient, wrong.hessian, wrong.third)
        for summary in measured:
            average = self.rule.observe(summary.gradient, summary.hessian, summary.third, summary.norms)
        if not warming_up:
            self.controller.observe(self._measurer.sign * measured[-1].loss)
        silent = torch.stack([summary.silent for summary in measured]).all(0)
        solved = self.rule.solve(average, measured[-1].norms, silent=silent)
        shared = self._directions.shared
        return replace(solved, rates=spread(solved.rates, len(self._directions.labels), shared))

    def _enforce(self, solved: Solved, measured: Measured) -> Solved:
        """Put rates in force with the limits of their steps."""
        step_size = self._rates.step_size(self.factor)
        if solved.solution.status == INVALID:
            self._warn("a summary that is not finite leaves the rates in force as they are")
            return self._rates.start(solved, measured, step_size)
        return self._rates.enforce(solved, measured, step_size, self._directions, self._schedule.period)

    def state_dict(self) -> dict[str, Any]:
        """The state of the rule and its averages, the controller, the safeguard, the batches and counters."""
        return {
            "updated": self._updated,
            "fallbacks": self.fallbacks,
            "curvature_position": self._batches.position,
            "rule": self.rule.state_dict(),
            "controller": self.controller.state_dict(),
            "withheld": self.withheld.state_dict(),
            "safeguard": None if self.safeguard is None else self.safeguard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        self._updated, self.fallbacks = state["updated"], state["fallbacks"]
        self._batches.seek(state["curvature_position"])
        self.rule.load_state_dict(state["rule"])
        self.controller.load_state_dict(state["controller"])
        self.withheld.load_state_dict(state["withheld"])
        if self.safeguard is not None and state["safeguard"] is not None:
            self.safeguard.load_state_dict(state["safeguard"])


def _mean(values: Sequence[float]) -> float:
    """The mean; NaN if there is no value, or one that is not finite."""
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan
