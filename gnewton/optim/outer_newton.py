"""OuterNewton: rates on the displacement of an inner optimizer, as an outer step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gnewton.arguments import check_function, check_options, explained
from gnewton.optim.averaging import Averaging
from gnewton.optim.bound_optimizer import BoundOptimizer, CurvatureBatches, evaluated, saved_part
from gnewton.optim.directions import check_factory
from gnewton.optim.finite_step import Plan, take
from gnewton.optim.grouping import Grouping
from gnewton.optim.hyperparameters import OuterNewtonHyperparameters
from gnewton.optim.inner_optimizers import coupled_decay, inner_groups, restore
from gnewton.optim.measure import Measurer, Objective
from gnewton.optim.rate_rule import Proposal, RateRule, invalid
from gnewton.optim.rate_update import RateUpdate
from gnewton.optim.safeguard import Snapshot
from gnewton.optim.shadow_direction import DirectionFactory
from gnewton.optim.solvers import Solver
from gnewton.partition import PartitionChoice, chosen_partition
from gnewton.summary.api import EngineName
from gnewton.summary.problem import Forward, LossFunction, check_loss
from gnewton.wrappers import unwrapped


class OuterNewton(BoundOptimizer):
    """After every ``period`` steps of an inner optimizer: θ ← θ − λ_1 Σ_s η_s P_s w.

    w is the way back to the parameters before these steps, and η comes from the exact summary of the loss
    along w. w points uphill, like a gradient: η_s > 0 continues along the displacement of group s, and −1
    takes all of it back. Rates are clamped between ``lowest`` and ``highest``. The outer step does not change
    the state of the inner optimizer.

    ``param_groups`` are those of the inner optimizer, so torch's schedulers act on its learning rate.

    Args:
        model, loss_fn, partition: as for :class:`~gnewton.optim.grouped_newton.GroupedNewton`.
        inner: builds the inner optimizer from (name, parameter) pairs.
        period: inner steps between two outer steps, at least 1.
        step_size: λ_1 > 0.
        lowest, highest: bounds on the rates, lowest < highest.
        solver, internal_damping, proximal, averaging, normalise: see
            :class:`~gnewton.optim.rate_rule.RateRule`; nothing is averaged by default.
        curvature: batches for the summary; None: the batch passed to :meth:`step`.
        forward: for other batches, as for GroupedNewton.
        engine, matrix, max_memory: see :func:`gnewton.summarize`; ``matrix`` is its ``curvature``.
        on_update: called with a :class:`~gnewton.optim.rate_update.RateUpdate` after each outer step.

    Raises:
        InputError: for a value out of range, or a partition that does not fit the model.
    """

    why_fixed: ClassVar[str] = "the displacement under way lacks the new group"

    @explained(
        lr="it belongs to the inner optimizer, inner=functools.partial(torch.optim.SGD, lr=0.1)",
        inner="pass a function that builds it, such as functools.partial(torch.optim.SGD, lr=0.1)",
        damping="λ_1, the factor on all rates, is step_size= now",
        loss_fn="pass the function of (outputs, targets), such as torch.nn.functional.cross_entropy",
    )
    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        partition: PartitionChoice = None,
        *,
        inner: DirectionFactory,
        period: int = 20,
        step_size: float = 1.0,
        lowest: float = -1.0,
        highest: float = 5.0,
        solver: str | Solver = "cubic",
        internal_damping: float = 1.0,
        proximal: float = 0.0,
        averaging: Averaging | None = None,
        normalise: bool = True,
        curvature: Iterable[Any] | None = None,
        forward: Forward | None = None,
        engine: EngineName = "auto",
        matrix: str = "hessian",
        max_memory: int | None = None,
        on_update: Callable[[RateUpdate], None] | None = None,
    ) -> None:
        model = unwrapped(model)
        check_loss(loss_fn)
        check_factory("inner", inner)
        check_options(
            OuterNewtonHyperparameters, period=period, step_size=step_size, lowest=lowest, highest=highest
        )
        check_function("on_update", on_update, "of a RateUpdate")
        self.partition = chosen_partition(model, partition)
        self._grouping = Grouping(model, self.partition)
        super().__init__(self._grouping.parameters, {})
        self.inner = inner(list(zip(self._grouping.names, self._grouping.parameters, strict=True)))
        self.param_groups = self.inner.param_groups
        self._rule = RateRule(
            len(self.partition),
            solver=solver,
            internal_damping=internal_damping,
            negative_rates="keep",
            proximal=proximal,
            averaging=averaging,
            normalise=normalise,
            bounds=(lowest, highest),
        )
        self._batches = CurvatureBatches(curvature, self._rule.averaging.batches, whole=forward is not None)
        self._measurer = Measurer(
            Objective(
                model,
                loss_fn,
                forward=forward,
                maximize=any(group.get("maximize", False) for _, group in inner_groups(self.inner)),
                engine=engine,
                max_memory=max_memory,
                matrix=matrix,
            ),
            self._grouping,
            third=self._rule.needs_third,
            diagonal=self._rule.solver.diagonal,
        )
        self._period = period
        self._step_size = step_size
        self._steps = 0
        self._start = Snapshot(self._grouping.parameters)
        self._on_update = on_update
        self._rates = [0.0] * len(self.partition)
        self._built = True

    @property
    def rates(self) -> dict[str, float]:
        """λ_1 η_s of the last outer step, by the name of the group."""
        return dict(zip(self.partition.names, self._rates, strict=True))

    def step(self, closure: Callable[[], Any] | None = None, *, batch: Any = None) -> Any:  # type: ignore[override]
        """Make one step of the inner optimizer, and an outer step if it is due.

        Args:
            closure: recomputes the loss with gradients; optional.
            batch: (inputs, targets) for the summary, if there are no curvature batches.

        Returns:
            The value of ``closure``, or None.

        Raises:
            InputError: if an outer step is due and there is no batch for it, or the model trains other
                parameters than those of the partition.
        """
        self._grouping.check()
        loss = evaluated(closure)
        if self._start.parameters is None:
            self._start.take()
        self.inner.step()
        self._steps += 1
        if self._steps % self._period == 0:
            self._outer_step(batch)
            self._start.take()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner optimizer and of the outer step."""
        return {
            **self.inner.state_dict(),
            "outer_newton": {
                "groups": list(self.partition.names),
                "rule": self._rule.state_dict(),
                "before": self._start.parameters,
                "steps": self._steps,
                "rates": list(self._rates),
                "curvature_position": self._batches.position,
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`.

        Raises:
            InputError: if the state belongs to another optimizer or another partition.
        """
        saved = saved_part(state_dict, "outer_newton", "OuterNewton", self.partition.names)
        restore(self.inner, {key: value for key, value in state_dict.items() if key != "outer_newton"})
        self.param_groups = self.inner.param_groups
        self._rule.load_state_dict(saved["rule"])
        self._start.load(saved["before"])
        self._steps, self._rates = saved["steps"], list(saved["rates"])
        self._batches.seek(saved["curvature_position"])

    def _outer_step(self, batch: Any) -> None:
        started = time.perf_counter()
        w = self._start.way_back()
        assert w is not None
        loss, proposal, summarised = self._propose(w, batch)
        solved = self._rule.commit(proposal)
        self._rates = [self._step_size * eta for eta in solved.rates.tolist()]
        take([w], Plan(self._rates), self._grouping)
        if self._on_update is not None:
            self._on_update(
                RateUpdate(
                    step=self._steps,
                    solved=solved,
                    names=self.partition.names,
                    step_size=[self._step_size] * len(self.partition),
                    loss=loss,
                    summary_seconds=summarised - started,
                    solve_seconds=time.perf_counter() - summarised,
                    warming_up=False,
                )
            )

    def _propose(self, w: list[Tensor], batch: Any) -> tuple[float, Proposal, float]:
        """The mean loss, the rates along w (0 if a summary is not finite), and the time of the summaries."""
        decays = coupled_decay(inner_groups(self.inner))
        decay = [decays.get(p, 0.0) for p in self._grouping.parameters]
        batches = self._batches.for_update(batch)
        measured = [self._measurer.measure(*drawn, [w], decay, self._steps) for drawn in batches]
        loss = math.fsum(summary.loss for summary in measured) / len(measured)
        summarised = time.perf_counter()
        wrong = next((summary for summary in measured if not summary.finite), None)
        if wrong is not None:
            zeros = torch.zeros(len(self.partition), dtype=torch.float64)
            return loss, invalid(zeros, wrong.gradient, wrong.hessian, wrong.third), summarised
        for summary in measured:
            average = self._rule.observe(summary.gradient, summary.hessian, summary.third, summary.norms)
        silent = torch.stack([summary.silent for summary in measured]).all(0)
        return loss, self._rule.propose(average, measured[-1].norms, silent=silent), summarised
