"""From arrays to a data set in memory: the three splits, the task and the scaling of the inputs."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gnewton.data import DataSet, fetch
from gnewton.data.arrays import Arrays, check
from gnewton.data.dataset_options import DIGITS_SAMPLES, INPUT, Digits, InMemoryRecipe, PublicImages
from gnewton.data.tensors import Augmenter, Scaling, TensorSplit
from gnewton.errors import InputError
from gnewton.tasks import Classification, Reconstruction, Regression, Task

if TYPE_CHECKING:
    from gnewton.data.dataset_options import Tabular

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def build_public_images(
    options: PublicImages, device: torch.device, dtype: torch.dtype, seed: int
) -> DataSet:
    """Images from the cache, fetched first if need be. Inputs (C, H, W)."""
    arrays = fetch.load(options.name, options.root)
    statistics = (options.means, options.deviations)
    return assemble(options, arrays, device=device, dtype=dtype, seed=seed, statistics=statistics)


def build_digits(options: Digits, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """scikit-learn's digits, the test part held out first. Inputs (1, 8, 8), pixels stored as 0 … 16."""
    images, labels = _digits()
    rest, test = divide(DIGITS_SAMPLES, options.test, None, options.split_seed)
    arrays = Arrays(images[rest], labels[rest], images[test], labels[test])
    return assemble(options, arrays, device=device, dtype=dtype, seed=seed, full_scale=16.0)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 images (N, 8, 8) uint8 and their labels, from the file that scikit-learn installs.

    Importing scikit-learn takes a quarter of the time from the command to the first step.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    stored = load_digits()
    return stored.images.astype(np.uint8), stored.target


def assemble(
    recipe: InMemoryRecipe,
    arrays: Arrays,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    statistics: Statistics | None = None,
    full_scale: float = 255.0,
    remarks: tuple[str, ...] = (),
    digest: str | None = None,
) -> DataSet:
    """Build the three splits of a set that fits in memory.

    Args:
        recipe: the options.
        arrays: checked arrays.
        device: where the samples are kept.
        dtype: floating type of the inputs, and of float targets.
        seed: decides the orders and the augmentation; the splits depend on ``recipe.split_seed`` alone.
        statistics: (means, deviations) per channel of inputs in [0, 1]; None: those of the training part.
        full_scale: the stored uint8 value that stands for 1.
        remarks, digest: see :class:`~gnewton.data.DataSet`.

    Raises:
        InputError: naming the option that does not suit the arrays.
    """
    train, validation = divide(len(arrays.x_train), recipe.validation, recipe.subset, recipe.split_seed)
    _suit(recipe, arrays)
    normalise = recipe.normalise
    if normalise and statistics is None:
        rest = divide(len(arrays.x_train), recipe.validation, None, recipe.split_seed)[0]
        if arrays.x_train.ndim == 2 and arrays.x_train.dtype.kind == "f":
            arrays, normalise = standardise(arrays, rest), False
        else:
            statistics = moments(arrays.x_train[rest], full_scale)
    work = torch.promote_types(dtype, torch.float32)
    scaling = scaling_for(arrays.x_train, statistics if normalise else None, full_scale, device, work, dtype)
    augment = recipe.augment
    augmenter = (
        Augmenter(augment.crop_padding, augment.flip) if augment.crop_padding or augment.flip else None
    )

    def split(part: str, inputs: np.ndarray, targets: np.ndarray) -> TensorSplit:
        return TensorSplit(
            _inputs(inputs, device, work),
            None if recipe.target == INPUT else _targets(targets, device, dtype),
            scaling,
            augmenter=augmenter if part == "train" else None,
            seed=seed,
            title=f"the {part} split of data={recipe.name}",
        )

    return DataSet(
        name=recipe.name,
        task=task_of(recipe, arrays),
        train=split("train", arrays.x_train[train], arrays.y_train[train]),
        validation=split("validation", arrays.x_train[validation], arrays.y_train[validation]),
        test=split("test", arrays.x_test, arrays.y_test),
        remarks=remarks,
        digest=digest,
    )


