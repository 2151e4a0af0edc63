"""GroupedNewton: one learning rate per group of parameters, from an exact summary of the loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.errors import InputError
from gnewton.optim.averaging import Averaging, ExponentialAveraging
from gnewton.optim.direction import DirectionFactory, ShadowDirection
from gnewton.optim.rates import INVALID, NegativeRates, RateRule, Solved
from gnewton.partition import Partition
from gnewton.summary import Summarizer, Summary
from gnewton.summary.api import Engine

LossFunction = Callable[[Any, Any], Tensor]
Batch = tuple[Any, Any]

AVERAGE: DirectionFactory = partial(torch.optim.SGD, lr=1.0, momentum=0.9, dampening=0.9)
"""The default direction: the exponential average of the gradient, which keeps the length of a gradient."""


@dataclass(frozen=True)
class RateUpdate:
    """One update of the rates, for logs.

    Attributes:
        step: number of training steps made before it.
        solved: the rates before damping, with what they were solved from.
        damping: λ_1 of each group at this update.
        summary_seconds, solve_seconds: wall time of the two parts.
        warming_up: whether the update only fed the average and no step follows.
    """

    step: int
    solved: Solved
    damping: list[float]
    summary_seconds: float
    solve_seconds: float
    warming_up: bool


class GroupedNewton(torch.optim.Optimizer):
    """θ ← θ − λ_1 Σ_s η_s P_s u, where u comes from a first-order method and η minimises the anisotropic
    cubic model of the loss along the S directions P_s u (Wolinski, arXiv 2312.03885).

    Every ``period`` steps the exact gradient, Hessian and third derivative of the loss along the partition
    are computed on a curvature batch and the rates are solved for; they stay in force until the next update
    while u changes at every step. There is no learning rate to tune.

    Each group of the partition is one entry of ``param_groups``, with its ``name``, its damping λ_1 as
    ``lr`` (so torch's schedulers act on it) and its rate η_s as ``rate``.

    Example::

        optimizer = GroupedNewton(model, torch.nn.functional.cross_entropy)
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step(batch=(inputs, targets))

    Args:
        model: the network; its parameters are updated in place.
        loss_fn: ``loss_fn(model(inputs), targets)`` is the mean loss over the batch, a scalar.
        partition: the groups; one per parameter tensor by default.
        direction: builds the first-order optimizer that proposes u from (name, tensor) pairs, which every
            torch optimizer takes; by default SGD with momentum 0.9 and dampening 0.9. Its weight decay is
            part of u (:class:`~gnewton.optim.direction.ShadowDirection`), and a coupled one of the loss too.
        period: training steps between two updates of the rates, at least 1.
        damping: λ_1 > 0, the factor on all rates.
        internal_damping: λ_int >= 0, the weight of the cubic term.
        negative_rates: "keep", "clip" (to 0, after the solve) or "constrain" (solve over rates >= 0).
        rate_momentum: averages the unclipped rates over updates, in [0, 1).
        proximal: weight of the proximal term that keeps rates near the previous ones, >= 0.
        averaging: the average of the summary over updates; by default exponential with coefficient 0.95.
        normalise: average summaries in units of ‖P_s u‖.
        warmup: leading steps that only feed the average: the summary is taken at each of them and the
            parameters stay.
        curvature: (inputs, targets) batches for the summary: an iterable, restarted when it is exhausted;
            None: the batch passed to :meth:`step` is used.
        engine: how the summary is computed, see :func:`gnewton.summarize`.
        max_memory: bound on the summary's memory in bytes, see :func:`gnewton.summarize`.
        maximize: maximise the objective that ``loss_fn`` gives instead of minimising it.
        on_update: called with a :class:`RateUpdate` after each update of the rates.

    Raises:
        InputError: for a value out of range, or a partition that does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        partition: Partition | None = None,
        *,
        direction: DirectionFactory = AVERAGE,
        period: int = 10,
        damping: float = 0.3,
        internal_damping: float = 1.0,
        negative_rates: str | NegativeRates = NegativeRates.CLIP,
        rate_momentum: float = 0.0,
        proximal: float = 1.0,
        averaging: Averaging | None = None,
        normalise: bool = True,
        warmup: int = 2,
        curvature: Iterable[Batch] | None = None,
        engine: Engine = "auto",
        max_memory: int | None = None,
        maximize: bool = False,
        on_update: Callable[[RateUpdate], None] | None = None,
    ) -> None:
        if not (isinstance(period, int) and period >= 1):
            raise InputError(f"period={period}: must be an integer >= 1")
        if not (isinstance(warmup, int) and warmup >= 0):
            raise InputError(f"warmup={warmup}: must be an integer >= 0")
        if not 0 < damping < math.inf:
            raise InputError(f"damping={damping}: must be a finite number > 0")
        self.partition = partition if partition is not None else Partition.per_tensor(model)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if set(named) != set(self.partition.index):
            raise InputError("partition: it was built for another model, the parameter names differ")
        super().__init__(
            [
                {"params": [named[n] for n in group.parameters], "name": group.name, "rate": 0.0}
                for group in self.partition
            ],
            {"lr": damping},
        )
        self._names = [name for group in self.partition for name in group.parameters]
        self._parameters: list[Tensor] = [named[name] for name in self._names]
        devices = {p.device for p in self._parameters}
        if len(devices) > 1:
            raise InputError(
                f"model: its parameters must be on one device; found {sorted(map(str, devices))}"
            )
        self._owner = [self.partition.index[name] for name in self._names]
        self._owner_on_device = torch.tensor(self._owner, device=self._parameters[0].device)
        self._summarizer = Summarizer(
            model,
            loss_fn,
            self.partition,
            third=internal_damping > 0,
            engine=engine,
            max_memory=max_memory,
        )
        named_parameters = zip(self._names, self._parameters, strict=True)
        self._direction = ShadowDirection(named_parameters, direction, maximize=maximize)
        self._maximize = maximize
        self._rule = RateRule(
            len(self.partition),
            internal_damping=internal_damping,
            negative_rates=negative_rates,
            rate_momentum=rate_momentum,
            proximal=proximal,
            averaging=averaging if averaging is not None else ExponentialAveraging(0.95),
            normalise=normalise,
        )
        self._curvature = curvature
        self._curvature_iterator: Iterator[Batch] | None = None
        self._period = period
        self._warmup = warmup
        self._steps = 0
        self._fallbacks = 0
        self._on_update = on_update

    @property
    def rates(self) -> list[float]:
        """λ_1 η_s, the learning rate in force for each group."""
        return [group["lr"] * group["rate"] for group in self.param_groups]

    @property
    def fallbacks(self) -> int:
        """Updates so far in which the cubic model had no minimiser."""
        return self._fallbacks

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after construction: a new group changes the partition, so build a new optimizer.

        Raises:
            InputError: always, once the optimizer is built.
        """
        if hasattr(self, "_summarizer"):
            raise InputError(
                "add_param_group: the groups are the partition; build a new GroupedNewton instead"
            )
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None, *, batch: Batch | None = None) -> Any:  # type: ignore[override]
        """Make one training step from the gradients in ``.grad``.

        Args:
            closure: recomputes the loss with gradients; optional, as in every torch optimizer.
            batch: (inputs, targets) for the summary, where the optimizer has no curvature batches of its own.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            InputError: if the rates are due for an update and there is no batch to compute them on.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        direction = self._direction.update()
        warming_up = self._steps < self._warmup
        if warming_up or (self._steps - self._warmup) % self._period == 0:
            self._update_rates(direction, batch, warming_up)
        if not warming_up:
            self._move(direction)
        self._steps += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Torch's state plus everything of ours: the rule, the direction, the step counter, the batches."""
        state = super().state_dict()
        state["grouped_newton"] = {
            "groups": list(self.partition.names),
            "rule": self._rule.state_dict(),
            "direction": self._direction.state_dict(),
            "steps": self._steps,
            "fallbacks": self._fallbacks,
            "curvature_position": getattr(self._curvature, "position", None),
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            InputError: if the state belongs to another optimizer or another partition.
        """
        ours = state_dict.get("grouped_newton")
        if ours is None:
            raise InputError("state_dict: it was not written by GroupedNewton")
        if ours["groups"] != list(self.partition.names):
            raise InputError(f"state_dict: its groups are {ours['groups']}, not {list(self.partition.names)}")
        super().load_state_dict({"state": state_dict["state"], "param_groups": state_dict["param_groups"]})
        self._rule.load_state_dict(ours["rule"])
        self._direction.load_state_dict(ours["direction"])
        self._steps, self._fallbacks = ours["steps"], ours["fallbacks"]
        self._curvature_iterator = None
        if ours["curvature_position"] is not None and hasattr(self._curvature, "position"):
            self._curvature.position = ours["curvature_position"]  # type: ignore[union-attr]

    def _next_batch(self, batch: Batch | None) -> Batch:
        if self._curvature is None:
            if batch is None:
                raise InputError(
                    "step: the rates are due; pass batch=(inputs, targets) or build with curvature="
                )
            return batch
        for _ in range(2):
            if self._curvature_iterator is None:
                self._curvature_iterator = iter(self._curvature)
            found = next(self._curvature_iterator, None)
            if found is not None:
                return found
            self._curvature_iterator = None  # exhausted: start over
        raise InputError("curvature: the iterable holds no batch")

    def _update_rates(self, direction: list[Tensor], batch: Batch | None, warming_up: bool) -> None:
        started = time.perf_counter()
        inputs, targets = self._next_batch(batch)
        summary = self._summarizer.summarize(inputs, targets, dict(zip(self._names, direction, strict=True)))
        gradient, hessian, third, norms = self._to_host(summary, direction)
        summarised = time.perf_counter()
        finite = all(bool(torch.isfinite(part).all()) for part in (gradient, hessian, third, norms))
        if finite:
            average = self._rule.observe(gradient, hessian, third, norms)
            solved = self._rule.solve(average, norms)
        else:  # never averaged, never solved with: the rates before it stay in force
            in_force = torch.tensor([group["rate"] for group in self.param_groups], dtype=torch.float64)
            nan = float("nan")
            solved = Solved(in_force, gradient, hessian.diagonal(), third, INVALID, nan, nan, nan, False)
        self._fallbacks += solved.fell_back
        for group, rate in zip(self.param_groups, solved.rates.tolist(), strict=True):
            group["rate"] = 0.0 if warming_up else rate
        if self._on_update is not None:
            self._on_update(
                RateUpdate(
                    step=self._steps,
                    solved=solved,
                    damping=[float(group["lr"]) for group in self.param_groups],
                    summary_seconds=summarised - started,
                    solve_seconds=time.perf_counter() - summarised,
                    warming_up=warming_up,
                )
            )

    def _to_host(self, summary: Summary, direction: list[Tensor]) -> list[Tensor]:
        """ḡ, H̄, D3 of the objective that is minimised and ‖P_s u‖, float64 on the CPU, in one transfer."""
        size = len(self.partition)
        squares = torch.stack(torch._foreach_norm(direction)).double().square()
        norms = self._per_group(squares).sqrt()
        gradient, hessian = summary.gradient.double(), summary.hessian.double()
        third = summary.third.double() if summary.third is not None else norms.new_zeros(size)
        if self._maximize:
            gradient, hessian, third = -gradient, -hessian, -third
        decay = self._direction.quadratic_decay()
        if any(decay):
            factors = squares.new_tensor(decay)
            gradient = gradient + self._per_group(factors * self._dots(direction))
            hessian = hessian + torch.diag(self._per_group(factors * squares))
        packed = torch.cat([gradient, hessian.flatten(), third, norms])
        gradient, hessian, third, norms = packed.cpu().split([size, size * size, size, size])
        return [gradient, hessian.view(size, size), third, norms]

    def _per_group(self, values: Tensor) -> Tensor:
        """Sums over the parameters of each group, on the device."""
        return values.new_zeros(len(self.partition)).index_add_(0, self._owner_on_device, values)

    def _dots(self, direction: list[Tensor]) -> Tensor:
        """⟨θ_i, u_i⟩ of each parameter, float64, on the device."""
        pairs = zip(self._parameters, direction, strict=True)
        return torch.stack([(p.detach() * u).sum(dtype=torch.float64) for p, u in pairs])

    @torch.no_grad()
    def _move(self, direction: list[Tensor]) -> None:
        rates = self.rates
        torch._foreach_mul_(direction, [rates[owner] for owner in self._owner])
        torch._foreach_sub_(self._parameters, direction)  # type: ignore[arg-type]
