"""Commands run in forks of this process, which has imported everything, so that they start at once."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

PATIENCE = 120.0
"""Seconds after which a command counts as hanging."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal that ended it, and its output."""

    code: int
    err: str
    seconds: float

    @property
    def clear(self) -> bool:
        """Whether an error, if there was one, was reported in one message without a traceback."""
        return "Traceback" not in self.err and self.err.count("gnewton: ") == (
            self.code not in (0, -signal.SIGKILL)
        )


@dataclass
class Count:
    """Faults of one kind: how many were injected, how many survived, and what went wrong with the others."""

    injected: int = 0
    survived: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, survived: bool, otherwise: str = "") -> None:
        """Count one fault."""
        self.injected += 1
        self.survived += survived
        if not survived:
            self.failures.append(otherwise)


def warm_up(folder: Path) -> None:
    """Import and trace once what every fork needs; no thread may remain: forks would inherit its locks."""
    tqdm.monitor_interval = 0
    for optimizer in ("grouped_newton", "kfac"):
        gnewton([*small(optimizer), "trainer.epochs=1", f"output_root={folder / 'warm'}"], folder)


def small(optimizer: str = "grouped_newton") -> list[str]:
    """Overrides of a tiny run on the embedded digits: 3 steps an epoch (L-BFGS: 1)."""
    tiny = [f"optimizer={optimizer}", "model.widths=[8]", "data.subset=60", "trainer.device=cpu"]
    tiny += [] if optimizer == "lbfgs" else ["trainer.batch_size=20"]
    if optimizer == "grouped_newton":
        tiny += ["optimizer.curvature.source=independent", "optimizer.curvature.batch_size=20"]
        tiny += ["optimizer.period=2"]
    return tiny


def gnewton(arguments: Sequence[str], folder: Path) -> Ended:
    """``gnewton train ARGUMENTS`` in this process, in ``folder``."""
    started = time.perf_counter()
    with within(folder), _captured(folder / ".said"):
        code = _main(arguments)
    return Ended(code, (folder / ".said").read_text(encoding="utf-8"), time.perf_counter() - started)


def fork(
    arguments: Sequence[str],
    folder: Path,
    *,
    number: int = signal.SIGKILL,
    after: float | None = None,
    before: Callable[[], object] = lambda: None,
) -> Ended:
    """``gnewton train ARGUMENTS`` in a fork, in ``folder``.

    Args:
        arguments: overrides.
        folder: working directory.
        number: signal to send it.
        after: seconds after which it is sent; None: never.
        before: called in the fork before the command, to break something there and nowhere else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / f".said-{os.getpid()}-{time.monotonic_ns()}"
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _become(arguments, folder, said, before)
        finally:  # whatever is raised, a full disk or a late signal, the fork must not go on as its parent
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, number)
    code = os.waitstatus_to_exitcode(_wait(child))
    err = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
    said.unlink(missing_ok=True)
    return Ended(code, err, time.perf_counter() - started)


def put(owner: Any, **parts: Any) -> None:
    """Replace attributes of a class or a module, in a fork, where nothing else sees it."""
    for name, part in parts.items():
        setattr(owner, name, part)


def moments(count: int, longest: float, seed: int) -> list[float]:
    """``count`` random delays from 0 to ``longest`` seconds."""
    draw = random.Random(seed)
    return [draw.uniform(0.0, longest) for _ in range(count)]


def _wait(child: int) -> int:
    """The wait status of a fork; one that hangs is aborted, a status that no caller accepts."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGABRT)
    return os.waitpid(child, 0)[1]


def _become(arguments: Sequence[str], folder: Path, said: Path, before: Callable[[], object]) -> int:
    code = 70
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.chdir(folder)
        # the default lock is shared by all forks: one killed with it would stop the others
        tqdm.set_lock(threading.RLock())
        before()
        code = _main(arguments)
    except BaseException:
        traceback.print_exc()
    with suppress(OSError):  # of a disk that is full
        sys.stderr.flush()
    return code


def _main(arguments: Sequence[str]) -> int:
    from gnewton.cli.main import main

    return main(["train", *arguments])


@contextmanager
def within(folder: Path) -> Iterator[None]:
    """The working directory is ``folder`` within the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _captured(path: Path) -> Iterator[None]:
    before = sys.stdout, sys.stderr
    with path.open("w", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
