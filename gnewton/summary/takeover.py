"""The reference engine takes over where a traced one fails: which failures count, and the line in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from gnewton.backend import is_exhausted
from gnewton.errors import GnewtonError, InputError, OutOfMemory, first_line
from gnewton.summary.batch import hidden
from gnewton.summary.problem import Request
from gnewton.summary.tangent.program import TraceError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Takeover:
    """Asks the traced engine, and says once for each reason that the reference engine takes over.

    Args:
        task: what is computed, the first word of the message.
        engine: with any other than "auto" the error of the traced engine is raised.
    """

    def __init__(self, task: str, engine: str) -> None:
        self._task = task
        self._engine = engine
        self._reasons: set[str] = set()

    def attempt(self, request: Request, function: Callable[[], T]) -> tuple[T | None, str]:
        """What ``function`` computes by the traced engine, or None and the reason why it cannot.

        Wrong arguments and exhausted memory are raised: the reference engine would not help.
        """
        try:
            if stranger := hidden(request.batch):
                raise TraceError(f"the batch holds a {stranger}, whose tensors a trace cannot see")
            return function(), ""
        except (InputError, OutOfMemory):
            raise
        except Exception as error:
            if self._engine != "auto" or is_exhausted(error):
                raise
            reason = str(error) if isinstance(error, GnewtonError) else first_line(error, with_type=True)
        if reason not in self._reasons:
            self._reasons.add(reason)
            log.warning("%s: the reference engine takes over: %s", self._task, reason)
        return None, reason
