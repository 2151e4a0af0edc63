"""Sets through torchvision: folders it left earlier, its archives put by hand, and its downloads.

torchvision checks the MD5 sum of an archive before it unpickles what is inside; nothing else is unpickled.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pickle
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gnewton.data.arrays import Arrays
from gnewton.data.fetch.cache import Unavailable

if TYPE_CHECKING:
    from gnewton.data.fetch.catalogue import PublicSet

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
                pass  # an answer, if not a welcome: the download will say more
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
