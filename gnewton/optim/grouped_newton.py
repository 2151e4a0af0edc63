"""GroupedNewton: one learning rate per group of parameters, from an exact summary of the loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
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
from gnewton.errors import InputError
from gnewton.optim.averaging import Averaging, ExponentialAveraging
from gnewton.optim.bound_optimizer import (
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
from gnewton.optim.measure import Objective, entries, numbered, spread
from gnewton.optim.rate_rule import NegativeRates, RateRule, RateUpdate
from gnewton.optim.rate_updater import RateUpdater, UpdateSchedule
from gnewton.optim.rates_in_force import RatesInForce
from gnewton.optim.safeguard import Safeguard
from gnewton.optim.solvers import Solver
from gnewton.partition import PartitionChoice, chosen_partition
from gnewton.partition.slices import require_whole
from gnewton.summary.api import EngineName
from gnewton.summary.group_parts import check_carried
from gnewton.summary.problem import Forward, LossFunction, check_loss
from gnewton.wrappers import unwrapped

log = logging.getLogger(__name__)

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
            "by_layer", or lists of names (:func:`~gnewton.partition.chosen_partition`).
        direction: the first-order method that proposes u: a name
            (:data:`~gnewton.optim.directions.NAMED`), or a function from (name, tensor) pairs, which every
            torch optimizer takes, to an optimizer. Its weight decay is part of u
            (:class:`~gnewton.optim.shadow_direction.ShadowDirection`), a coupled one also of the loss. With
            several methods by label, ``{"gradient": …, "momentum": …}``, every group has a rate for each of
            them: the step is θ ← θ − λ_1 Σ_s Σ_j η_sj P_s u_j, and all η come from one problem. One that is
            :class:`~gnewton.optim.directions.Shared` has one rate for all groups. None: "kfac", K-FAC's
            step (docs/results/directions.md); where the model is compiled or has no layer for K-FAC, "pair",
            the gradient, shared, beside Adam's step.
        along: the direction of the summary. "fresh": v, the part of u that the current gradient adds
            (:mod:`gnewton.optim.inner_optimizers`), best measured on its own batch; "step": u itself.
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
            within a factor of 8 of that rate (:mod:`gnewton.optim.solvers`). 0: none.
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
        damping="λ_1, the factor on all rates, is step_size=",
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
        direction: DirectionChoice | None = None,
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
        super().__init__(self._grouping.param_groups(), {"lr": step_size})
        self._directions = Directions(
            self._grouping.named.items(), direction, model=watched, loss_fn=loss_fn, maximize=maximize
        )
        count = len(self._directions.labels)
        rule = RateRule(
            self._directions.kinds(self.partition),
            solver=solver,
            internal_damping=internal_damping,
            negative_rates=negative_rates,
            shrinkage=shrinkage,
            proximal=proximal,
            averaging=averaging if averaging is not None else ExponentialAveraging(0.8),
            normalise=normalise,
        )
        if controller is None:
            controller = Progress() if total_steps is None else Progress(lowest=ANNEALED)
        controller.along_kfac = self._directions.with_kfac
        controller.begin(step_size, period)
        if matrix == "hessian" or rule.needs_third:
            check_carried(self.partition, "the Hessian or third derivatives")
        self._objective = Objective(model, loss_fn, forward, maximize, engine, max_memory, matrix)
        self._fresh = along == "fresh"
        self._rates = RatesInForce(self.param_groups, self._grouping, count, cap=cap, fresh=self._fresh)
        self._schedule = UpdateSchedule(period, warmup, total_steps)
        self._warn = WarnOnce(log, "GroupedNewton")
        self._updater = RateUpdater(
            self._objective,
            self._directions,
            self._grouping,
            schedule=self._schedule,
            rates=self._rates,
            rule=rule,
            controller=controller,
            batches=CurvatureBatches(curvature, rule.averaging.batches, whole=forward is not None),
            safeguard=Safeguard(self._grouping.parameters) if safeguard else None,
            warn=self._warn,
            on_update=on_update,
        )
        self._outgrown = False  # whether groups have been added that are not measured yet
        self._built = True

    @property
    def rates(self) -> dict[str, float]:
        """λ_1 η_s, the learning rate in force, by the name of the group; with several directions η_sj by
        ``group:label``, and ``all:label`` for a shared one.
        """
        taken = self._rates.taken(self._updater.factor)
        return {name: taken[place] for name, place in self._numbered().items()}

    @property
    def fallbacks(self) -> int:
        """Number of updates so far in which the model had no minimiser."""
        return self._updater.fallbacks

    @property
    def rejected(self) -> int:
        """Number of updates so far that the safeguard has undone."""
        return self._updater.rejected

    @property
    def withheld(self) -> Tensor:
        """Number of steps so far that were not finite and so moved no parameter; a scalar on the device."""
        return self._updater.withheld.total

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
        directions = self._directions
        self._rates.hold(spread(held, len(directions.labels), directions.shared).tolist())
        self._schedule.held = True

    def release(self) -> None:
        """Update the rates again after :meth:`hold`, at the next step that an update falls on."""
        self._schedule.held = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and what a direction has gathered from them since the last step."""
        self._directions.forget_gradients()
        super().zero_grad(set_to_none)

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
        if self._schedule.ended:
            total = self._schedule.total_steps
            self._warn(f"training goes on after total_steps={total}, where the rates have reached 0")
        loss = evaluated(closure)
        due, warming_up = self._schedule.due, self._schedule.warming_up
        directions, measured_along = self._directions.update(fresh=due and self._fresh)
        kept = not due or self._updater.update(measured_along, batch)
        if kept and (not warming_up or self._schedule.since > 0):  # old groups do not wait for a new one
            plan = self._rates.plan(self._updater.factor, self._directions)
            self._updater.withheld.count(take(directions, plan, self._grouping))
        self._schedule.advance()
        return loss

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
        self._updater.restart(directions.kinds(new.partition))
        self._rates.extend(directions)
        self._schedule.restart()
        self._outgrown = True

    def _catch_up(self) -> None:
        """Measure groups that have been added from now on; they must cover what the model trains."""
        if not self._outgrown:
            return
        self._grouping = Grouping(self._objective.model, self.partition)
        self._rates.fit(self._grouping)
        self._updater.fit(self._directions, self._grouping)
        self._outgrown = False

    def state_dict(self) -> dict[str, Any]:
        """Torch's state and everything else that a training continues from."""
        state = super().state_dict()
        state["grouped_newton"] = {
            "groups": list(self._names),
            **self._schedule.state_dict(),
            **self._updater.state_dict(),
            "directions": self._directions.state_dict(),
            "rates": self._rates.state_dict(),
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
        self._schedule.load_state_dict(saved)
        self._updater.load_state_dict(saved)
        self._directions.load_state_dict(saved["directions"])
        self._rates.load_state_dict(saved["rates"], self.param_groups)
