"""Decoders of the files in which sets are distributed. Every header is checked against the content."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import zlib
from collections.abc import Callable

import numpy as np

from gnewton.data.arrays import Arrays
from gnewton.data.fetch.cache import Unavailable
from gnewton.data.fetch.catalogue import IDX_FILES

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
