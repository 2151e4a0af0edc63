"""Checkpoints: written aside, synced, then renamed, so that the file in place is always whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from gnewton.errors import InputError

LAST = "last.pt"
BEST = "best.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically: the file is the old one or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors onto the CPU; nothing in the file can run code.

    Raises:
        InputError: if the file is missing, truncated or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"checkpoint {path}: cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or "model" not in state:
        raise InputError(f"checkpoint {path}: it holds no model")
    return state
