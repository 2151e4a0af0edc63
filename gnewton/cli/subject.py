"""What ``inspect`` and ``rates`` look at: a run, a checkpoint, or a configuration at its initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gnewton.cli.overrides import with_choices_of
from gnewton.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

OF_A_RUN = ("partition", "trainer.device", "trainer.dtype")
"""What can be chosen anew for the point of a run, beside the places of its data."""

WITHOUT_EFFECT = (
    "name",
    "output_root",
    "resume",
    "logger",
    "trainer.epochs",
    "trainer.max_steps",
    "trainer.max_seconds",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.progress",
    "trainer.evaluation",
    "trainer.target",
    "optimizer.schedule",
)
"""Options of a run that say nothing about a point."""


@dataclass(frozen=True)
class Subject:
    """A configuration, and the checkpoint that goes with it.

    Attributes:
        config: composed.
        overrides: the command line's.
        folder, checkpoint: of the run; None at initial weights.
    """

    config: DictConfig
    overrides: tuple[str, ...]
    folder: Path | None
    checkpoint: Path | None


def parse_subject(
    words: Sequence[str], command: str, *, idle: Sequence[str] = (), also: Sequence[str] = ()
) -> Subject:
    """The subject that ``words`` name: at most one path, and overrides.

    Args:
        words: paths and overrides, see :func:`is_path`.
        command: for messages.
        idle: options that do nothing for this command, beside the usual ones.
        also: groups that can be chosen anew for a run, beside the usual ones.

    Raises:
        InputError: for two paths, or an override that is wrong or would do nothing.
    """
    paths = [word for word in words if is_path(word)]
    overrides = [word for word in words if not is_path(word)]
    if len(paths) > 1:
        raise InputError(f"{command}: {paths[1]}: only one run or checkpoint is looked at")
    from gnewton.cli.compose import composed

    if not paths:
        for override in overrides:
            _require_effect(override, command, (*WITHOUT_EFFECT, *idle))
        return Subject(composed(overrides), tuple(overrides), None, None)
    from gnewton.experiment.point import run_of
    from gnewton.experiment.resume import changed

    folder, checkpoint = run_of(Path(paths[0]).expanduser())
    chosen = composed(with_choices_of(folder, overrides))
    config = changed(folder, chosen, overrides, (*OF_A_RUN, *also), str(folder))
    return Subject(config, tuple(overrides), folder, checkpoint)


def is_path(word: str) -> bool:
    """Whether a word is a path: it has no equals sign, or there is such a file or folder."""
    return "=" not in word or Path(word).expanduser().exists()


def _require_effect(override: str, command: str, idle: Sequence[str]) -> None:
    key = override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")
    if any(key == name or key.startswith(f"{name}.") for name in idle):
        raise InputError(f"{override}: has no effect on gnewton {command}")
