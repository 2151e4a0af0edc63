"""What may be asked of a run under way by those that take it back to an earlier state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from gnewton.training.clocks import Clocks
    from gnewton.training.outcome import Outcome
    from gnewton.training.world import World


class Resumable(Protocol):
    """A run that can take up a saved state.

    Attributes:
        identity: what a checkpoint must agree on.
        epoch, step: finished so far.
    """

    identity: dict[str, str]
    epoch: int
    step: int

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""


class Recoverable(Resumable, Protocol):
    """A run that can go back, also to what was never written.

    Attributes:
        folder: the run folder; None in a process that writes nothing.
        device, optimizer, scheduler, clocks, world, outcome: those of the run.
    """

    folder: Path | None
    device: torch.device
    optimizer: torch.optim.Optimizer
    scheduler: Any
    clocks: Clocks
    world: World
    outcome: Outcome

    def snapshot(self) -> dict[str, Any]:
        """A copy of what training consists of, in memory."""

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Undo what was done since a snapshot."""

    def read(self) -> None:
        """Look whether all is finite.

        Raises:
            StepFault: if something is not.
        """
