"""The options of ``gnewton tune``. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gnewton.errors import InputError
from gnewton.options import option
from gnewton.tuning.samplers import SAMPLERS
from gnewton.tuning.space import Space

METRICS = ("validation_loss", "validation_accuracy")
"""What a winner may be chosen by: nothing that is measured on the training or the test split."""


@dataclass(kw_only=True)
class TuneSettings:
    """How much every optimizer is given, and where its settings are looked for."""

    name: str
    trials: int = option(at_least=1)
    sampler: str = option(choices=tuple(SAMPLERS))
    batch: int = option(at_least=1)
    seed: int = option(at_least=0)
    metric: str = option(choices=METRICS)
    repeats: int = option(at_least=1)
    spaces: dict[str, dict[str, dict[str, Any]]]

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Every declared space must be one."""
        for optimizer in self.spaces:
            try:
                self.space(optimizer)
            except InputError as error:  # noqa: PERF203
                yield f"spaces.{optimizer}", str(error)

    def space(self, optimizer: str) -> Space:
        """The search space of an optimizer.

        Raises:
            InputError: if there is none, or it is not what it should be.
        """
        if not self.spaces.get(optimizer):
            raise InputError(
                f"optimizer={optimizer}: tune={self.name} declares no search space for it; "
                "give one in a file of your own, see docs/sweeps.md"
            )
        return Space.parse(optimizer, self.spaces[optimizer])

    @property
    def sign(self) -> int:
        """The score of a trial is this times the metric, so that less is better."""
        return -1 if self.metric.endswith("accuracy") else 1
