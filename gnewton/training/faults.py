"""Faults of a training: numbers that are not finite, the policy ``trainer.on_nonfinite``, and divergence."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum, auto
from statistics import median
from typing import Any, ClassVar

import torch
from torch import nn

from gnewton.errors import Diverged
from gnewton.optim.finite_step import all_finite
from gnewton.runfiles import SCORES
from gnewton.training.runlog import RateLog
from gnewton.training.settings import TrainerSettings


class StepFault(Diverged):
    """A training step met a number that is not finite.

    Attributes:
        harmless: whether only an update of the rates was lost; the rates before it stayed in force.
    """

    def __init__(self, message: str, *, harmless: bool = False) -> None:
        super().__init__(message)
        self.harmless = harmless


class Watch:
    """Looks for numbers that are not finite in what training steps leave behind.

    Args:
        model: its parameters and floating-point buffers must be finite.
        optimizer: if it counts the steps it withheld, their number must not grow.
        rate_log: updates of the rates since the last read; None for optimizers without rates.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rate_log: RateLog | None) -> None:
        self._model = model
        self._optimizer = optimizer
        self._rate_log = rate_log
        self._withheld = 0

    def fault(self, step: int) -> StepFault | None:
        """The worst fault after ``step`` training steps, None if all is finite; one wait for the device."""
        withheld, finite = self._look()
        before, self._withheld = self._withheld, withheld
        if withheld > before:
            return StepFault(f"the direction or the rates are not finite at a step before step {step}")
        if not finite:
            return StepFault(f"the parameters are not finite after step {step}")
        bad = self._rate_log.invalid_step() if self._rate_log is not None else None
        if bad is None:
            return None
        return StepFault(f"the summary is not finite at step {bad}", harmless=True)

    def restart(self) -> None:
        """Count withheld steps anew, from the number that a restored optimizer holds."""
        self._withheld = self._look()[0]

    def _look(self) -> tuple[int, bool]:
        """(steps withheld so far, whether the model is finite), in one transfer."""
        finite = all_finite(
            [value for value in self._model.state_dict().values() if value.is_floating_point()]
        )
        withheld = getattr(self._optimizer, "withheld", torch.zeros_like(finite, dtype=torch.int64))
        values = torch.stack([withheld, finite.to(withheld)]).tolist()
        return values[0], bool(values[1])


class Action(Enum):
    """What the trainer is to do about a fault."""

    SKIP = auto()
    """Leave out the step that was made alone, or the update of the rates."""

    REWIND = auto()
    """Return to the last sound state and repeat the steps since then one by one, each checked."""

    ROLL_BACK = auto()
    """Return to the last checkpoint and continue with lower learning rates."""


class Recovery(ABC):
    """The policy ``trainer.on_nonfinite``: it decides, the trainer acts.

    Attributes:
        keeps_state: whether the trainer is to keep a copy of the last sound state, for ``Action.REWIND``.

    Args:
        settings: ``max_recoveries`` bounds how often the policy may help.
    """

    keeps_state: ClassVar[bool] = False

    def __init__(self, settings: TrainerSettings) -> None:
        self.limit = settings.max_recoveries

    def tolerates(self, fault: StepFault) -> bool:
        """Whether training continues from ``fault`` as it is, with ``Action.SKIP``."""
        return False

    @abstractmethod
    def decide(self, fault: Diverged, *, rollbacks: int, isolated: bool = False) -> Action:
        """The action that answers a fault.

        Args:
            fault: what was found.
            rollbacks: how often the run was rolled back before.
            isolated: whether the fault is of a single step that was made alone.

        Raises:
            Diverged: if the policy cannot help, or has done so too often.
        """

    def passed(self) -> None:  # noqa: B027
        """Take note that a step made alone, or an update of the rates, was sound."""


class Stop(Recovery):
    """End the run; checkpoint/last.pt holds the last finite state."""

    def decide(self, fault: Diverged, *, rollbacks: int, isolated: bool = False) -> Action:
        """Raise ``fault``."""
        raise fault


class Skip(Recovery):
    """Leave out the steps that are not finite, as if their batches did not exist.

    Between two reads of the loss nothing is checked. A fault sends the trainer back to the state of the last
    read, which it kept in memory. It then repeats the steps one by one, checks each and undoes it if it is
    not finite. So every optimizer is left exactly as before the step, whatever state it has.
    """

    keeps_state = True

    def __init__(self, settings: TrainerSettings) -> None:
        super().__init__(settings)
        self._in_a_row = 0

    def tolerates(self, fault: StepFault) -> bool:
        """GroupedNewton skips an update of the rates by itself."""
        return fault.harmless

    def decide(self, fault: Diverged, *, rollbacks: int, isolated: bool = False) -> Action:
        """Skip an update of the rates or a step that is known; otherwise rewind, to find the step."""
        if not isinstance(fault, StepFault):
            raise fault  # an evaluation is not finite: there is no step to leave out
        if not (isolated or fault.harmless):
            return Action.REWIND
        self._in_a_row += 1
        if self._in_a_row > self.limit:
            raise Diverged(f"{fault}; {self.limit} in a row were skipped (trainer.max_recoveries)") from fault
        return Action.SKIP

    def passed(self) -> None:
        """Count the steps and updates in a row anew."""
        self._in_a_row = 0