def divide(count: int, held_out: int, subset: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-out samples: disjoint, and always the same for a seed.

    The held-out part does not depend on ``subset``, and a smaller subset is contained in a larger one.
    numpy's legacy generator is used because its stream is frozen: the same split on every version.

    Raises:
        InputError: if the set is too small.
    """
    if held_out >= count:
        raise InputError(f"data.validation={held_out}: must be < {count}, the samples to divide")
    order = np.random.RandomState(seed).permutation(count)
    train, validation = order[held_out:], order[:held_out]
    if subset is not None and subset > len(train):
        raise InputError(
            f"data.subset={subset}: must be <= {len(train)}, the training samples beside the validation split"
        )
    return train[:subset], validation


def task_of(recipe: InMemoryRecipe, arrays: Arrays) -> Task:
    """The task that the targets pose."""
    shape = _sample_shape(arrays.x_train)
    if recipe.target == INPUT:
        return Reconstruction(input_shape=shape, outputs=int(np.prod(shape)))
    if arrays.y_train.dtype.kind == "f":
        outputs = 1 if arrays.y_train.ndim == 1 else arrays.y_train.shape[1]
        return Regression(input_shape=shape, outputs=outputs)
    return Classification(input_shape=shape, outputs=int(arrays.y_train.max()) + 1)


def moments(inputs: np.ndarray, full_scale: float) -> Statistics:
    """Means and deviations of inputs: per channel of images (N, H, W[, C]) in [0, 1], per feature of (N, D).

    A deviation of zero counts as one, so that a constant feature stays finite (it becomes zero).
    """
    axes = (0,) if inputs.ndim == 2 else (0, 1, 2)
    scale = full_scale if inputs.dtype == np.uint8 else 1.0
    mean = inputs.mean(axis=axes, dtype=np.float64) / scale
    deviation = inputs.std(axis=axes, dtype=np.float64) / scale
    deviation = np.where(deviation > 0, deviation, 1.0)
    return tuple(np.atleast_1d(mean).tolist()), tuple(np.atleast_1d(deviation).tolist())


def standardise(arrays: Arrays, rest: np.ndarray) -> Arrays:
    """Features (N, D) minus the mean, over the deviation, of the rows ``rest`` of the training part.

    In float64, before they are rounded to the type of the inputs: features far from zero, such as times in
    seconds, would lose their digits otherwise. A constant feature becomes zero.
    """
    origin = arrays.x_train[rest[0]].astype(np.float64)

    def shifted(inputs: np.ndarray) -> np.ndarray:
        return inputs.astype(np.float64) - origin  # exact near the origin: a constant feature is 0, not 1e-10

    training = shifted(arrays.x_train[rest])
    mean, deviation = training.mean(axis=0), training.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    train, test = ((shifted(part) - mean) / deviation for part in (arrays.x_train, arrays.x_test))
    return replace(arrays, x_train=train, x_test=test)


def scaling_for(
    inputs: np.ndarray,
    statistics: Statistics | None,
    full_scale: float,
    device: torch.device,
    work: torch.dtype,
    dtype: torch.dtype,
) -> Scaling:
    """The scaling of stored inputs (see :class:`Scaling`); ``work`` is the type it is computed in."""
    scale = full_scale if inputs.dtype == np.uint8 else 1.0
    means, deviations = statistics or ((0.0,), (1.0,))
    mean, deviation = (torch.tensor(entry, dtype=torch.float64) for entry in (means, deviations))
    if inputs.ndim > 2:
        mean, deviation = mean[:, None, None], deviation[:, None, None]
    return Scaling((scale * deviation).to(work).to(device), (-mean / deviation).to(work).to(device), dtype)


def _suit(recipe: InMemoryRecipe, arrays: Arrays) -> None:
    inputs = arrays.x_train
    if inputs.ndim == 2 and (recipe.augment.crop_padding or recipe.augment.flip):
        raise InputError("data.augment: must be crop_padding=0 and flip=false for inputs that are not images")
    if inputs.ndim > 2 and recipe.augment.crop_padding >= min(inputs.shape[1:3]):
        raise InputError(
            f"data.augment.crop_padding={recipe.augment.crop_padding}: "
            f"must be < {min(inputs.shape[1:3])}, the side of an image in pixels"
        )
    if recipe.target == INPUT and inputs.dtype != np.uint8:
        low = min(float(inputs.min()), float(arrays.x_test.min()))
        high = max(float(inputs.max()), float(arrays.x_test.max()))
        if low < 0 or high > 1:
            raise InputError(
                f"data.target={INPUT}: inputs must lie in [0, 1], and these lie in [{low:g}, {high:g}]"
            )


def _sample_shape(inputs: np.ndarray) -> tuple[int, ...]:
    if inputs.ndim == 2:
        return (inputs.shape[1],)
    return (inputs.shape[3] if inputs.ndim == 4 else 1, inputs.shape[1], inputs.shape[2])


def _inputs(inputs: np.ndarray, device: torch.device, work: torch.dtype) -> Tensor:
    """Channels first, uint8 kept, floats in ``work``."""
    if inputs.ndim == 3:
        inputs = inputs[..., None]
    if inputs.ndim == 4:
        inputs = np.moveaxis(inputs, 3, 1)
    if inputs.dtype == np.uint8:
        # writable, though nothing writes: torch warns of arrays that are not, such as one mapped from a file
        return torch.from_numpy(np.require(inputs, requirements=["C", "W"])).to(device)
    # through float64, in C order: files may hold other byte orders and widths, which torch does not read
    return torch.from_numpy(np.array(inputs, dtype=np.float64, order="C")).to(work).to(device)


def _targets(targets: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    if targets.dtype.kind == "f":
        return torch.from_numpy(targets.reshape(len(targets), -1).astype(np.float64)).to(dtype).to(device)
    return torch.from_numpy(targets.astype(np.int64)).to(device)


def build_tabular(options: Tabular, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """One of the tables, the test part held out first.

    Targets of a regression are centred and divided by their deviation over the samples beside the test part.
    """
    from sklearn import datasets

    stored = getattr(datasets, f"load_{options.table}")()
    features, targets = stored.data.astype(np.float64), stored.target
    rest, test = divide(len(features), options.test, None, options.split_seed)
    if targets.dtype.kind == "f":
        targets = (targets - targets[rest].mean()) / targets[rest].std()
    arrays = Arrays(features[rest], targets[rest], features[test], targets[test])
    check(arrays, f"data.table={options.table}")
    return assemble(options, arrays, device=device, dtype=dtype, seed=seed)
