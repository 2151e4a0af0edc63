"""A point in parameter space to inspect: a checkpoint of a run, or the initial weights of a configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from gnewton.data.splits import DataSet
from gnewton.errors import InputError
from gnewton.experiment.build import build_parts, choose_device, prepare_torch, problem_of, split
from gnewton.experiment.prepare import settings_from
from gnewton.experiment.resume import recorded_digest
from gnewton.experiment.schema import Settings
from gnewton.optim.options import TrainingProblem
from gnewton.partition import Partition
from gnewton.runfiles import CHECKPOINT_FOLDER, CONFIG_FILE, LAST
from gnewton.training.checkpoint import load_checkpoint
from gnewton.training.world import World

log = logging.getLogger("gnewton")


@dataclass(frozen=True)
class Point:
    """A built run in training mode, at the weights to inspect.

    Attributes:
        settings: of the run or configuration, with the requested changes.
        data, model, device: as built.
        partition: the chosen groups, whether the optimizer uses them or not.
        problem: what an optimizer may know; its partition is that of the run.
        optimizer_state: from the checkpoint; None at initial weights.
        step, epoch: training steps and whole epochs finished.
        checkpoint: the file; None at initial weights.
    """

    settings: Settings
    data: DataSet
    model: nn.Module
    device: torch.device
    partition: Partition
    problem: TrainingProblem
    optimizer_state: dict[str, Any] | None
    step: int
    epoch: int
    checkpoint: Path | None

    def describe(self) -> str:
        """The point in one line of text."""
        s = self.settings
        choices = f"model={s.model.name} data={s.data.name} seed={s.seed}"
        if self.checkpoint is None:
            return f"{choices}, initial weights"
        return f"{choices}, {self.checkpoint}: epoch {self.epoch}, step {self.step}"


def run_of(path: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint that a path names: a run folder stands for its last checkpoint.

    Raises:
        InputError: if it is neither.
    """
    checkpoint = path / CHECKPOINT_FOLDER / LAST if path.is_dir() else path
    folder = checkpoint.parent.parent
    if not checkpoint.is_file():
        reason = "it holds no checkpoint/last.pt" if path.is_dir() else "there is no such file or folder"
        raise InputError(f"{path}: {reason}; give a run folder or a checkpoint in one")
    if checkpoint.parent.name != CHECKPOINT_FOLDER or not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"{path}: a checkpoint must lie in RUN/{CHECKPOINT_FOLDER}/, beside RUN/{CONFIG_FILE}"
        )
    return folder, checkpoint


def open_point(config: DictConfig, checkpoint: Path | None, *, trains: bool = False) -> Point:
    """Build everything and load the weights.

    Args:
        config: of a run, or composed.
        checkpoint: its file; None: the initial weights that the seed draws.
        trains: whether batches of ``trainer.batch_size`` will be drawn, so that the size must fit the data.

    Raises:
        InputError: if an option or file is not what it should be.
    """
    settings = settings_from(config)
    if not trains:
        settings.trainer.batch_size = None
    device = choose_device(settings.trainer.device)
    prepare_torch(settings.trainer, settings.seed)
    parts = build_parts(settings, device, World())
    for remark in parts.data.remarks:
        log.warning("%s", remark)
    if checkpoint is not None and recorded_digest(checkpoint.parent.parent) not in (None, parts.data.digest):
        log.warning(
            "data=%s: holds other data than when %s was begun", parts.data.name, checkpoint.parent.parent
        )
    state = load_checkpoint(checkpoint) if checkpoint is not None else None
    if state is not None:
        try:
            parts.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise InputError(f"checkpoint {checkpoint}: it does not fit the model of its run") from error
    parts.model.train()
    return Point(
        settings=settings,
        data=parts.data,
        model=parts.model,
        device=device,
        partition=parts.partition or split(settings, parts.model),
        problem=problem_of(settings, parts, World()),
        optimizer_state=state["optimizer"] if state is not None else None,
        step=int(state["step"]) if state is not None else 0,
        epoch=int(state["epoch"]) if state is not None else 0,
        checkpoint=checkpoint,
    )
