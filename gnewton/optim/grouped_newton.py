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
    check_name,
    check_number,
    check_whole,
    explained,
)
from gnewton.errors import GnewtonError, InputError, first_line
from gnewton.optim.averaging import Averaging, ExponentialAveraging
from gnewton.optim.bound_optimizer import Batch, BoundOptimizer, CurvatureBatches, evaluated, own_part
from gnewton.optim.controllers import INTERNAL_DAMPING, Controller, Displacement, Progress
from gnewton.optim.directions import ADAM, DirectionChoice, Directions
from gnewton.optim.finite_step import Plan, take
from gnewton.optim.grouping import Grouping, growth
from gnewton.optim.measure import Measured, Measurer, entries
from gnewton.optim.rate_rule import INVALID, NegativeRates, Proposal, RateRule, Solved, invalid, unmeasured
from gnewton.optim.rate_update import RateUpdate, Update
from gnewton.optim.safeguard import Safeguard
from gnewton.optim.solvers import Solver
from gnewton.optim.trust_radius import TrustRadius, per_entry
from gnewton.partition import PartitionChoice, chosen_partition
from gnewton.summary.api import EngineName
from gnewton.summary.problem import Forward, LossFunction, check_loss
from gnewton.wrappers import unwrapped

log = logging.getLogger(__name__)

_FAILURES = (GnewtonError, RuntimeError, NotImplementedError, MemoryError)
"""What a summary may end in; wrong arguments (InputError) are told apart."""

ALONG = ("fresh", "step")


