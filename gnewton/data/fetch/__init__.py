"""Obtain a public data set once, verify it, and keep it in a local cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gnewton.errors import InputError
from gnewton.options import did_you_mean, listing, user_path

if TYPE_CHECKING:
    from gnewton.data.arrays import Arrays


def available() -> list[str]:
    """Names of the sets that can be fetched, sorted."""
    from gnewton.data.fetch.catalogue import CATALOGUE

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
    from gnewton.data.fetch.cache import cached_file

    load(name, root)
    return cached_file(name, user_path(root))


def load(name: str, root: str | Path) -> Arrays:
    """Like :func:`fetch`, but returns the verified arrays: (N, H, W[, C]) uint8 and (N,) uint8 labels."""
    from gnewton.data.fetch.catalogue import CATALOGUE
    from gnewton.data.fetch.obtain import obtain

    if name not in CATALOGUE:
        known = available()
        raise InputError(
            f"'{name}' cannot be fetched: must be one of {listing(known)}{did_you_mean(name, known)}"
        )
    return obtain(CATALOGUE[name], user_path(root))
