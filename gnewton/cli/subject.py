"""The subject of ``inspect`` and ``rates``: a run, a checkpoint or the start of a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gnewton.errors import InputError
from gnewton.options import Role

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from gnewton.experiment.overrides import Override


@dataclass(frozen=True)
class Subject:
    """A configuration, and the checkpoint that goes with it.

    Attributes:
        config: the composed configuration.
        overrides: those of the command line.
        folder, checkpoint: of the run; None at initial weights.
    """

    config: DictConfig
    overrides: tuple[Override, ...]
    folder: Path | None
    checkpoint: Path | None


def parse_subject(words: Sequence[str], command: str, *, idle: Role, also: Sequence[str] = ()) -> Subject:
    """The subject that ``words`` name: at most one path, and overrides.

    Args:
        words: paths and overrides, see :func:`is_path`.
        command: for messages.
        idle: role of the options without effect on this command, beside those without effect at any point.
        also: groups that can be chosen anew for a run, beside the usual ones.

    Raises:
        InputError: for two paths, or an override that is wrong or has no effect.
    """
    from gnewton.cli.composer import Composer, with_choices_of
    from gnewton.experiment.overrides import parse_overrides

    paths = [word for word in words if is_path(word)]
    overrides = parse_overrides([word for word in words if not is_path(word)])
    if len(paths) > 1:
        raise InputError(f"{command}: {paths[1]}: only one run or checkpoint is looked at")
    if not paths:
        _require_effect(overrides, command, idle)
        return Subject(Composer().compose(overrides), tuple(overrides), None, None)
    from gnewton.experiment.build import run_of
    from gnewton.experiment.resume import changed
    from gnewton.experiment.schema import options_with

    folder, checkpoint = run_of(Path(paths[0]).expanduser())
    chosen = Composer().compose(with_choices_of(folder, overrides))
    config = changed(folder, chosen, overrides, (*options_with(Role.VIEW), *also), str(folder))
    return Subject(config, tuple(overrides), folder, checkpoint)


def add_matrix_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--matrix``."""
    from gnewton.optim.hyperparameters import MATRICES

    parser.add_argument(
        "--matrix",
        choices=MATRICES,
        default="hessian",
        help="in place of the Hessian: gauss_newton, without the curvature of the outputs, or fisher, its "
        "estimate from one drawn label a sample (default: %(default)s)",
    )


def is_path(word: str) -> bool:
    """Whether a word is a path: it has no equals sign, or there is such a file or folder."""
    return "=" not in word or Path(word).expanduser().exists()


def _require_effect(overrides: Sequence[Override], command: str, idle: Role) -> None:
    from gnewton.experiment.schema import options_with

    without_effect = options_with(Role.OUTPUT | Role.LABEL | Role.COURSE | idle)
    for override in overrides:
        if override.is_within(*without_effect):
            raise InputError(f"{override.text}: has no effect on gnewton {command}")
