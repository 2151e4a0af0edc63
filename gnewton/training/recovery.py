"""What follows a number that is not finite: the run stops, skips the step, or goes back to a checkpoint."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from gnewton.errors import Diverged
from gnewton.training.nonfinite import StepFault
from gnewton.training.resume import resume
from gnewton.training.settings import TrainerSettings

if TYPE_CHECKING:
    from gnewton.training.recoverable import Recoverable

log = logging.getLogger("gnewton")


class Recovery(ABC):
    """The policy ``trainer.on_nonfinite``.

    Args:
        settings: the options of the loop; ``max_recoveries`` bounds what the policy may do.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        self.limit = settings.max_recoveries
        self.factor = settings.rollback_factor

    def sound(self, trainer: Recoverable) -> None:  # noqa: B027
        """Take note that everything up to here is finite, and written."""

    def tolerates(self, trainer: Recoverable, fault: StepFault) -> bool:
        """Whether training may go on from ``fault`` as it is."""
        return False

    def step(self, trainer: Recoverable, make: Callable[[], None]) -> None:
        """Let ``make`` make one training step."""
        make()

    @abstractmethod
    def recover(self, trainer: Recoverable, fault: Diverged) -> None:
        """Put the trainer into a state to go on from, or raise ``fault``.

        Raises:
            Diverged: if the policy cannot help, or has done so too often.
        """


class Stop(Recovery):
    """End the run; checkpoint/last.pt is the last finite state."""

    def recover(self, trainer: Recoverable, fault: Diverged) -> None:
        """Raise ``fault``."""
        raise fault


class Skip(Recovery):
    """Leave out the steps that are not finite, as if their batches were not there.

    Nothing is looked at between two reads of the loss. A fault sends the trainer back to the read before it,
    whose state was kept in memory; the steps since are made again one by one, each checked and, if it is not
    finite, undone. So every optimizer is left exactly as before the step, whatever it keeps.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        super().__init__(settings)
        self._sound: dict[str, Any] | None = None
        self._watched_until = 0  # steps before this one are made one by one
        self._in_a_row = 0

    def sound(self, trainer: Recoverable) -> None:
        """Keep a copy of the state."""
        self._sound = trainer.snapshot()

    def tolerates(self, trainer: Recoverable, fault: StepFault) -> bool:
        """GroupedNewton has skipped an update of the rates by itself."""
        if fault.harmless:
            self._count(trainer, fault)
        return fault.harmless

    def step(self, trainer: Recoverable, make: Callable[[], None]) -> None:
        """Make one step; where one of the next is known to be bad, look at it and undo it if it is."""
        if trainer.step >= self._watched_until:
            make()
            return
        before = trainer.snapshot()
        try:
            make()
            trainer.read()
            self._in_a_row = 0
        except StepFault as fault:
            trainer.restore(before)
            self._count(trainer, fault)
            trainer.step += 1

    def recover(self, trainer: Recoverable, fault: Diverged) -> None:
        """Go back to the last read."""
        if self._sound is None or not isinstance(fault, StepFault):
            raise fault  # an evaluation is not finite: no step to leave out
        self._watched_until = trainer.step
        trainer.restore(self._sound)
        log.warning("%s: going back to step %d to find the step and skip it", fault, trainer.step)

    def _count(self, trainer: Recoverable, fault: StepFault) -> None:
        self._in_a_row += 1
        if self._in_a_row > self.limit:
            raise Diverged(f"{fault}; {self.limit} in a row were skipped (trainer.max_recoveries)") from fault
        trainer.outcome.skipped += 1
        what = "update of the rates" if fault.harmless else "step"
        log.warning("%s: this %s is skipped (%d so far)", fault, what, trainer.outcome.skipped)


class Rollback(Recovery):
    """Go back to the last checkpoint, and on from there with lower learning rates (GroupedNewton: λ_1)."""

    def recover(self, trainer: Recoverable, fault: Diverged) -> None:
        """Load the checkpoint; the clocks go on, since the time has been spent."""
        before = trainer.outcome.rollbacks
        if before >= self.limit:
            raise Diverged(f"{fault}; rolled back {before} times (trainer.max_recoveries)") from fault
        seconds = trainer.clocks.state_dict()
        folder = trainer.world.gather(trainer.folder)[0]
        if folder is None or not resume(trainer, folder):
            raise fault
        trainer.world.agree(0, trainer.device)  # all of them have read before one of them writes
        trainer.clocks.load_state_dict(seconds)
        done = trainer.outcome.rollbacks  # as the checkpoint has them: its rates are that much lower already
        trainer.outcome.rollbacks = before + 1
        factor = self.factor ** (trainer.outcome.rollbacks - done)
        lower_rates(trainer.optimizer, trainer.scheduler, factor)
        log.warning("%s: rolled back to step %d, learning rates × %g", fault, trainer.step, factor)


RECOVERIES: dict[str, type[Recovery]] = {"stop": Stop, "skip": Skip, "rollback": Rollback}
"""The policies by name."""


def lower_rates(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply every learning rate by ``factor``, now and in what the schedule starts from."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
