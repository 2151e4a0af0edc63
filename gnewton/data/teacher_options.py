"""The options of the random teacher, apart from how its samples are made."""

from __future__ import annotations

from dataclasses import dataclass

from gnewton.data.recipe import DataRecipe
from gnewton.options import option


@dataclass(kw_only=True)
class TeacherOptions(DataRecipe):
    """Sizes of the teacher and of the three splits."""

    inputs: int = option(at_least=1)
    outputs: int = option(at_least=1)
    hidden: list[int] = option(at_least=1)
    activation: str = option(choices=("identity", "relu", "sigmoid", "tanh"))
    noise: float = option(at_least=0)
    train: int = option(at_least=1)
    validation: int = option(at_least=1)
    test: int = option(at_least=1)
    split_seed: int = option(at_least=0, at_most=2**32 - 1)
