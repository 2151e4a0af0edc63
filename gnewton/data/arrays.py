"""The arrays of a data set as they come from a file, and their check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from gnewton.errors import InputError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Arrays:
    """A training part and a test part.

    Attributes:
        x_train: (N, H, W) or (N, H, W, C) uint8 pixels, or (N, …) floats.
        y_train: (N,) integer labels, or (N,) or (N, d) float targets.
        x_test: like ``x_train``.
        y_test: like ``y_train``.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) pairs."""
        return ((entry.name, getattr(self, entry.name)) for entry in fields(self))


_LARGEST = 3.4e38  # of float32

NAMES = tuple(entry.name for entry in fields(Arrays))


def check(arrays: Arrays, where: str) -> None:
    """Refuse arrays that no model could learn from.

    Args:
        arrays: those read from the file.
        where: the file, for the message.

    Raises:
        InputError: naming the file, the array and its fault.
    """
    for problem in _problems(arrays):
        raise InputError(f"{where}: {problem}")


def _problems(arrays: Arrays) -> Iterator[str]:
    yield from _input_problems("x_train", arrays.x_train)
    yield from _input_problems("x_test", arrays.x_test)
    if arrays.x_train.shape[1:] != arrays.x_test.shape[1:] or arrays.x_train.dtype != arrays.x_test.dtype:
        yield (
            f"a sample of x_train is {_kind(arrays.x_train)} and one of x_test {_kind(arrays.x_test)}: "
            "they must be alike"
        )
    for part, inputs, targets in (
        ("train", arrays.x_train, arrays.y_train),
        ("test", arrays.x_test, arrays.y_test),
    ):
        if targets.ndim == 0 or len(targets) != len(inputs):
            length = "no" if targets.ndim == 0 else str(len(targets))
            yield f"x_{part} holds {len(inputs)} samples and y_{part} {length} targets"
        yield from _target_problems(f"y_{part}", targets)
    if arrays.y_train.dtype.kind == "f" or arrays.y_test.dtype.kind == "f":
        if (arrays.y_train.dtype.kind, arrays.y_train.shape[1:]) != (
            arrays.y_test.dtype.kind,
            arrays.y_test.shape[1:],
        ):
            yield f"a target of y_train is {_kind(arrays.y_train)} and one of y_test {_kind(arrays.y_test)}"
        return
    classes = int(arrays.y_train.max()) + 1
    if classes < 2:
        yield "y_train holds one class only: labels must be 0 … K-1 with K >= 2"
    if classes > len(arrays.y_train):
        yield f"y_train: label {classes - 1} is out of range: {len(arrays.y_train)} samples, labels 0 … K-1"
    if int(arrays.y_test.max()) >= classes:
        yield f"y_test: label {arrays.y_test.max()} is out of range: y_train has labels 0 … {classes - 1}"


def _input_problems(name: str, inputs: np.ndarray) -> Iterator[str]:
    if not 2 <= inputs.ndim <= 4:
        yield f"{name} has shape {inputs.shape}: must be (N, features), (N, H, W) or (N, H, W, C)"
    if inputs.size == 0:
        yield f"{name} is empty: shape {inputs.shape}"
    if inputs.dtype.kind == "f":
        if not _finite(inputs):
            yield f"{name} holds values that are not finite"
    elif inputs.dtype != "uint8":
        yield f"{name} is {inputs.dtype}: must be uint8 (pixels) or a float type (features)"


def _target_problems(name: str, targets: np.ndarray) -> Iterator[str]:
    if targets.dtype.kind == "f":
        if targets.ndim > 2 or targets.size == 0:
            yield f"{name} has shape {targets.shape}: float targets must be (samples,) or (samples, d)"
        if not _finite(targets):
            yield f"{name} holds values that are not finite"
    elif targets.dtype.kind in "iu":
        if targets.ndim != 1:
            yield f"{name} has shape {targets.shape}: integer labels must be (samples,)"
        if targets.min() < 0:
            yield f"{name}: label {targets.min()} is out of range: labels must be >= 0"
    else:
        yield f"{name} is {targets.dtype}: must be integers (labels) or floats (targets)"


def _finite(values: np.ndarray) -> bool:
    """Whether all values are finite numbers, in float32 too."""
    return all(abs(float(bound)) < _LARGEST for bound in (values.min(), values.max()))


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape[1:]}"
