"""The options of a file of one's own, apart from how it is read."""

from __future__ import annotations

from dataclasses import dataclass

from gnewton.data.in_memory import InMemoryRecipe
from gnewton.options import Role, option

AUTO, CHANNELS_FIRST, CHANNELS_LAST = "auto", "channels_first", "channels_last"


@dataclass(kw_only=True)
class NpzOptions(InMemoryRecipe):
    """Where the file is, and how images lie in it."""

    path: str = option(role=Role.PLACE)
    layout: str = option(choices=(AUTO, CHANNELS_FIRST, CHANNELS_LAST), default=CHANNELS_LAST)
