"""Samples of a random teacher: a function of ``split_seed``, the same on every machine up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from gnewton.data.memory.order import mixed_seed
from gnewton.data.memory.tensors import Scaling, TensorSplit
from gnewton.data.splits import DataSet
from gnewton.tasks import Regression

if TYPE_CHECKING:
    from gnewton.data.teacher_options import TeacherOptions

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
}


def build_teacher_set(recipe: TeacherOptions, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """The three splits. Training targets carry the noise; validation and test targets do not."""
    weights = teacher_weights(recipe)
    scale = _root_mean_square(recipe, weights)
    work = torch.promote_types(dtype, torch.float32)
    one, zero = torch.ones((), device=device, dtype=work), torch.zeros((), device=device, dtype=work)

    def split(part: str, count: int) -> TensorSplit:
        random = _random(recipe, part)
        inputs = random.standard_normal((count, recipe.inputs))
        targets = answers(recipe, weights, inputs) / scale
        if part == "train":
            targets += recipe.noise * random.standard_normal(targets.shape)
        return TensorSplit(
            torch.from_numpy(inputs).to(work).to(device),
            torch.from_numpy(targets).to(dtype).to(device),
            Scaling(one, zero, dtype),
            seed=seed,
            title=f"the {part} split of data={recipe.name}",
        )

    return DataSet(
        name=recipe.name,
        task=Regression(input_shape=(recipe.inputs,), outputs=recipe.outputs),
        train=split("train", recipe.train),
        validation=split("validation", recipe.validation),
        test=split("test", recipe.test),
    )


def teacher_weights(recipe: TeacherOptions) -> list[np.ndarray]:
    """The teacher's matrices (fan_in, fan_out), entries N(0, 1 / fan_in); it has no biases."""
    random = _random(recipe, "teacher")
    widths = [recipe.inputs, *recipe.hidden, recipe.outputs]
    return [
        random.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in) for fan_in, fan_out in pairwise(widths)
    ]


def answers(recipe: TeacherOptions, weights: list[np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """What the teacher says to inputs (N, inputs): (N, outputs), in float64."""
    activation = _ACTIVATIONS[recipe.activation]
    for matrix in weights[:-1]:
        inputs = activation(inputs @ matrix)
    return inputs @ weights[-1]


def _root_mean_square(recipe: TeacherOptions, weights: list[np.ndarray]) -> float:
    """Size of the teacher's answers, by which targets are divided: a loss of 1 is that of answering zero."""
    probe = _random(recipe, "scale").standard_normal((1024, recipe.inputs))
    size = float(np.sqrt(np.mean(answers(recipe, weights, probe) ** 2)))
    return size if size > 0 else 1.0  # a narrow relu teacher may be silent


def _random(recipe: TeacherOptions, part: str) -> np.random.RandomState:
    """A generator for one part, so that the size of one split does not move the samples of another."""
    return np.random.RandomState(mixed_seed("teacher", recipe.split_seed, part) % 2**32)
