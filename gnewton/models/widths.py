"""The shorthand for lists of layer widths: ``1024`` is one layer, ``20*1024`` is twenty."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gnewton.errors import InputError

ALLOWED = "widths are whole numbers such as 200, or '20*1024' for twenty layers of 1024"

# At most 9,999 layers of at most 9,999,999 units, so that a typing error does not fill the memory.
_ENTRY = re.compile(r"(?:([1-9][0-9]{0,3}) *\* *)?([1-9][0-9]{0,6})")


def expand_widths(entries: Sequence[str | int]) -> list[int]:
    """Widths of the layers that ``entries`` stand for, in order.

    Raises:
        InputError: naming the entry that is neither a width nor a shorthand.
    """
    for complaint in width_complaints(entries):
        raise InputError(complaint)
    widths: list[int] = []
    for entry in entries:
        match = _match(entry)
        if match is not None:
            widths += [int(match[2])] * int(match[1] or 1)
    return widths


def width_complaints(entries: Sequence[str | int]) -> Iterator[str]:
    """One message per entry that is neither a width nor a shorthand."""
    for entry in entries:
        if _match(entry) is None:
            yield f"'{entry}' is not a width; {ALLOWED}"


def _match(entry: str | int) -> re.Match[str] | None:
    return _ENTRY.fullmatch(str(entry).strip())
