"""What the recipes of optimizers have in common that solve for rates on summaries of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.recipes.base import AveragingRecipe, OptimizerRecipe, Problem
from gnewton.optim.recipes.curvature import CurvatureSource
from gnewton.options import option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True)
class Curvature(CurvatureSource):
    """The batches on which the summary is computed, and how."""

    max_memory: float | None = option(above=0)
    engine: str = option(choices=("auto", "tangent", "compiled", "reference"))

    def arguments(self, problem: Problem) -> dict[str, Any]:
        """The arguments of an optimizer that say the same."""
        return {
            "curvature": self.batches(problem),
            "engine": self.engine,
            "max_memory": None if self.max_memory is None else int(self.max_memory * 2**30),
        }


class MeasuringRecipe(OptimizerRecipe):
    """Options of an optimizer that solves for rates per group; each declares the fields in its own order."""

    uses_partition: ClassVar[bool] = True

    averaging: AveragingRecipe
    curvature: Curvature
    solver: str

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Several summaries at an update need batches of their own."""
        if self.averaging.per_update() > 1 and self.curvature.source == "training":
            yield "averaging.batches", "needs optimizer.curvature.source=independent, or 1"

    def ineffective(self) -> Iterator[tuple[str, str]]:
        """Bare Newton has no damping of its own."""
        if self.solver == "newton":
            yield "internal_damping", "optimizer.solver=newton has no such term"

    def compiled_engine(self) -> bool:
        """Whether ``curvature.engine=compiled``."""
        return self.curvature.engine == "compiled"

    def step(self, optimizer: Any, closure: Callable[[], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """One step; the training batch serves the summary where it is to."""
        return optimizer.step(closure, batch=self.curvature.training_batch(batch))
