"""Continue a run from the newest of its checkpoints that can be trusted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnewton.errors import InputError
from gnewton.runfiles import CHECKPOINT_FOLDER, LAST, PREVIOUS
from gnewton.training.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from gnewton.training.recoverable import Resumable

log = logging.getLogger("gnewton")

_WORDS = {
    "format": "it is of checkpoint format {theirs}, this program writes format {ours}",
    "version": "it was written by gnewton {theirs}, this is {ours}",
    "config": "it belongs to another configuration ({theirs}, not {ours})",
    "device": "it was written on {theirs}, this run is on {ours}, whose random numbers differ",
    "processes": "it was written by {theirs} processes, these are {ours}; start as many",
}


def resume(trainer: Resumable, folder: Path) -> bool:
    """Put ``trainer`` into the state of the newest sound checkpoint of a run folder.

    A checkpoint that is damaged, of another configuration, version or device, or whose rows in the logs are
    gone is passed over with a line in the log, and the one before it is taken.

    Args:
        trainer: built as for the run in ``folder``, not yet started.
        folder: the run folder.

    Returns:
        False where there is no checkpoint at all, so that the run starts from its beginning.

    Raises:
        InputError: if there are checkpoints and none is sound; one line each.
    """
    paths = [folder / CHECKPOINT_FOLDER / name for name in (LAST, PREVIOUS)]
    reasons = []
    for path in paths:
        if not path.exists():
            continue
        try:
            state = load_checkpoint(path)
            _agree(path, state, trainer.identity)
            _load(path, state, trainer)
        except InputError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            log.warning("%s; the one before it is taken", reason)
        log.info("resumed from %s: epoch %d, step %d", path, trainer.epoch, trainer.step)
        return True
    if reasons:
        raise InputError("\n".join(reasons))
    log.info("no checkpoint in %s yet: the run starts from its beginning", folder)
    return False


def _agree(path: Path, state: dict[str, Any], identity: dict[str, str]) -> None:
    theirs = state.get("identity")
    theirs = theirs if isinstance(theirs, dict) else {}
    for key, ours in identity.items():
        if theirs.get(key) != ours:
            reason = _WORDS.get(key, f"its {key} is {{theirs}}, not {{ours}}")
            reason = reason.format(theirs=theirs.get(key, "unknown"), ours=ours)
            raise InputError(f"checkpoint {path}: {reason}")


def _load(path: Path, state: dict[str, Any], trainer: Resumable) -> None:
    try:
        trainer.load_state_dict(state)
    except (InputError, KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        if not isinstance(error, InputError):
            reason = f"it lacks or garbles a part ({type(error).__name__}: {reason})"
        raise InputError(f"checkpoint {path}: {reason}") from error
