"""The options of the batches on which curvature is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.optim.recipes.base import Problem
from gnewton.options import option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@dataclass(kw_only=True)
class CurvatureSource:
    """Where the batches come from and how large they are."""

    source: str = option(choices=("independent", "training"))
    batch_size: int | None = option(at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The training batch comes in the size it has."""
        if self.source == "training" and self.batch_size is not None:
            yield "batch_size", "has no effect with curvature.source=training; leave it null"

    def batches(self, problem: Problem) -> Iterable[tuple[Tensor, Tensor]] | None:
        """The endless series of independent batches; None where the training batch serves."""
        return problem.curvature(self.batch_size) if self.source == "independent" else None

    def training_batch(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        """What to hand to the optimizer's ``step``: the training batch, if it serves."""
        return batch if self.source == "training" else None
