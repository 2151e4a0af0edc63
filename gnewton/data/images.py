"""The public sets of small images: MNIST and its relatives, CIFAR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gnewton.data.in_memory import InMemoryRecipe
from gnewton.data.recipe import DATA
from gnewton.options import Role, option

if TYPE_CHECKING:
    import torch

    from gnewton.data.splits import DataSet


@dataclass(kw_only=True)
class PublicImages(InMemoryRecipe):
    """Images that are fetched once (see :mod:`gnewton.data.fetch`) and then read from ``root``.

    The class attributes ``means`` and ``deviations`` are those of the training pixels in [0, 1], a channel
    each, as commonly published.
    """

    means: ClassVar[tuple[float, ...]]
    deviations: ClassVar[tuple[float, ...]]

    root: str = option(role=Role.PLACE)

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """See :meth:`DataRecipe.build`. Inputs (C, H, W)."""
        from gnewton.data.fetch import load
        from gnewton.data.memory.assemble import assemble

        arrays = load(self.name, self.root)
        statistics = (self.means, self.deviations)
        return assemble(self, arrays, device=device, dtype=dtype, seed=seed, statistics=statistics)


@DATA.register("mnist")
@dataclass(kw_only=True)
class Mnist(PublicImages):
    """60,000 + 10,000 grey 28×28 images of digits."""

    samples = 60_000
    side = 28
    means = (0.1307,)
    deviations = (0.3081,)


@DATA.register("fashion_mnist")
@dataclass(kw_only=True)
class FashionMnist(PublicImages):
    """60,000 + 10,000 grey 28×28 images of clothes."""

    samples = 60_000
    side = 28
    means = (0.2860,)
    deviations = (0.3530,)


@DATA.register("cifar10")
@dataclass(kw_only=True)
class Cifar10(PublicImages):
    """50,000 + 10,000 colour 32×32 images in 10 classes."""

    samples = 50_000
    side = 32
    means = (0.4914, 0.4822, 0.4465)
    deviations = (0.2470, 0.2435, 0.2616)


@DATA.register("cifar100")
@dataclass(kw_only=True)
class Cifar100(PublicImages):
    """50,000 + 10,000 colour 32×32 images in 100 classes."""

    samples = 50_000
    side = 32
    means = (0.5071, 0.4865, 0.4409)
    deviations = (0.2673, 0.2564, 0.2762)
