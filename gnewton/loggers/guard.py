"""Several loggers as one, whose failures end nothing but themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gnewton.errors import first_line
from gnewton.loggers.base import Logger, RunCard

log = logging.getLogger("gnewton")


class GuardedLoggers(Logger):
    """Hands everything to each of its loggers. One that raises is warned about once, and left alone then.

    Args:
        loggers: by name.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._loggers = dict(loggers)

    def start(self, card: RunCard) -> None:
        """See :meth:`Logger.start`."""
        self._each(lambda logger: logger.start(card))

    def metrics(self, row: Mapping[str, Any]) -> None:
        """See :meth:`Logger.metrics`."""
        self._each(lambda logger: logger.metrics(row))

    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See :meth:`Logger.rates`."""
        self._each(lambda logger: logger.rates(rows))

    def finish(self, ended_well: bool) -> None:
        """See :meth:`Logger.finish`."""
        self._each(lambda logger: logger.finish(ended_well))

    @contextmanager
    def reporting(self, card: RunCard) -> Iterator[None]:
        """Start before the block, and finish after it, however it ends."""
        self.start(card)
        try:
            yield
        except BaseException:
            self.finish(ended_well=False)
            raise
        self.finish(ended_well=True)

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # noqa: PERF203 - a service that is away must not cost a run
                del self._loggers[name]
                log.warning("logger %s failed and is left out from here on: %s", name, first_line(error))
