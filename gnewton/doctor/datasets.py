"""Which public data sets lie in the data folder, and whether they are what they should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gnewton.data.fetch import available
from gnewton.data.fetch.cache import Unavailable, cached_file, read_cached
from gnewton.data.fetch.catalogue import CATALOGUE
from gnewton.doctor.finding import Finding, Level


def datasets(root: Path) -> Iterator[Finding]:
    """Every set that can be fetched: verified, damaged, or not there yet."""
    missing = []
    for name in available():
        path = cached_file(name, root)
        if not path.exists():
            missing.append(name)
            continue
        try:
            read_cached(CATALOGUE[name], root)
        except Unavailable as error:
            yield Finding(
                Level.WARNING, f"data={name}", f"{error}; gnewton data fetch {name} obtains it anew"
            )
        else:
            how = "against published digests" if CATALOGUE[name].digests else "against its own digests"
            yield Finding(Level.GOOD, f"data={name}", f"{path}, verified {how}")
    if missing:
        where = "not there yet; the first run that needs one fetches it, or gnewton data fetch NAME"
        yield Finding(Level.GOOD, f"data in {root}", f"{', '.join(missing)}: {where}")
