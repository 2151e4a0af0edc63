"""The averages of the summary over updates (Wolinski 2023, and the exponential one)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.optim.recipes.base import AVERAGINGS, AveragingRecipe
from gnewton.options import option

if TYPE_CHECKING:
    from gnewton.optim.averaging import Averaging


@AVERAGINGS.register("none")
@dataclass(kw_only=True)
class Present(AveragingRecipe):
    """The summary of the present update alone."""

    def build(self) -> Averaging:
        """An average that keeps nothing."""
        from gnewton.optim.averaging import NoAveraging

        return NoAveraging()


@AVERAGINGS.register("exponential")
@dataclass(kw_only=True)
class Exponential(AveragingRecipe):
    """Exponentially decaying weights that sum to one."""

    coefficient: float = option(at_least=0, below=1)

    def build(self) -> Averaging:
        """An empty exponential average."""
        from gnewton.optim.averaging import ExponentialAveraging

        return ExponentialAveraging(self.coefficient)


@AVERAGINGS.register("uniform")
@dataclass(kw_only=True)
class Uniform(AveragingRecipe):
    """Two running means, one in use and one being built."""

    period: int = option(at_least=1)

    def build(self) -> Averaging:
        """Two empty means."""
        from gnewton.optim.averaging import UniformAveraging

        return UniformAveraging(self.period)


@AVERAGINGS.register("static")
@dataclass(kw_only=True)
class Static(AveragingRecipe):
    """The mean over several batches at the same update."""

    batches: int = option(at_least=1)

    def per_update(self) -> int:
        """As many as are averaged."""
        return self.batches

    def build(self) -> Averaging:
        """An empty mean."""
        from gnewton.optim.averaging import StaticAveraging

        return StaticAveraging(self.batches)
