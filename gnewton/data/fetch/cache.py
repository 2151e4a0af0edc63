"""The local cache: one .npz file per set, written atomically, and verified whenever it is read."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gnewton.data.arrays import NAMES, Arrays

if TYPE_CHECKING:
    from gnewton.data.fetch.catalogue import PublicSet

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