class GroupedNewton(BoundOptimizer):
    """θ ← θ − λ_1 Σ_s η_s P_s u, where u comes from a first-order method and η minimises the anisotropic
    cubic model of the loss along the S directions P_s u (Wolinski, arXiv 2312.03885).

    Every ``period`` steps the exact gradient, Hessian and third derivative of the loss along the partition
    are computed on a curvature batch and the rates are solved for; they stay in force until the next update
    while u changes at every step. There is no learning rate to tune.

    A training is kept safe in four ways (docs/reliability.md). A group on which the loss does not depend,
    within rounding, gets the rate 0. No step of a group is longer than the one that the update measured, nor
    than ``cap`` allows. An update whose loss has left the band of those before it is undone. What is not
    finite never reaches a parameter: a step with such an entry is withheld and counted, a summary is neither
    averaged nor solved with, and a direction that a NaN has got into starts anew at the next update. Where a
    summary fails, the rates in force stay.

    Each group of the partition is one entry of ``param_groups``, with its ``name``, its damping λ_1 as
    ``lr`` (so torch's schedulers act on it) and its rate η_s as ``rate``, a list with several directions.

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
        loss_fn: ``loss_fn(outputs, targets)`` is the mean loss over the batch, a scalar. The outputs, which
            may be anything, are ``model(*inputs)`` for a tuple or list of inputs, ``model(**inputs)`` for a
            mapping, else ``model(inputs)``.
        partition: the groups; one per parameter tensor by default. Also the name of a scheme, "by_layer" for
            instance, or lists of names (:func:`~gnewton.partition.choice.chosen_partition`).
        direction: builds the first-order optimizer that proposes u from (name, tensor) pairs, which every
            torch optimizer takes, or names one (:data:`~gnewton.optim.directions.NAMED`); by default
            Adam. Its weight decay is part of u
            (:class:`~gnewton.optim.shadow_direction.ShadowDirection`), and a coupled one of the loss too.
            Several of them by name, ``{"gradient": …, "momentum": …}``, give every group a rate for each:
            the step is θ ← θ − λ_1 Σ_s Σ_j η_sj P_s u_j, and all η come from one problem.
        along: what the summary is taken along. "fresh": v, the part of u that the present gradient adds
            (:mod:`gnewton.optim.fresh`), best measured on the batch that it came from; "step": u itself.
        period: training steps between two updates of the rates, at least 1.
        damping: λ_1 > 0, the factor on all rates.
        solver: what is solved for the rates: "cubic", "cubic_diagonal", "ridge" or "newton"
            (:mod:`gnewton.optim.solvers`).
        internal_damping: λ_int >= 0, the weight of the cubic term, or of the ridge.
        negative_rates: "keep", "clip" (to 0, after the solve) or "constrain" (solve over rates >= 0).
        rate_momentum: averages the unclipped rates over updates, in [0, 1).
        rate_median: bounds each rate by its median over so many updates, see
            :class:`~gnewton.optim.rate_bounds.MedianBound`; None: no bound.
        cap: bounds the step of each group to this fraction of the length of its parameters, a tenth of it at
            the first update, see :class:`~gnewton.optim.trust_radius.TrustRadius`; None: no bound.
        safeguard: whether an update whose loss has left its band is undone
            (:class:`~gnewton.optim.safeguard.Safeguard`), which takes a copy of the parameters.
        controller: moves λ_1 and λ_int from update to update (:mod:`gnewton.optim.controllers`);
            ``Constant()`` moves nothing; None: :class:`~gnewton.optim.controllers.Progress`.
        shrinkage: weight of the term that pulls the rates towards one common rate, which also keeps them
            within a factor of 8 of it, >= 0; 0: none (:mod:`gnewton.optim.rate_bounds`).
        proximal: weight of the proximal term that keeps rates near the previous ones, >= 0.
        averaging: the average of the summary over updates; by default exponential with coefficient 0.8.
        normalise: average summaries in units of ‖P_s u‖.
        warmup: leading steps that only feed the average: the summary is taken at each of them and the
            parameters stay.
        curvature: (inputs, targets) batches for the summary: an iterable, restarted when it is exhausted;
            None: the batch passed to :meth:`step` is used.
        forward: for batches of any other form, or models to be called otherwise: the outputs are
            ``forward(model, batch)`` and the loss is ``loss_fn(outputs, batch)``. A model that returns its
            own loss: ``forward=lambda model, batch: model(**batch)``, ``loss_fn=lambda outputs, batch:
            outputs.loss``.
        engine: how the summary is computed, see :func:`gnewton.summarize`.
        max_memory: bound on the summary's memory in bytes, see :func:`gnewton.summarize`.
        maximize: maximise the objective that ``loss_fn`` gives instead of minimising it.
        on_update: called with a :class:`RateUpdate` after each update of the rates.

    Raises:
        InputError: for a value out of range, or a partition that does not fit the model.
    """

    @explained(
        lr="there is no learning rate to set; damping= is λ_1, the factor on all rates",
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
        direction: DirectionChoice = ADAM,
        along: str = "fresh",
        period: int = 10,
        damping: float = 1.0,
        solver: str | Solver = "cubic",
        internal_damping: float = 1.0,
        negative_rates: str | NegativeRates = NegativeRates.CLIP,
        rate_momentum: float = 0.0,
        rate_median: int | None = None,
        cap: float | None = 0.1,
        safeguard: bool = True,
        controller: Controller | None = None,
        shrinkage: float = 1.0,
        proximal: float = 1.0,
        averaging: Averaging | None = None,
        normalise: bool = True,
        warmup: int = 0,
        curvature: Iterable[Any] | None = None,
        forward: Forward | None = None,
        engine: EngineName = "auto",
        max_memory: int | None = None,
        maximize: bool = False,
        on_update: Callable[[RateUpdate], None] | None = None,
    ) -> None:
        model = unwrapped(model)
        check_loss(loss_fn)
        check_whole("period", period, 1)
        check_whole("warmup", warmup, 0)
        check_number("damping", damping, above=0)
        check_flag("maximize", maximize)
        check_flag("safeguard", safeguard)
        check_name("along", along, ALONG)
        check_kind("controller", controller, Controller, "Plateau(…) of gnewton.optim.controllers")
        check_function("on_update", on_update, "of a RateUpdate")
        self.partition = chosen_partition(model, partition)
        self._grouping = Grouping(model, self.partition)
        named = dict(zip(self._grouping.names, self._grouping.parameters, strict=True))
        super().__init__(
            [
                {"params": [named[n] for n in group.parameters], "name": group.name, "rate": 0.0}
                for group in self.partition
            ],
            {"lr": damping},
        )
        self._directions = Directions(named.items(), direction, maximize=maximize)
        self._rule = RateRule(
            len(self.partition) * len(self._directions.labels),
            solver=solver,
            internal_damping=internal_damping,
            negative_rates=negative_rates,
            rate_momentum=rate_momentum,
            rate_median=rate_median,
            shrinkage=shrinkage,
            proximal=proximal,
            averaging=averaging if averaging is not None else ExponentialAveraging(0.8),
            normalise=normalise,
            directions=len(self._directions.labels),
        )
        self._batches = CurvatureBatches(curvature, self._rule.averaging.batches, whole=forward is not None)
        self._controller = controller if controller is not None else Progress()
        _check_controller(self._controller, self._rule)
        self._controller.begin(damping, period)
        how: dict[str, Any] = {
            "maximize": maximize,
            "forward": forward,
            "engine": engine,
            "max_memory": max_memory,
        }
        self._model, self._loss_fn, self._how = model, loss_fn, how
        self._fresh = along == "fresh"
        self._fraction = cap
        self._safe = safeguard
        self._trust: TrustRadius | None = None
        self._safeguard: Safeguard | None = None
        self._outgrown = False  # whether groups have been added since what measures them was built
        self._fit()
        self._period = period
        self._warmup = warmup
        self._steps = 0
        self._since = 0  # the step before which the partition came to be as it is
        self._fallbacks = 0
        self._withheld = torch.zeros((), dtype=torch.int64, device=self._grouping.parameters[0].device)
        self._withheld_before = 0  # as it was at the last update
        self._updated: int | None = None  # steps made before the last update
        self._limits: Tensor | None = None
        self._reference: list[list[float]] | None = None  # weights that a unit of each rate belongs to
        self._said: set[str] = set()
        self._on_update = on_update
        self._put_in_force([0.0] * len(self._names))

    @property
    def rates(self) -> list[float]:
        """λ_1 η_s, the learning rate in force for each group, or for each group and direction."""
        return [lr * rate for lr, rate in zip(self._damped(), self._in_force(), strict=True)]

    @property
    def fallbacks(self) -> int:
        """Updates so far in which the model had no minimiser."""
        return self._fallbacks

    @property
    def rejected(self) -> int:
        """Updates so far that the safeguard has undone."""
        return self._safeguard.rejected if self._safeguard is not None else 0

    @property
    def withheld(self) -> Tensor:
        """Steps so far that were not finite and have therefore moved no parameter; on the device."""
        return self._withheld

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters of the model, as one more group behind the others.

        The averages start anew with the larger summary. While the next ``warmup`` steps feed them, the new
        group stays where it is and the others go on with the rates in force; from the update after them on
        the rates are those of an optimizer built for all groups. Each direction goes on with what it has of
        the old parameters. Groups may be added one after the other; by the next step every trainable
        parameter of the model must be in one.

        Args:
            param_group: ``params``, trainable parameters of the model that are in no group yet, or (name,
                parameter) pairs; optionally ``name``, by default that of the first parameter, and ``lr``, its
                damping λ_1, by default that given to the optimizer.

        Raises:
            InputError: for other keys, parameters that are unknown, frozen, in a group or on another device,
                a name that another group has, or an ``lr`` out of range; the optimizer is then as before.
        """
        if not hasattr(self, "_rule"):  # torch's constructor adds the groups of the partition
            super().add_param_group(param_group)
            return
        new = growth(self._model, self.partition, param_group, self.defaults["lr"])
        directions = self._directions.extended(new.named)
        still = 0.0 if len(directions.labels) == 1 else [0.0] * len(directions.labels)
        parameters = [p for _, p in new.named]
        super().add_param_group({"params": parameters, "name": new.name, "rate": still, "lr": new.lr})
        self._directions.close()
        self._directions, self.partition = directions, new.partition
        self._rule.restart(len(self._names))
        if self._limits is not None:  # the new group stays where it is until it has a rate
            self._limits = torch.cat([self._limits, self._limits.new_zeros(len(directions.labels))])
        if self._reference is not None:
            self._reference = [
                [*then, *now[len(then) :]]
                for then, now in zip(self._reference, directions.weights(), strict=True)
            ]
        if self._safeguard is not None:
            self._safeguard.forget_parameters()
        if self._displacement is not None:
            self._displacement.forget()
        self._since = self._steps
        self._outgrown = True

    def step(self, closure: Callable[[], Any] | None = None, *, batch: Any = None) -> Any:  # type: ignore[override]
        """Make one training step from the gradients in ``.grad``.

        Args:
            closure: recomputes the loss with gradients; optional, as in every torch optimizer.
            batch: (inputs, targets) for the summary, where the optimizer has no curvature batches of its own;
                with ``forward=`` whatever that takes.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            InputError: if the rates are due for an update and there is no batch to compute them on, or the
                model trains other parameters than those of the groups.
        """
        self._catch_up()
        self._grouping.check()
        loss = evaluated(closure)
        age = self._steps - self._since
        warming_up = age < self._warmup
        due = warming_up or (age - self._warmup) % self._period == 0
        directions, newest = self._directions.update(fresh=due and self._fresh)
        kept = not due or self._update_rates(newest, batch, warming_up)
        if kept and (not warming_up or self._since > 0):  # groups that have rates do not wait for new ones
            self._withheld += ~take(directions, self._plan(), self._grouping)
        self._steps += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Torch's state plus everything of ours: the rule, the direction, the step counter, the batches."""
        state = super().state_dict()
        state["grouped_newton"] = {
            "groups": list(self._names),
            "rule": self._rule.state_dict(),
            "directions": self._directions.state_dict(),
            "controller": self._controller.state_dict(),
            "displacement": None if self._displacement is None else self._displacement.state_dict(),
            "steps": self._steps,
            "since": self._since,
            "updated": self._updated,
            "limits": None if self._limits is None else self._limits.cpu(),
            "reference": self._reference,
            "trust": None if self._trust is None else self._trust.state_dict(),
            "safeguard": None if self._safeguard is None else self._safeguard.state_dict(),
            "fallbacks": self._fallbacks,
            "withheld": (int(self._withheld), self._withheld_before),
            "curvature_position": self._batches.position,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            InputError: if the state belongs to another optimizer or another partition.
        """
        ours = own_part(state_dict, "grouped_newton", "GroupedNewton", self._names)
        self._catch_up()
        super().load_state_dict({"state": state_dict["state"], "param_groups": state_dict["param_groups"]})
        self._rule.load_state_dict(ours["rule"])
        self._directions.load_state_dict(ours["directions"])
        self._controller.load_state_dict(ours["controller"])
        if self._displacement is not None and ours["displacement"] is not None:
            self._displacement.load_state_dict(ours["displacement"])
        self._steps, self._fallbacks = ours["steps"], ours["fallbacks"]
        self._since, self._updated = ours["since"], ours["updated"]
        limits = ours["limits"]
        self._limits = None if limits is None else limits.to(self._withheld.device)
        self._reference = ours["reference"]
        if self._trust is not None and ours["trust"] is not None:
            self._trust.load_state_dict(ours["trust"])
        if self._safeguard is not None and ours["safeguard"] is not None:
            self._safeguard.load_state_dict(ours["safeguard"])
        withheld, self._withheld_before = ours["withheld"]
        self._withheld.fill_(withheld)
        self._batches.seek(ours["curvature_position"])

    @property
    def _names(self) -> tuple[str, ...]:
        """Of the entries of a summary."""
        return entries(self.partition, self._directions.labels)

    def _catch_up(self) -> None:
        """Take in groups that have been added; the partition must cover what the model trains."""
        if self._outgrown:
            self._grouping = Grouping(self._model, self.partition)
            self._fit()
            self._outgrown = False

    def _fit(self) -> None:
        """Build what measures the groups."""
        self._measurer = Measurer(
            self._model,
            self._loss_fn,
            self._grouping,
            labels=self._directions.labels,
            third=self._rule.needs_third,
            diagonal=self._rule.solver.diagonal,
            **self._how,
        )
        watches = self._controller.watches_displacement
        self._displacement = Displacement(self._model, self._loss_fn, **self._how) if watches else None
        trust, guard = self._trust, self._safeguard
        self._trust = TrustRadius(self._fraction, self._grouping) if self._fraction is not None else None
        self._safeguard = Safeguard(self._grouping.parameters) if self._safe else None
        if self._trust is not None and trust is not None:
            self._trust.load_state_dict(trust.state_dict())
        if self._safeguard is not None and guard is not None:
            self._safeguard.load_state_dict(guard.state_dict())

    def _update_rates(self, directions: list[list[Tensor]], batch: Any, warming_up: bool) -> bool:
        """Measure along the directions and put new rates in force; False: the safeguard has gone back."""
        started = time.perf_counter()
        decay = self._directions.quadratic_decay()
        batches = self._batches.for_update(batch)
        try:
            measured = [self._measurer.measure(*each, directions, decay) for each in batches]
        except InputError:
            raise
        except _FAILURES as error:
            self._check_failure(error)
            measured = []
        summarised = time.perf_counter()
        withheld, since = self._withheld_since()
        if withheld:
            self._warn("steps that are not finite are withheld: a gradient holds NaN or inf, or overflows")
        kept = self._judge(measured, batches, standing=0 < since <= withheld)
        if kept:
            proposal = self._propose(measured, batches[-1], directions, decay, warming_up)
            solved = self._rule.commit(proposal)
            self._fallbacks += solved.fell_back
            if withheld or solved.status == INVALID:  # what is not finite might never leave a direction
                self._directions.renew(always=withheld > 0)
            if not warming_up:
                solved = self._enforce(solved, measured)
        else:
            solved = unmeasured(self._rates_tensor()).solved
        self._updated = self._steps
        if self._displacement is not None:
            self._displacement.mark()
        if self._on_update is not None:
            self._on_update(
                RateUpdate(
                    step=self._steps,
                    solved=solved,
                    names=self._measurer.names,
                    damping=self._damped(),
                    loss=_mean([each.loss for each in measured]),
                    summary_seconds=summarised - started,
                    solve_seconds=time.perf_counter() - summarised,
                    warming_up=warming_up,
                    rejected=self.rejected,
                    readings=self._controller.readings(),
                )
            )
        return kept

    def _check_failure(self, error: Exception) -> None:
        """An update without a summary leaves the rates as they are, if there are any, with one warning.

        Raises:
            Exception: the error itself, for an engine asked for by name, or where no rates are in force yet.
        """
        if self._how["engine"] in ("tangent", "compiled") or self._updated is None:
            raise error
        self._warn(f"no summary, so the rates in force stay: {first_line(error, with_type=True)}")

    def _warn(self, text: str) -> None:
        """Each text once."""
        if text not in self._said:
            self._said.add(text)
            log.warning("GroupedNewton: %s", text)

    def _judge(self, measured: list[Measured], batches: Sequence[Any], standing: bool) -> bool:
        """Whether the training may go on from here; otherwise it is back at the last good update.

        Args:
            measured: the summaries of this update; none if it failed.
            batches: on which they were to be taken.
            standing: whether no step since the last update was made.
        """
        guard = self._safeguard
        if guard is None or not measured:
            return True
        loss = _mean([self._measurer.sign * each.loss for each in measured])
        if guard.kept is not None and (standing or guard.outside(loss)):
            there = _mean([self._measurer.objective(batch[0], batch[1], guard.kept) for batch in batches])
            if standing or not guard.outside(there):
                guard.reject()
                self._directions.renew(always=True)
                if self._trust is not None:
                    self._trust.shrink()
                reason = "steps that were not finite" if standing else f"a loss of {loss:.3g}"
                self._warn(f"after {reason} at step {self._steps} back to the last good parameters")
                return False
            if math.isfinite(there):
                guard.restart()
        if math.isfinite(loss):
            guard.keep(loss)
        return True

    def _enforce(self, solved: Solved, measured: list[Measured]) -> Solved:
        """Put rates in force, with the longest step that each allows."""
        if not measured:
            return solved
        last = measured[-1]
        if solved.status == INVALID:
            self._warn("a summary that is not finite leaves the rates in force as they are")
            return self._start(solved, last)
        self._put_in_force(solved.rates.tolist())
        lengths = solved.rates.abs() * torch.tensor(self._damped(), dtype=torch.float64) * last.norms
        capped = 0
        if self._trust is not None:
            trusted = self._trusted(self._trust, last, bounded=not solved.fell_back)
            capped = int((lengths > trusted).sum())
            lengths = torch.minimum(lengths, trusted)
            self._trust.grow(self._period)
        self._limits = lengths.to(self._withheld.device)
        self._reference = None if self._fresh else self._directions.weights()
        return replace(solved, capped=capped)

    def _start(self, solved: Solved, measured: Measured) -> Solved:
        """Where no summary has been finite yet, steps as long as the first trust radius."""
        lengths = measured.norms
        if self._trust is None or self._limits is not None or not bool(lengths.isfinite().all()):
            return solved
        trusted = torch.where(lengths > 0, self._trusted(self._trust, measured, bounded=False), 0.0)
        rates = trusted / lengths.clamp(min=torch.finfo(torch.float64).tiny)
        rates = rates / torch.tensor(self._damped(), dtype=torch.float64)
        self._put_in_force(rates.tolist())
        self._limits = trusted.to(self._withheld.device)
        return replace(solved, rates=rates)

    def _trusted(self, trust: TrustRadius, measured: Measured, *, bounded: bool) -> Tensor:
        """The longest step of each entry."""
        return per_entry(trust.lengths(measured.sizes, bounded=bounded), len(self._directions.labels))

    def _plan(self) -> Plan:
        """The step to take: rates, limits, and what a unit of a rate is worth by now."""
        if self._fresh:
            return Plan(self.rates, self._limits, self._directions.weights())
        if self._reference is None:
            return Plan(self.rates, self._limits)
        weights = [
            [w / w0 for w, w0 in zip(now, then, strict=True)]
            for now, then in zip(self._directions.weights(), self._reference, strict=True)
        ]
        return Plan(self.rates, self._limits, weights)

    def _propose(
        self,
        measured: list[Measured],
        batch: Batch,
        directions: list[list[Tensor]],
        decay: list[float],
        warming_up: bool,
    ) -> Proposal:
        """New rates; without a summary, or with one that is not finite, the rates before it stay."""
        if not measured:
            return unmeasured(self._rates_tensor())
        last = measured[-1]
        if not all(each.finite for each in measured):
            wrong = next(each for each in measured if not each.finite)
            return invalid(self._rates_tensor(), wrong.gradient, wrong.hessian, wrong.third)
        for each in measured:
            average = self._rule.observe(each.gradient, each.hessian, each.third, each.norms)
        update = Update(
            rule=self._rule,
            measurer=self._measurer,
            grouping=self._grouping,
            silent=torch.stack([each.silent for each in measured]).all(0),
            watched=self._displacement,
            average=average,
            measured=last,
            batch=batch,
            directions=directions,
            decay=decay,
            lr=torch.tensor(self._lr(), dtype=torch.float64) * self._scale(),
        )
        if warming_up:
            return update.propose(self._controller.damping, self._controller.internal_damping)
        return self._controller.settle(update)

    def _withheld_since(self) -> tuple[int, int]:
        """Steps withheld since the last update, and steps made or withheld since then.

        Called at updates, where the host has waited for the device already.
        """
        withheld = int(self._withheld) - self._withheld_before
        self._withheld_before += withheld
        return withheld, self._steps - (self._updated or 0)

    def _lr(self) -> list[float]:
        """λ_1 of each entry, before the controller."""
        count = len(self._directions.labels)
        return [float(group["lr"]) for group in self.param_groups for _ in range(count)]

    def _scale(self) -> float:
        """The factor of the safeguard on λ_1."""
        return self._safeguard.scale if self._safeguard is not None else 1.0

    def _damped(self) -> list[float]:
        """λ_1 of each entry."""
        factor = self._controller.damping * self._scale()
        return [lr * factor for lr in self._lr()]

    def _rates_tensor(self) -> Tensor:
        """η of each entry, float64."""
        return torch.tensor(self._in_force(), dtype=torch.float64)

    def _in_force(self) -> list[float]:
        """η of each entry."""
        rates = [group["rate"] for group in self.param_groups]
        return [eta for rate in rates for eta in rate] if isinstance(rates[0], list) else rates

    def _put_in_force(self, rates: list[float]) -> None:
        count = len(self._directions.labels)
        for s, group in enumerate(self.param_groups):
            group["rate"] = rates[s] if count == 1 else rates[s * count : (s + 1) * count]


def _mean(values: Sequence[float]) -> float:
    """NaN for none."""
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan


def _check_controller(controller: Controller, rule: RateRule) -> None:
    """A controller of λ_int needs a λ_int that has an effect.

    Raises:
        InputError: if it has none.
    """
    effective = rule.solver.uses_damping and rule.internal_damping > 0
    if controller.quantity == INTERNAL_DAMPING and not effective:
        raise InputError(
            f"controller={type(controller).__name__}: it moves the internal damping, which needs "
            "internal_damping > 0 and a solver other than newton"
        )
