"""GroupedNewton: one learning rate per group of parameters, from an exact summary of the loss."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.arguments import (
    check_flag,
    check_function,
    check_kind,
    check_options,
    check_whole,
    explained,
)
from gnewton.errors import GnewtonError, InputError, first_line
from gnewton.optim.averaging import Averaging, ExponentialAveraging
from gnewton.optim.bound_optimizer import (
    Batch,
    BoundOptimizer,
    CurvatureBatches,
    WarnOnce,
    evaluated,
    saved_part,
)
from gnewton.optim.controllers import Controller, Progress
from gnewton.optim.directions import DirectionChoice, Directions
from gnewton.optim.finite_step import take
from gnewton.optim.grouping import Grouping, growth
from gnewton.optim.hyperparameters import GroupedNewtonHyperparameters
from gnewton.optim.measure import Measured, Measurer, Objective, entries, numbered
from gnewton.optim.rate_rule import INVALID, NegativeRates, RateRule, RateUpdate, Solved, invalid, unmeasured
from gnewton.optim.rates_in_force import RatesInForce
from gnewton.optim.safeguard import Safeguard, WithheldSteps
from gnewton.optim.solvers import Solver
from gnewton.partition import PartitionChoice, chosen_partition
from gnewton.partition.slices import require_whole
from gnewton.summary.api import EngineName
from gnewton.summary.group_parts import check_carried
from gnewton.summary.problem import Forward, LossFunction, check_loss
from gnewton.wrappers import unwrapped

log = logging.getLogger(__name__)

_FAILURES = (GnewtonError, RuntimeError, NotImplementedError, MemoryError)
"""Errors of a summary that leave the rates as they are; an InputError is none of them."""

ANNEALED = 1.0
"""Least λ_1 of the default controller where the end of the run takes it to 0 in any case."""


class GroupedNewton(BoundOptimizer):
    """θ ← θ − λ_1 Σ_s η_s P_s u, where u comes from a first-order method and η minimises the anisotropic
    cubic model of the loss along the S directions P_s u (Wolinski, arXiv 2312.03885).

    Every ``period`` steps an update computes the exact gradient, Hessian and third derivative of the loss
    along the partition on a curvature batch, and solves for the rates. They stay in force until the next
    update, while u changes at every step. There is no learning rate to tune.

    Four rules protect the training (docs/reliability.md). A group on which the loss does not depend, within
    rounding, gets the rate 0. No step of a group is longer than at the last update, nor than ``cap`` allows.
    An update whose loss has left the band of its predecessors is undone. Numbers that are not finite never
    reach a parameter: such a step is withheld and counted, such a summary is neither averaged nor solved
    with, and a direction that contains a NaN starts anew at the next update. If a summary fails, the rates in
    force stay.

    Each group of the partition is one entry of ``param_groups``, with its ``name``, its step size λ_1 as
    ``lr`` (so that torch's schedulers act on it) and its rate η_s as ``rate``, a list for several directions.
    Where groups are slices of tensors there is a single entry, whose ``rate`` lists the rates of all groups.

    Example::

        optimizer = GroupedNewton(model, torch.nn.functional.cross_entropy)
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step(batch=(inputs, targets))

    Args:
        model: the network, also inside ``torch.compile`` or DistributedDataParallel; its parameters are
            updated in place.
        loss_fn: ``loss_fn(outputs, targets)`` is the mean loss over the batch, a scalar. The outputs, of any
            type, are ``model(*inputs)`` for a tuple or list of inputs, ``model(**inputs)`` for a mapping,
            else ``model(inputs)``.
        partition: the groups; one per parameter tensor by default. Also the name of a scheme, such as
            "by_layer", or lists of names (:func:`~gnewton.partition.choice.chosen_partition`).
        direction: the first-order method that proposes u: a name
            (:data:`~gnewton.optim.directions.NAMED`), or a function from (name, tensor) pairs, which every
            torch optimizer takes, to an optimizer; by default Adam. Its weight decay is part of u
            (:class:`~gnewton.optim.shadow_direction.ShadowDirection`), a coupled one also of the loss. With
            several methods by label, ``{"gradient": …, "momentum": …}``, every group has a rate for each of
            them: the step is θ ← θ − λ_1 Σ_s Σ_j η_sj P_s u_j, and all η come from one problem. One that is
            :class:`~gnewton.optim.directions.Shared` has one rate for all groups. "pair" is the gradient,
            shared, and Adam's step (docs/results/directions.md).
        along: the direction of the summary. "fresh": v, the part of u that the current gradient adds
            (:mod:`gnewton.optim.fresh`), best measured on its own batch; "step": u itself.
        period: number of training steps between two updates of the rates, at least 1.
        step_size: λ_1 > 0, the factor on all rates.
        solver: the problem that is solved for the rates: "cubic", "cubic_diagonal", "ridge" or "newton"
            (:mod:`gnewton.optim.solvers`).
        internal_damping: λ_int >= 0, the weight of the cubic term, or of the ridge.
        negative_rates: "keep", "clip" (to 0, after the solve) or "constrain" (solve over rates >= 0).
        cap: longest step of each group, as a fraction of the length of its parameters; a tenth of that at
            the first update, see :class:`~gnewton.optim.rates_in_force.TrustRadius`; None: no bound.
        safeguard: whether an update whose loss has left its band is undone
            (:class:`~gnewton.optim.safeguard.Safeguard`), which keeps a copy of the parameters.
        total_steps: number of training steps of the whole run, if it is known: λ_1 then falls along a
            straight line to 0 in the second half. None: not known.
        controller: the rule that moves λ_1 from update to update (:mod:`gnewton.optim.controllers`);
            ``Constant()`` moves nothing. None: :class:`~gnewton.optim.controllers.Progress`, which with
            ``total_steps`` does not go below λ_1 = 1.
        shrinkage: weight >= 0 of the term that pulls the rates towards one common rate; it also keeps them
            within a factor of 8 of that rate (:mod:`gnewton.optim.rate_bounds`). 0: none.
        proximal: weight >= 0 of the proximal term that keeps rates near the previous ones.
        averaging: the average of the summary over updates; by default exponential with coefficient 0.8.
        normalise: whether summaries are averaged in units of ‖P_s u‖.
        warmup: number of leading steps that only feed the average: each takes a summary and moves no
            parameter.
        curvature: batches (inputs, targets) for the summary, an iterable that is restarted when exhausted;
            None: the batch passed to :meth:`step`.
        forward: for batches of other forms, or models with other calls: the outputs are
            ``forward(model, batch)`` and the loss is ``loss_fn(outputs, batch)``. For a model that returns
            its own loss: ``forward=lambda model, batch: model(**batch)``, ``loss_fn=lambda outputs, batch:
            outputs.loss``.
        engine: the engine of the summary, see :func:`gnewton.summarize`.
        matrix: the matrix of the cubic model: "hessian", "gauss_newton" or "fisher", see
            :func:`gnewton.summarize`.
        max_memory: bound on the memory of the summary in bytes, see :func:`gnewton.summarize`.
        maximize: whether ``loss_fn`` is maximised instead of minimised.
        on_update: called with a :class:`RateUpdate` after each update of the rates.

    Raises:
        InputError: for a value out of range, or a partition that does not fit the model.
    """

    @explained(
        lr="there is no learning rate to set; step_size= is λ_1, the factor on all rates",
        damping="λ_1, the factor on all rates, is step_size= now",
        momentum="it belongs to the direction, functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9)",
        weight_decay="it belongs to the direction, functools.partial(torch.optim.SGD, lr=1, weight_decay=…)",
        loss_fn="pass the function of (outputs, targets), such as torch.nn.functional.cross_entropy",
    )
    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        partition: PartitionChoice = None,
        *,
        direction: DirectionChoice = "pair",
        along: str = "fresh",
        period: int = 10,
        step_size: float = 1.0,
        solver: str | Solver = "cubic",
        internal_damping: float = 1.0,
        negative_rates: str | NegativeRates = NegativeRates.CLIP,
        cap: float | None = 0.1,
        safeguard: bool = True,
        total_steps: int | None = None,
        controller: Controller | None = None,
        shrinkage: float = 1.0,
        proximal: float = 1.0,
        averaging: Averaging | None = None,
        normalise: bool = True,
        warmup: int = 0,
        curvature: Iterable[Any] | None = None,
        forward: Forward | None = None,
        engine: EngineName = "auto",
        matrix: str = "hessian",
        max_memory: int | None = None,
        maximize: bool = False,
        on_update: Callable[[RateUpdate], None] | None = None,
    ) -> None:
        watched, model = model, unwrapped(model)
        check_loss(loss_fn)
        check_options(
            GroupedNewtonHyperparameters,
            period=period,
            warmup=warmup,
            step_size=step_size,
            safeguard=safeguard,
            along=along,
        )
        if total_steps is not None:
            check_whole("total_steps", total_steps, 1)
        check_flag("maximize", maximize)
        check_kind("controller", controller, Controller, "Progress(…) of gnewton.optim.controllers")
        check_function("on_update", on_update, "of a RateUpdate")
        self.partition = chosen_partition(model, partition)
        self._grouping = Grouping(model, self.partition)
        named = dict(zip(self._grouping.names, self._grouping.parameters, strict=True))
        entries_of_torch = [
            {"params": [named[n] for n in group.parameters], "name": group.name, "rate": 0.0}
            for group in self.partition
        ]
        if self.partition.sliced:  # torch has no groups of slices
            entries_of_torch = [{"params": list(named.values()), "name": "slices", "rate": 0.0}]
        super().__init__(entries_of_torch, {"lr": step_size})
        self._directions = Directions(
            named.items(), direction, model=watched, loss_fn=loss_fn, maximize=maximize
        )
        count = len(self._directions.labels)
        self._rule = RateRule(
            len(self.partition) * count,
            solver=solver,
            internal_damping=internal_damping,
            negative_rates=negative_rates,
            shrinkage=shrinkage,
            proximal=proximal,
            averaging=averaging if averaging is not None else ExponentialAveraging(0.8),
            normalise=normalise,
            directions=count,
        )
        self._batches = CurvatureBatches(curvature, self._rule.averaging.batches, whole=forward is not None)
        if controller is None:
            controller = Progress() if total_steps is None else Progress(lowest=ANNEALED)
        self._controller = controller
        self._controller.begin(step_size, period)
        if matrix == "hessian" or self._rule.needs_third:
            check_carried(self.partition, "the Hessian or third derivatives")
        self._objective = Objective(model, loss_fn, forward, maximize, engine, max_memory, matrix)
        self._fresh = along == "fresh"
        self._rates = RatesInForce(self.param_groups, self._grouping, count, cap=cap, fresh=self._fresh)
        self._safeguard = Safeguard(self._grouping.parameters) if safeguard else None
        self._withheld = WithheldSteps(self._grouping.parameters[0].device)
        self._period, self._warmup, self._total = period, warmup, total_steps
        self._steps = 0
        self._since = 0  # the step before which the last group was added
        self._updated: int | None = None  # the step before which the last update was made
        self._held = False  # whether the rates stay, without updates
        self._outgrown = False  # whether groups have been added since the measurers were built
        self._fallbacks = 0
        self._on_update = on_update
        self._warn = WarnOnce(log, "GroupedNewton")
        self._build_measurers()
        self._built = True

    @property
    def rates(self) -> dict[str, float]:
        """λ_1 η_s, the learning rate in force, by the name of the group; with several directions η_sj by
        ``group:label``, and ``all:label`` for a shared one.
        """
        taken = self._taken()
        return {name: taken[place] for name, place in self._numbered().items()}

    @property
    def fallbacks(self) -> int:
        """Number of updates so far in which the model had no minimiser."""
        return self._fallbacks

    @property
    def rejected(self) -> int:
        """Number of updates so far that the safeguard has undone."""
        return self._safeguard.rejected if self._safeguard is not None else 0

    @property
    def withheld(self) -> Tensor:
        """Number of steps so far that were not finite and so moved no parameter; a scalar on the device."""
        return self._withheld.total

    def hold(self, rates: float | Sequence[float]) -> None:
        """Keep these rates from now on: no summary is taken, and no step is limited, until :meth:`release`.

        Args:
            rates: η of each group, or of each group and direction, before the step size λ_1; or one number
                for all of them.

        Raises:
            InputError: if there is not one rate per group and direction.
        """
        places = list(self._numbered().values())
        count = len(places)
        values = [float(rates)] * count if isinstance(rates, (int, float)) else [float(eta) for eta in rates]
        if len(values) != count:
            raise InputError(f"hold: rates must be one number, or {count} of them; got {len(values)}")
        held = torch.zeros(len(self._names), dtype=torch.float64)
        held[places] = torch.tensor(values, dtype=torch.float64)
        self._rates.hold(self._spread(held).tolist())
        self._held = True

    def release(self) -> None:
        """Update the rates again after :meth:`hold`, at the next step that an update falls on."""
        self._held = False

    def step(self, closure: Callable[[], Any] | None = None, *, batch: Any = None) -> Any:  # type: ignore[override]
        """Make one training step from the gradients in ``.grad``.

        Args:
            closure: recomputes the loss with gradients; optional, as in every torch optimizer.
            batch: (inputs, targets) for the summary, if the optimizer has no curvature batches of its own;
                with ``forward=`` any batch that it takes.

        Returns:
            The value of ``closure``, or None.

        Raises:
            InputError: if an update of the rates is due and there is no batch for it, or the model trains
                other parameters than those of the groups.
        """
        self._catch_up()
        self._grouping.check()
        if self._total is not None and self._steps >= self._total:
            self._warn(f"training goes on after total_steps={self._total}, where the rates have reached 0")
        loss = evaluated(closure)
        age = self._steps - self._since
        warming_up = age < self._warmup and not self._held
        due = not self._held and (warming_up or (age - self._warmup) % self._period == 0)
        directions, measured_along = self._directions.update(fresh=due and self._fresh)
        kept = not due or self._update_rates(measured_along, batch, warming_up)
        if kept and (not warming_up or self._since > 0):  # old groups do not wait for the rate of a new one
            damped = self._damped() if self.partition.sliced else self._taken()
            plan = self._rates.plan(damped, self._directions)
            self._withheld.count(take(directions, plan, self._grouping))
        self._steps += 1
        return loss

    def _update_rates(self, directions: list[list[Tensor]], batch: Any, warming_up: bool) -> bool:
        """Measure along the directions and put new rates in force.

        Returns:
            False if the safeguard has returned to earlier parameters instead.
        """
        started = time.perf_counter()
        decay = self._directions.quadratic_decay()
        batches = self._batches.for_update(batch)
        measured = self._measure(batches, directions, decay)
        summarised = time.perf_counter()
        withheld = self._withheld.since_update()
        if withheld:
            self._warn("steps that are not finite are withheld: a gradient holds NaN or inf, or overflows")
        kept = self._judge(measured, batches, standing=0 < self._steps - (self._updated or 0) <= withheld)
        if kept:
            solved = self._solve(measured, warming_up)
            self._fallbacks += solved.solution.fell_back
            if withheld or solved.solution.status == INVALID:  # a direction may keep a NaN for ever
                self._directions.renew(always=withheld > 0)
            if measured and not warming_up:
                solved = self._enforce(solved, measured[-1])
        else:
            solved = unmeasured(self._eta())
        self._updated = self._steps
        if self._on_update is not None:
            numbered, step_size = self._numbered(), self._step_size()
            self._on_update(
                RateUpdate(
                    step=self._steps,
                    solved=solved.at(list(numbered.values())),
                    names=tuple(numbered),
                    step_size=[step_size[place] for place in numbered.values()],
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
        try:
            seeds = range(self._steps * len(batches), (self._steps + 1) * len(batches))
            return [
                self._measurer.measure(*batch, directions, decay, seed)
                for batch, seed in zip(batches, seeds, strict=True)
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
        if self._safeguard is None or not measured:
            return True
        loss = _mean([self._measurer.sign * summary.loss for summary in measured])

        def loss_at(parameters: list[Tensor]) -> float:
            return _mean([self._measurer.objective(*batch, parameters) for batch in batches])

        if self._safeguard.judge(loss, loss_at, standing=standing):
            return True
        self._directions.renew(always=True)
        self._rates.shrink()
        reason = "steps that were not finite" if standing else f"a loss of {loss:.3g}"
        self._warn(f"after {reason} at step {self._steps} back to the last good parameters")
        return False

    def _solve(self, measured: list[Measured], warming_up: bool) -> Solved:
        """New rates; the previous ones if there is no summary, or one that is not finite."""
        if not measured:
            return unmeasured(self._eta())
        wrong = next((summary for summary in measured if not summary.finite), None)
        if wrong is not None:
            return invalid(self._eta(), wrong.gradient, wrong.hessian, wrong.third)
        for summary in measured:
            average = self._rule.observe(summary.gradient, summary.hessian, summary.third, summary.norms)
        if not warming_up:
            self._controller.observe(self._measurer.sign * measured[-1].loss)
        silent = torch.stack([summary.silent for summary in measured]).all(0)
        solved = self._rule.solve(average, measured[-1].norms, silent=silent)
        return replace(solved, rates=self._spread(solved.rates))

    def _spread(self, rates: Tensor) -> Tensor:
        """The rates with that of each shared direction, which the first group has, in every group."""
        by_group = rates.view(-1, len(self._directions.labels)).clone()
        for j in self._directions.shared:
            by_group[:, j] = by_group[0, j]
        return by_group.flatten()

    def _enforce(self, solved: Solved, measured: Measured) -> Solved:
        """Put rates in force with the limits of their steps."""
        if solved.solution.status == INVALID:
            self._warn("a summary that is not finite leaves the rates in force as they are")
            return self._rates.start(solved, measured, self._step_size())
        return self._rates.enforce(solved, measured, self._step_size(), self._directions, self._period)

    def _lr(self) -> list[float]:
        """λ_1 of each entry, before the controller, the safeguard and the end of the run."""
        count = len(self.partition) * len(self._directions.labels) // len(self.param_groups)
        return [lr for group in self.param_groups for lr in [float(group["lr"])] * count]

    def _scale(self) -> float:
        """The factor on λ_1 of the safeguard and of what remains of the run."""
        scale = self._safeguard.scale if self._safeguard is not None else 1.0
        return scale if self._total is None else scale * annealed(self._steps / self._total)

    def _step_size(self) -> list[float]:
        """λ_1 of each entry, as the next step takes it."""
        factor = self._controller.step_size * self._scale()
        return [lr * factor for lr in self._lr()]

    def _taken(self) -> list[float]:
        """λ_1 η of each entry."""
        return [lr * rate for lr, rate in zip(self._step_size(), self._rates.values, strict=True)]

    def _damped(self) -> Tensor:
        """:meth:`_taken` of the single entry that holds the groups of slices, float64."""
        factor = float(self.param_groups[0]["lr"]) * self._controller.step_size * self._scale()
        return factor * self._eta()

    def _eta(self) -> Tensor:
        """η of each entry, float64."""
        return torch.tensor(self._rates.values, dtype=torch.float64)

    @property
    def _names(self) -> tuple[str, ...]:
        """Names of the pairs of a group and a direction."""
        return entries(self.partition, self._directions.labels)

    def _numbered(self) -> dict[str, int]:
        """The places of the rates that differ, by name: a shared direction has one of them."""
        return numbered(self.partition, self._directions.labels, self._directions.shared)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters of the model, as one more group behind the others.

        The averages start anew with the larger summary. While the next ``warmup`` steps feed them, the new
        group does not move and the others keep their rates; from the update after them on, the rates are
        those of an optimizer built for all groups. Each direction keeps its state for the old parameters.
        Groups may be added one after the other; by the next step every trainable parameter of the model must
        be in one.

        Args:
            param_group: ``params``, trainable parameters of the model that are in no group yet, or (name,
                parameter) pairs; optionally ``name``, by default that of the first parameter, and ``lr``, its
                step size λ_1, by default that given to the optimizer.

        Raises:
            InputError: for other keys, parameters that are unknown, frozen, in a group or on another device,
                a name that another group has, or an ``lr`` out of range; the optimizer is then unchanged.
        """
        if not self._built:  # torch's constructor adds the groups of the partition
            super().add_param_group(param_group)
            return
        require_whole(self.partition.sliced, "add_param_group")
        new = growth(self._objective.model, self.partition, param_group, self.defaults["lr"])
        directions = self._directions.extended(new.named)
        still = 0.0 if len(directions.labels) == 1 else [0.0] * len(directions.labels)
        parameters = [p for _, p in new.named]
        super().add_param_group({"params": parameters, "name": new.name, "rate": still, "lr": new.lr})
        self._directions.close()
        self._directions, self.partition = directions, new.partition
        self._rule.restart(len(self._names))
        self._rates.extend(directions)
        if self._safeguard is not None:
            self._safeguard.forget_parameters()
        self._since = self._steps
        self._outgrown = True

    def _catch_up(self) -> None:
        """Measure groups that have been added from now on; they must cover what the model trains."""
        if not self._outgrown:
            return
        self._grouping = Grouping(self._objective.model, self.partition)
        self._rates.fit(self._grouping)
        if self._safeguard is not None:
            self._safeguard.fit(self._grouping.parameters)
        self._build_measurers()
        self._outgrown = False

    def _build_measurers(self) -> None:
        self._measurer = Measurer(
            self._objective,
            self._grouping,
            labels=self._directions.labels,
            shared=self._directions.shared,
            third=self._rule.needs_third,
            diagonal=self._rule.solver.diagonal,
        )

    def state_dict(self) -> dict[str, Any]:
        """Torch's state and everything else that a training continues from."""
        state = super().state_dict()
        safeguard = self._safeguard
        state["grouped_newton"] = {
            "groups": list(self._names),
            "steps": self._steps,
            "since": self._since,
            "updated": self._updated,
            "held": self._held,
            "fallbacks": self._fallbacks,
            "curvature_position": self._batches.position,
            "rule": self._rule.state_dict(),
            "directions": self._directions.state_dict(),
            "controller": self._controller.state_dict(),
            "rates": self._rates.state_dict(),
            "withheld": self._withheld.state_dict(),
            "safeguard": None if safeguard is None else safeguard.state_dict(),
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`.

        Raises:
            InputError: if the state belongs to another optimizer or another partition.
        """
        saved = saved_part(state_dict, "grouped_newton", "GroupedNewton", self._names)
        self._catch_up()
        super().load_state_dict({"state": state_dict["state"], "param_groups": state_dict["param_groups"]})
        self._steps, self._since, self._updated = saved["steps"], saved["since"], saved["updated"]
        self._held, self._fallbacks = saved["held"], saved["fallbacks"]
        self._batches.seek(saved["curvature_position"])
        self._rule.load_state_dict(saved["rule"])
        self._directions.load_state_dict(saved["directions"])
        self._controller.load_state_dict(saved["controller"])
        self._rates.load_state_dict(saved["rates"], self.param_groups)
        self._withheld.load_state_dict(saved["withheld"])
        if self._safeguard is not None and saved["safeguard"] is not None:
            self._safeguard.load_state_dict(saved["safeguard"])


def annealed(progress: float) -> float:
    """The factor on λ_1 after this share of a run: 1 in its first half, then on a line to 0."""
    return min(1.0, max(0.0, 2 * (1 - progress)))


def _mean(values: Sequence[float]) -> float:
    """The mean; NaN if there is no value, or one that is not finite."""
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan
