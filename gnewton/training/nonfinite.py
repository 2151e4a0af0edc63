"""Numbers that are not finite: found where the trainer waits for the device anyway."""

from __future__ import annotations

import torch
from torch import nn

from gnewton.errors import Diverged
from gnewton.optim.finite_step import all_finite
from gnewton.training.ratelog import RateLog


class StepFault(Diverged):
    """A training step met a number that is not finite.

    Attributes:
        harmless: whether nothing but an update of the rates was lost: those before it stayed in force.
    """

    def __init__(self, message: str, *, harmless: bool = False) -> None:
        super().__init__(message)
        self.harmless = harmless


class Watch:
    """Looks after what training steps leave behind: the model, and what GroupedNewton says of its steps.

    Args:
        model: its parameters and floating-point buffers must be finite.
        optimizer: if it counts steps that it withheld, their number must not grow.
        rate_log: updates of the rates since it was read last; None for other optimizers.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rate_log: RateLog | None) -> None:
        self._model = model
        self._optimizer = optimizer
        self._rate_log = rate_log
        self._withheld = 0

    def fault(self, step: int) -> StepFault | None:
        """What is not finite after ``step`` training steps, the worst of it; waits for the device, once."""
        withheld, finite = self._look()
        before, self._withheld = self._withheld, withheld
        if withheld > before:
            return StepFault(f"the direction or the rates are not finite at a step before step {step}")
        if not finite:
            return StepFault(f"the parameters are not finite after step {step}")
        bad = self._rate_log.invalid_step() if self._rate_log is not None else None
        return (
            StepFault(f"the summary is not finite at step {bad}", harmless=True) if bad is not None else None
        )

    def restart(self) -> None:
        """Begin to count anew, from what a restored optimizer says."""
        self._withheld = self._look()[0]

    def _look(self) -> tuple[int, bool]:
        """(steps withheld so far, whether the model is finite), in one transfer."""
        finite = all_finite(
            [value for value in self._model.state_dict().values() if value.is_floating_point()]
        )
        withheld = getattr(self._optimizer, "withheld", torch.zeros_like(finite, dtype=torch.int64))
        found = torch.stack([withheld, finite.to(withheld)]).tolist()
        return found[0], bool(found[1])
