"""What a check answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from gnewton.errors import first_line


class Level(Enum):
    """How a finding is to be taken."""

    GOOD = "ok"
    WARNING = "warning"
    BROKEN = "BROKEN"


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        level: how it is to be taken.
        subject: what was looked at.
        message: what was found, and what to do about it where something is wrong.
    """

    level: Level
    subject: str
    message: str


Check = Callable[[], Iterator[Finding]]


def examine(title: str, check: Check) -> list[Finding]:
    """Run one check; what it raises is a finding too."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:  # whatever it is, the examination goes on
        found.append(
            Finding(Level.BROKEN, title, f"the check ended in {type(error).__name__}: {first_line(error)}")
        )
    return found
