"""The data set in a user's .npz file, of which nothing is taken on trust."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from gnewton.data import DataSet
from gnewton.data.arrays import NAMES, Arrays, check
from gnewton.data.assemble import assemble
from gnewton.data.dataset_options import AUTO, CHANNELS_FIRST, CHANNELS_LAST, Npz
from gnewton.data.public_sets import Unavailable, names_in, read
from gnewton.errors import InputError
from gnewton.options import did_you_mean, listing, user_path

MOST_CHANNELS = 4
"""Grey or colours, with or without opacity: an axis of at most this length may be the channels."""


def build_npz(options: Npz, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """The three splits of the file, with remarks on what looks odd in it."""
    stored = read_npz(options.path)
    arrays, remarks = channels_last(stored, options.layout)
    remarks = [f"data.path={options.path}: {text}" for text in (*remarks, *label_remarks(arrays))]
    return assemble(
        options,
        arrays,
        device=device,
        dtype=dtype,
        seed=seed,
        remarks=tuple(remarks),
        digest=digest_of(stored),
    )


def read_npz(path: str) -> Arrays:
    """The four arrays of the file, checked. Other arrays in it are not read.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    file = user_path(path)
    try:
        arrays = read(file, NAMES)
    except Unavailable as error:
        raise InputError(f"data.path={path}: {error}") from error
    for name in NAMES:
        if name not in arrays:
            stored_names = names_in(file)
            raise InputError(
                f"data.path={path}: lacks the array {name}; it holds {listing(stored_names) or 'nothing'}"
                f"{did_you_mean(name, [entry for entry in stored_names if entry not in NAMES])}"
            )
    whole = Arrays(**arrays)
    check(whole, f"data.path={path}")
    return whole


def digest_of(arrays: Arrays) -> str:
    """Sixteen hexadecimal digits that change with any number of the arrays, its type and its place."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def channels_last(arrays: Arrays, layout: str) -> tuple[Arrays, list[str]]:
    """The arrays with images as (N, H, W, C), and a remark where the layout was guessed.

    Args:
        arrays: checked.
        layout: how images lie in them. ``AUTO``: channels first where the second axis could be channels and
            the last one could not.

    Raises:
        InputError: if a layout is given for inputs that have no axis of channels.
    """
    shape = arrays.x_train.shape
    if len(shape) != 4:
        if layout == CHANNELS_FIRST:
            raise InputError(
                f"data.layout={layout}: has no effect, a sample of shape {shape[1:]} has no axis of channels"
            )
        return arrays, []
    first = layout == CHANNELS_FIRST
    remarks = []
    if layout == AUTO and shape[3] > MOST_CHANNELS:
        first = shape[1] <= MOST_CHANNELS
        axes = "(channels, height, width)" if first else "(height, width, channels)"
        remarks = [
            f"images of shape {shape[1:]} are taken as {axes}; "
            f"data.layout={CHANNELS_FIRST if first else CHANNELS_LAST} says so, "
            f"data.layout={CHANNELS_LAST if first else CHANNELS_FIRST} the contrary"
        ]
    if not first:
        return arrays, remarks
    moved = {name: np.moveaxis(getattr(arrays, name), 1, 3) for name in ("x_train", "x_test")}
    return replace(arrays, **moved), remarks


def label_remarks(arrays: Arrays) -> Iterator[str]:
    """Labels below the largest one that never occur in training: the model has an output for each."""
    if arrays.y_train.dtype.kind == "f":
        return
    classes = int(arrays.y_train.max()) + 1
    missing = np.setdiff1d(np.arange(classes), arrays.y_train)
    if len(missing):
        names = listing([str(label) for label in missing], 5)
        who = f"label {names} never occurs" if len(missing) == 1 else f"labels {names} never occur"
        counted = "; labels are counted from 0" if missing[0] == 0 else ""
        yield (
            f"y_train: of the {classes} classes 0 … {classes - 1}, {who}{counted}; "
            "number the classes 0 … K-1 to leave out what is not there"
        )
