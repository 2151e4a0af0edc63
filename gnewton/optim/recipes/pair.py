"""Two directions at once for GroupedNewton."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gnewton.optim.recipes.base import DIRECTIONS, DirectionRecipe, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gnewton.optim.direction import DirectionFactory


@DIRECTIONS.register("pair")
@dataclass(kw_only=True)
class PairDirection(DirectionRecipe):
    """Two first-order methods; each group gets a rate for either."""

    single: ClassVar[bool] = False

    first: DirectionRecipe
    second: DirectionRecipe

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Pairs do not nest."""
        for name in ("first", "second"):
            if not getattr(self, name).single:
                yield f"{name}.name", "must be a single direction"

    def build(self, problem: Problem) -> Mapping[str, DirectionFactory]:
        """Both, as ``first`` and ``second``."""
        built = {}
        for name, recipe in (("first", self.first), ("second", self.second)):
            factory = recipe.build(problem)
            assert callable(factory)
            built[name] = factory
        return built
