"""For authors of own parts: a model, a data set, an optimizer or a partition in a file of yours.

``gnewton train import=FILE.py model=NAME`` loads the file first, so that what it registers can be chosen like
the parts of this package, with options that are typed, checked and explained by ``--help``. A part is a class
under one of the decorators below; its fields are its options. docs/plugins.md has a complete example.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from gnewton.data.arrays import Arrays, check
from gnewton.data.dataset_options import DATA, DataRecipe, InMemoryRecipe
from gnewton.errors import InputError
from gnewton.models.network_options import MODELS, ModelRecipe, NetworkRecipe
from gnewton.optim.options import (
    CONTROLLERS,
    DIRECTIONS,
    OPTIMIZERS,
    ControllerRecipe,
    DirectionRecipe,
    OptimizerRecipe,
    TrainingProblem,
)
from gnewton.optim.options.baselines import FirstOrderRecipe
from gnewton.options import option, option_of
from gnewton.partition import PARTITIONS, Partition, PartitionRecipe
from gnewton.registry import Registry, imported

if TYPE_CHECKING:
    import torch

    from gnewton.data import DataSet

__all__ = [
    "ArrayRecipe",
    "Arrays",
    "ControllerRecipe",
    "DataRecipe",
    "DirectionRecipe",
    "FirstOrderRecipe",
    "InputError",
    "ModelRecipe",
    "NetworkRecipe",
    "OptimizerRecipe",
    "Partition",
    "PartitionRecipe",
    "TrainingProblem",
    "controller",
    "dataset",
    "direction",
    "model",
    "optimizer",
    "option",
    "option_of",
    "partition",
]

PartT = TypeVar("PartT")

PARTS: dict[str, Registry] = {
    "gnewton.models": MODELS,
    "gnewton.datasets": DATA,
    "gnewton.optimizers": OPTIMIZERS,
    "gnewton.partitions": PARTITIONS,
    "gnewton.directions": DIRECTIONS,
    "gnewton.controllers": CONTROLLERS,
}
"""The registry of each group of entry points."""


@dataclass(kw_only=True)
class ArrayRecipe(InMemoryRecipe):
    """A data set given by its arrays. The options of all sets in memory come with it.

    The validation samples are held out of the training part by ``split_seed``. A digest of the arrays is kept
    with the run, so that a resumed run refuses other data.
    """

    @abstractmethod
    def arrays(self) -> Arrays:
        """The training and the test part, as numpy arrays.

        Inputs: uint8 pixels (N, H, W) or (N, H, W, C), or floats (N, …). Targets: integer labels (N,), 0 …
        K-1, or floats (N,) or (N, d) for a regression.
        """

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """The three splits; see :meth:`DataRecipe.build`."""
        arrays = self.arrays()
        check(arrays, f"data={self.name}")
        digest = imported("gnewton.data.npz:digest_of")(arrays)
        assemble = imported("gnewton.data.assemble:assemble")
        data: DataSet = assemble(self, arrays, device=device, dtype=dtype, seed=seed, digest=digest)
        return data


def model(name: str) -> Callable[[type[PartT]], type[PartT]]:
    """Decorator: a :class:`ModelRecipe` is ``model=name``. Its ``build(task)`` returns the network."""
    return registering(MODELS, name)


def dataset(name: str) -> Callable[[type[PartT]], type[PartT]]:
    """Decorator: an :class:`ArrayRecipe` or :class:`DataRecipe` is ``data=name``.

    Each batch is a pair of tensors (inputs, targets). Batches of another form are for a loop of your own,
    with ``GroupedNewton(…, forward=…)`` (docs/python.md).
    """
    return registering(DATA, name)


def optimizer(name: str) -> Callable[[type[PartT]], type[PartT]]:
    """Decorator: an :class:`OptimizerRecipe` is ``optimizer=name``.

    A :class:`FirstOrderRecipe` needs ``method()`` alone, which returns the class with its arguments; it has
    learning rates of groups, and ``gnewton rates`` suggests them.
    """
    return registering(OPTIMIZERS, name)


def partition(name: str) -> Callable[[type[PartT]], type[PartT]]:
    """Decorator: a :class:`PartitionRecipe` is ``partition=name``; ``build(model)`` returns the groups."""
    return registering(PARTITIONS, name)


def direction(name: str) -> Callable[[type[PartT]], type[PartT]]:
    """Decorator: a :class:`DirectionRecipe` is ``optimizer/direction=name`` of GroupedNewton."""
    return registering(DIRECTIONS, name)


def controller(name: str) -> Callable[[type[PartT]], type[PartT]]:
    """Decorator: a :class:`ControllerRecipe` is ``optimizer/controller=name`` of GroupedNewton."""
    return registering(CONTROLLERS, name)


def registering(registry: Registry, name: str) -> Callable[[type[PartT]], type[PartT]]:
    """Decorator: a recipe, made a dataclass if it is none, is the choice ``name`` of a registry.

    Raises:
        InputError: if the name is taken, or cannot be written on a command line.
    """
    if not re.fullmatch(r"[A-Za-z_][\w-]*", name):
        raise InputError(f"{registry.kind}={name}: a name consists of letters, digits, _ and -")

    def add(recipe: type[PartT]) -> type[PartT]:
        if name in registry.names():
            raise InputError(f"{registry.kind}={name}: there is a choice of this name already")
        if "__dataclass_fields__" not in vars(recipe):
            recipe = dataclass(kw_only=True)(recipe)
        registry.register(name)(recipe)
        return recipe

    return add
