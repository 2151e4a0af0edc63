"""Points of a physics-informed network: where Poisson's equation is to hold, and its source there."""

from __future__ import annotations

import numpy as np
import torch

from gnewton.data.dataset_options import Poisson
from gnewton.data.splits import DataSet
from gnewton.data.tensors import Scaling, TensorSplit, mixed_seed
from gnewton.tasks import Regression


def source(points: np.ndarray, frequency: int) -> np.ndarray:
    """f(x) = Π_i sin(kπ x_i) for points (N, d): (N, 1)."""
    return np.sin(frequency * np.pi * points).prod(axis=1, keepdims=True)


def build_poisson(options: Poisson, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """The three splits: points drawn evenly from the unit cube, each split by a stream of its own.

    The loss of a model that returns −Δu is the mean squared residual of the equation.
    """
    work = torch.promote_types(dtype, torch.float32)
    one, zero = torch.ones((), device=device, dtype=work), torch.zeros((), device=device, dtype=work)

    def split(part: str, count: int) -> TensorSplit:
        random = np.random.RandomState(mixed_seed("poisson", options.split_seed, part) % 2**32)
        points = random.uniform(size=(count, options.dimensions))
        return TensorSplit(
            torch.from_numpy(points).to(work).to(device),
            torch.from_numpy(source(points, options.frequency)).to(dtype).to(device),
            Scaling(one, zero, dtype),
            seed=seed,
            title=f"the {part} split of data={options.name}",
        )

    return DataSet(
        name=options.name,
        task=Regression(input_shape=(options.dimensions,), outputs=1),
        train=split("train", options.train),
        validation=split("validation", options.validation),
        test=split("test", options.test),
    )
