"""How a sweep asks its jobs to stop, wherever they run: by a file that whoever runs a job looks for."""

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
class Stop:
    """The file of one invocation of a sweep; a later one has another, so old requests do not count."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> Stop:
        """A request that has not been made yet, to the jobs of the sweep in ``folder``."""
        return cls(folder / f".stop-{uuid.uuid4().hex}")

    def request(self, *, kill: bool = False) -> None:
        """Ask all jobs to finish their step, write a checkpoint and end; ``kill``: to end at once."""
        self.path.write_text(_KILL if kill else "stop", encoding="utf-8")

    @property
    def requested(self) -> bool:
        """Whether the jobs are asked to stop."""
        return self.path.exists()

    @property
    def kills(self) -> bool:
        """Whether they are not even given time for a checkpoint."""
        try:
            return self.path.read_text(encoding="utf-8") == _KILL
        except OSError:
            return False


class StopOnSignals:
    """Within the block SIGINT, SIGTERM, SIGUSR1 and SIGHUP make the request; :attr:`received` is the first.

    A second SIGINT does not give the jobs time for a checkpoint. A signal that is ignored stays so, as under
    ``nohup``.
    """

    def __init__(self, stop: Stop) -> None:
        self.received: int | None = None
        self._stop = stop
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopOnSignals:
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *reason: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._stop.path.unlink(missing_ok=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stop.request(kill=self.received is not None and number == signal.SIGINT)
        self.received = self.received or number


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes that are started within the block ignore SIGINT, which a terminal sends to all of them.

    The sweep gets it too and passes the request on in its own way.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
