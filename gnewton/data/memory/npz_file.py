"""Reading a user's .npz file, trusting nothing in it."""

from __future__ import annotations

from pathlib import Path

from gnewton.data.arrays import NAMES, Arrays, check
from gnewton.data.fetch.cache import Unavailable, read
from gnewton.errors import InputError
from gnewton.options import did_you_mean, listing


def read_npz(path: str) -> Arrays:
    """The four arrays of the file, checked.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    file = Path(path).expanduser()
    try:
        found = read(file)
    except Unavailable as error:
        raise InputError(f"data.path={path}: {error}") from error
    for name in NAMES:
        if name not in found:
            raise InputError(
                f"data.path={path}: lacks the array {name}; it holds {listing(list(found)) or 'nothing'}"
                f"{did_you_mean(name, [entry for entry in found if entry not in NAMES])}"
            )
    arrays = Arrays(**{name: found[name] for name in NAMES})
    check(arrays, f"data.path={path}")
    return arrays
