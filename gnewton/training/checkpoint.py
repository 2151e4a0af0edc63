"""Checkpoints: written aside, synced, then renamed, so that the file in place is always whole."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gnewton.errors import InputError


def save_checkpoint(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """Write ``state`` to ``path`` atomically: the file is the old one or the new one, never a part.

    Args:
        path: where to.
        state: what ``torch.load(…, weights_only=True)`` can read: tensors, numbers, texts, containers.
        keep: a name under which the file that was at ``path`` stays, in place of an older one.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            _write(state, file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _keep(path, keep)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors onto the CPU; nothing in the file can run code.

    Raises:
        InputError: if the file is missing, truncated, damaged or not a checkpoint.
    """
    try:
        damaged = _damaged(path)
        if damaged is not None:
            raise InputError(f"checkpoint {path}: cannot be read (damaged: {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]  # torch adds a page of advice
        raise InputError(f"checkpoint {path}: cannot be read ({type(error).__name__}: {reason})") from error
    if not isinstance(state, dict) or "model" not in state:
        raise InputError(f"checkpoint {path}: it holds no model")
    return state


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process had written aside in ``folder``."""
    for left in folder.glob(".*.pt.*"):
        left.unlink(missing_ok=True)


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    """Serialise into ``file``; torch's writer hides a full disk behind an error of its own."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _damaged(path: Path) -> str | None:
    """The first entry whose checksum is wrong, which torch does not look at; None: all is well."""
    if not zipfile.is_zipfile(path):
        return None  # torch says what is wrong with it
    with zipfile.ZipFile(path) as file:
        return file.testzip()


def _keep(path: Path, keep: Path) -> None:
    """Give the file at ``path`` a second name, so that there is a whole one at ``path`` at every moment."""
    aside = keep.with_name(f".{keep.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except OSError:  # a file system without hard links
        path.replace(aside)
    aside.replace(keep)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