class Rollback(Recovery):
    """Return to the last checkpoint and continue with lower learning rates (GroupedNewton: λ_1)."""

    def decide(self, fault: Diverged, *, rollbacks: int, isolated: bool = False) -> Action:
        """Roll back, unless that was done ``max_recoveries`` times."""
        if rollbacks >= self.limit:
            raise Diverged(f"{fault}; rolled back {rollbacks} times (trainer.max_recoveries)") from fault
        return Action.ROLL_BACK


def check_scores(row: dict[str, Any]) -> None:
    """Refuse a row of metrics.csv with a score that is not finite.

    Raises:
        Diverged: naming the score and the step.
    """
    for name in SCORES:
        value = row[name]
        if value is not None and not math.isfinite(value):
            raise Diverged(f"the {name.replace('_', ' ')} is {value} after step {row['step']}")


RECOVERIES: dict[str, type[Recovery]] = {"stop": Stop, "skip": Skip, "rollback": Rollback}
"""The policies by name."""


def lower_rates(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply every learning rate by ``factor``, now and in what the schedule starts from."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]


SAMPLES = 1000
"""Training samples, at most, on which the loss at the start is measured."""

FEWEST = 10
"""Fewest steps a verdict rests on, if the run has made as many."""


class LossCeiling:
    """Judges training losses that have already been read; it never waits for the device.

    With f₀ the mean loss at the start and f₋ the lowest loss of a step so far, the ceiling is

        f₀ + (factor − 1) · max(|f₀|, f₀ − f₋)

    which is factor · f₀ for losses >= 0. The second scale serves losses that change sign, which may start
    near zero by chance. Medians are compared with it, so that a few steps with huge losses decide nothing.

    Args:
        factor: of the rule; None: no loss is ever far above the start.
        epoch: steps in an epoch. A verdict within a run rests on as many, and on :data:`FEWEST` at least.

    Attributes:
        start: the loss at the start; None before it is measured.
    """

    def __init__(self, factor: float | None, epoch: int) -> None:
        self.factor = factor
        self._window = max(epoch, FEWEST)
        self._tail = max(math.ceil(epoch / 10), FEWEST)
        self.start: float | None = None
        self._lowest = math.inf
        self._recent: deque[float] = deque(maxlen=self._window)

    @property
    def lacks_start(self) -> bool:
        """Whether the loss at the start is still to be measured."""
        return self.factor is not None and self.start is None

    def record(self, losses: Iterable[float]) -> None:
        """Record the losses of the next steps."""
        for loss in losses:
            self._lowest = min(self._lowest, loss)
            self._recent.append(loss)

    def ceiling(self) -> float:
        """The loss above which a run has diverged; infinite if the start gives no scale."""
        if self.factor is None or self.start is None or not math.isfinite(self.start) or not self._recent:
            return math.inf
        scale = max(abs(self.start), self.start - self._lowest)
        return self.start + (self.factor - 1) * scale if scale > 0 else math.inf

    def is_exceeded_by_the_latest(self) -> bool:
        """Whether the last three losses are far above the start, perhaps only a spike."""
        return bool(self._recent) and median(self._last(3)) > self.ceiling()

    def is_exceeded(self) -> bool:
        """Whether the loss over the last tenth of an epoch is far above the start."""
        return bool(self._recent) and median(self._last(self._tail)) > self.ceiling()

    def is_exceeded_for_long(self) -> bool:
        """Whether it is, and so is the loss over the steps of a whole epoch."""
        full = len(self._recent) == self._window
        return full and self.is_exceeded() and median(self._recent) > self.ceiling()

    def check(self, step: int, *, ended: bool, anywhere: Callable[[bool], bool]) -> None:
        """Refuse a loss that is far above the start, at the end of an epoch or, with ``ended``, of the run.

        Args:
            step: steps made so far.
            ended: whether the run has ended.
            anywhere: tells whether something holds in any of the processes that share every batch.

        Raises:
            Diverged: in every process, if any of them finds it so.
        """
        if anywhere(self.is_exceeded() if ended else self.is_exceeded_for_long()):
            raise Diverged(self.describe(step, ended=ended))

    def describe(self, step: int, *, ended: bool) -> str:
        """The verdict after ``step`` steps in words; ``ended``: the one at the end of the run."""
        losses = self._last(self._tail if ended else self._window)
        return (
            f"the training loss has diverged: median {median(losses):.4g} over the last {len(losses)} steps "
            f"before step {step}, above the ceiling of {self.ceiling():.4g} "
            f"(trainer.divergence={self.factor:g}, loss at the start {self.start:.4g})"
        )

    def state_dict(self) -> dict[str, Any]:
        """The losses on which the verdicts of a resumed run rest."""
        return {
            "start": self.start,
            "lowest": self._lowest,
            "recent": torch.tensor(list(self._recent), dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.start, self._lowest = state["start"], float(state["lowest"])
        self._recent = deque(state["recent"].tolist(), maxlen=self._window)

    def _last(self, count: int) -> list[float]:
        return list(self._recent)[-count:]
