"""The folder of a run: created atomically, locked while a process runs in it, with its log."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gnewton.errors import Diverged, GnewtonError, InputError, Interrupted
from gnewton.experiment.schema import options_with
from gnewton.options import Role
from gnewton.runfiles import DIVERGED, FAILED, INTERRUPTED, LOG_FILE, RESULT_FILE

log = logging.getLogger("gnewton")

PATIENCE = 8.0
"""Seconds to wait for a lock: torch's data workers notice within five that their parent is gone."""

_STATUS = {Diverged: DIVERGED, Interrupted: INTERRUPTED, KeyboardInterrupt: INTERRUPTED}
"""Status of a run by the error that ended it; any other error: failed."""


def config_hash(config: DictConfig) -> str:
    """Eight hexadecimal digits that change with any option but the output root and the loggers."""
    content = resolved(config)
    for key in options_with(Role.OUTPUT):
        content.pop(key, None)
    return digest_of(content)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The options as plain values, a new dictionary."""
    content: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    return content


def digest_of(content: dict[str, Any]) -> str:
    """Eight hexadecimal digits that change with any value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def dotted(config: DictConfig) -> dict[str, Any]:
    """Every option by its full name; a list is one value."""

    def flat(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(flat(resolved(config), ""))


def create_run_folder(root: Path, digest: str) -> Path:
    """Create ``root/<timestamp with microseconds>_<digest>`` as a new, empty folder.

    ``mkdir`` either creates it or fails, so two runs that start in the same microsecond never share one.

    Raises:
        InputError: if ``root`` cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            folder = root / f"{datetime.now():%Y%m%d-%H%M%S-%f}_{digest}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise InputError(f"output_root: {root} cannot be written ({error.strerror})") from error


@contextmanager
def held(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a run folder within the block: no other process may run in it meanwhile.

    The system releases the lock however the process ends, so that a killed run can be resumed at once. If
    folders cannot be locked (Windows, some network file systems), the block protects nothing.

    Args:
        folder: the run folder.
        patience: seconds to wait for a process that holds it, such as a data worker of a killed run.

    Raises:
        InputError: if another process keeps running there.
    """
    deadline = time.monotonic() + patience
    while (descriptor := try_hold(folder)) is None:
        if time.monotonic() >= deadline:
            raise InputError(f"resume={folder}: this run is still under way in another process")
        time.sleep(0.05)
    try:
        yield
    finally:
        os.close(descriptor)


def try_hold(path: Path) -> int | None:
    """Hold a folder or file if no other process does, see :func:`held`.

    Returns:
        a descriptor; ``path`` is held until it is closed here and in every process that has inherited it.
        None if another process holds it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    if _lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    """Take the lock; False if another process holds it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: the old one stays until the new one is safe on the disk."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def failure_recorded(folder: Path | None, step: Callable[[], int]) -> Iterator[None]:
    """Note in result.json and train.log how the block failed, whatever the reason, and after which step."""
    try:
        yield
    except BaseException as error:
        if folder is None:
            raise
        status = next((name for kind, name in _STATUS.items() if isinstance(error, kind)), FAILED)
        message = str(error) or type(error).__name__
        with suppress(OSError):  # the disk may be what failed
            write_json(folder / RESULT_FILE, {"status": status, "step": step(), "message": message})
            log.error("%s: %s", status, message)
        raise


@contextmanager
def disk_errors_explained(folder: Path | None) -> Iterator[None]:
    """One message for an error of the file system: a full disk, missing permissions, a folder that is gone.

    Raises:
        GnewtonError: in place of the error, naming the run folder, or the file if it lies elsewhere.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or folder is None:
            raise
        name = error.filename
        elsewhere = name is not None and not Path(str(name)).absolute().is_relative_to(folder.absolute())
        place, problem = (name, "cannot be read") if elsewhere else (folder, "cannot be written")
        raise GnewtonError(f"{place}: {problem} ({error.strerror})") from error


class _LogFile(logging.FileHandler):
    """train.log; its lines may be lost on a full disk, where the CSV logs fail with a message."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Stay silent; logging itself would print a traceback for each line."""

    def close(self) -> None:
        """Close, even if the last lines cannot be written."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_file(folder: Path | None) -> Iterator[None]:
    """Within the block the log goes to train.log as well; without a folder nothing is logged at all."""
    if folder is None:
        log.disabled = True
        try:
            yield
        finally:
            log.disabled = False
        return
    handler = _LogFile(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()
