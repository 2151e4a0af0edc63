"""How many cases a test tries: few, or many with ``GNEWTON_THOROUGH=1`` (``make thorough``)."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("GNEWTON_THOROUGH", "") not in ("", "0")


def count(few: int, many: int) -> int:
    """``few``, or ``many`` in thorough tests."""
    return many if THOROUGH else few
