"""Checkpoints: written atomically, checked when read, the newest sound one taken when a run is resumed."""

from __future__ import annotations

import logging
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from gnewton.errors import InputError, first_line
from gnewton.runfiles import CHECKPOINT_FOLDER, LAST, PREVIOUS

log = logging.getLogger("gnewton")

_MISMATCHES = {
    "format": "it is of checkpoint format {theirs}, this program writes format {ours}",
    "version": "it was written by gnewton {theirs}, this is {ours}",
    "config": "it belongs to another configuration ({theirs}, not {ours})",
    "device": "it was written on {theirs}, this run is on {ours}, whose random numbers differ",
    "processes": "it was written by {theirs} processes, these are {ours}; start as many",
}
"""Messages for entries of a checkpoint's identity that are not those of the run."""


def save_checkpoint(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """Write ``state`` to ``path`` atomically: the file is the old one or the new one, never a part of one.

    Args:
        path: the checkpoint.
        state: what ``torch.load(…, weights_only=True)`` can read: tensors, numbers, texts, containers.
        keep: where the file that was at ``path`` is kept, in place of an older one; None: it is replaced.
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
        reason = first_line(error, with_type=True)  # torch adds a page of advice
        raise InputError(f"checkpoint {path}: cannot be read ({reason})") from error
    if not isinstance(state, dict) or "model" not in state:
        raise InputError(f"checkpoint {path}: it holds no model")
    return state


def restore_newest(folder: Path, identity: dict[str, str], restore: Callable[[dict[str, Any]], None]) -> bool:
    """Hand the newest sound checkpoint of a run folder to ``restore``.

    A checkpoint that is damaged, that belongs to another configuration, version or device, or that
    ``restore`` refuses is passed over with a line in the log, and the one before it is taken.

    Args:
        folder: the run folder.
        identity: entries that the checkpoint's identity must have.
        restore: takes up the state; where it raises, it has changed nothing that a second call does not set.

    Returns:
        False if the folder holds no checkpoint yet, so that the run starts from its beginning.

    Raises:
        InputError: if there are checkpoints and none is sound; one line each.
    """
    reasons = []
    for path in (folder / CHECKPOINT_FOLDER / name for name in (LAST, PREVIOUS)):
        if not path.exists():
            continue
        try:
            state = load_checkpoint(path)
            _check_identity(path, state, identity)
            _restore(path, state, restore)
        except InputError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            log.warning("%s; the one before it is taken", reason)
        log.info("resumed from %s: epoch %d, step %d", path, state["epoch"], state["step"])
        return True
    if reasons:
        raise InputError("\n".join(reasons))
    log.info("no checkpoint in %s yet: the run starts from its beginning", folder)
    return False


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of the global random streams of Python, NumPy, torch and a CUDA ``device``."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        # as a tensor: loading with weights_only knows no arrays
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Continue every stream from what :func:`random_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished checkpoints that a killed process left in ``folder``."""
    for path in folder.glob(".*.pt.*"):
        path.unlink(missing_ok=True)


def _check_identity(path: Path, state: dict[str, Any], identity: dict[str, str]) -> None:
    theirs = state.get("identity")
    theirs = theirs if isinstance(theirs, dict) else {}
    for key, ours in identity.items():
        if theirs.get(key) != ours:
            reason = _MISMATCHES.get(key, f"its {key} is {{theirs}}, not {{ours}}")
            reason = reason.format(theirs=theirs.get(key, "unknown"), ours=ours)
            raise InputError(f"checkpoint {path}: {reason}")


def _restore(path: Path, state: dict[str, Any], restore: Callable[[dict[str, Any]], None]) -> None:
    try:
        restore(state)
    except (InputError, KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            reason = first_line(error)
        else:
            reason = f"it lacks or garbles a part ({first_line(error, with_type=True)})"
        raise InputError(f"checkpoint {path}: {reason}") from error


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    """Serialise into ``file``. torch hides a full disk behind an error of its own; raise the one beneath."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _damaged(path: Path) -> str | None:
    """The first entry whose checksum is wrong, or None; torch does not check them."""
    if not zipfile.is_zipfile(path):
        return None  # torch.load reports it
    with zipfile.ZipFile(path) as file:
        return file.testzip()


def _keep(path: Path, keep: Path) -> None:
    """Give the file at ``path`` a second name, so that a whole file is at ``path`` at every moment."""
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
