"""The request to stop a sweep: a file, so that jobs see it in any process and on any machine."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_KILL = "kill"


@dataclass(frozen=True)
class StopRequest:
    """The file through which one invocation of a sweep asks its jobs to stop.

    Each invocation has a file of its own, so that a request to an earlier one has no effect.
    """

    path: Path

    @classmethod
    def of(cls, folder: Path) -> StopRequest:
        """A request, not yet made, to the jobs of the sweep in ``folder``."""
        return cls(folder / f".stop-{uuid.uuid4().hex}")

    def request(self, *, kill: bool = False) -> None:
        """Ask all jobs to finish their step, write a checkpoint and end; ``kill``: to end at once."""
        self.path.write_text(_KILL if kill else "stop", encoding="utf-8")

    @property
    def requested(self) -> bool:
        """Whether the jobs shall stop."""
        return self.path.exists()

    @property
    def kills(self) -> bool:
        """Whether the jobs shall stop without a checkpoint."""
        try:
            return self.path.read_text(encoding="utf-8") == _KILL
        except OSError:
            return False


class StopOnSignals:
    """Within the block, SIGINT, SIGTERM, SIGUSR1 and SIGHUP make the request; :attr:`received` is the first.

    A second SIGINT kills the jobs. A signal that was ignored before stays ignored, as under ``nohup``.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.received: int | None = None
        self._stop = stop
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> StopOnSignals:
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *reason: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._stop.path.unlink(missing_ok=True)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._stop.request(kill=self.received is not None and number == signal.SIGINT)
        self.received = self.received or number


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes started within the block ignore SIGINT, which a terminal sends to the whole process group.

    The sweep receives the signal too and passes the request on through its file.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
