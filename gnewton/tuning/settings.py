"""The options of ``gnewton tune``. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gnewton.errors import InputError
from gnewton.options import option
from gnewton.runfiles import VALIDATION_SCORES
from gnewton.tuning.samplers import SAMPLERS
from gnewton.tuning.space import Space


@dataclass(kw_only=True)
class TuneSettings:
    """What every optimizer is given."""

    name: str
    trials: int = option(at_least=1)
    sampler: str = option(choices=tuple(SAMPLERS))
    batch: int = option(at_least=1)
    seed: int = option(at_least=0)
    metric: str = option(choices=VALIDATION_SCORES)
    repeats: int = option(at_least=1)

    @property
    def sign(self) -> int:
        """The score of a trial is this times the metric, so that less is better."""
        return -1 if self.metric.endswith("accuracy") else 1


@dataclass(kw_only=True)
class SpaceSettings:
    """Where the settings of each optimizer are looked for."""

    name: str
    optimizers: dict[str, dict[str, dict[str, Any]]]

    def of(self, optimizer: str) -> Space:
        """The search space of an optimizer.

        Raises:
            InputError: if there is none, or it is not what it should be.
        """
        if not self.optimizers.get(optimizer):
            raise InputError(
                f"optimizer={optimizer}: space={self.name} has nothing for it; give it a space in a file of "
                "your own, see docs/sweeps.md"
            )
        try:
            return Space.parse(optimizer, self.optimizers[optimizer])
        except InputError as error:
            raise InputError(f"space={self.name}: {error}") from None
