"""Building a run from its settings, and the point of a run or a checkpoint that an inspection looks at."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from gnewton.data import DataSet
from gnewton.errors import InputError
from gnewton.experiment.prepare import settings_from
from gnewton.experiment.resume import recorded_digest
from gnewton.experiment.schema import Settings
from gnewton.optim.options import TrainingProblem
from gnewton.partition import Partition
from gnewton.runfiles import CHECKPOINT_FOLDER, CONFIG_FILE, LAST
from gnewton.tasks import Task
from gnewton.training.checkpoint import load_checkpoint
from gnewton.training.settings import TrainerSettings
from gnewton.training.world import SharedStream, World

if TYPE_CHECKING:
    from gnewton.optim.rate_rule import RateUpdate


DTYPES = {"float32": torch.float32, "float64": torch.float64}

CURVATURE_STREAM = 0x5EED
"""Added to the seed of the run to order the curvature batches independently of the training batches."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of, on its device; the partition is None if the optimizer uses none."""

    data: DataSet
    model: nn.Module
    partition: Partition | None


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The torch device named by ``trainer.device``; "auto" takes CUDA, then CPU.

    Of several processes on a machine, each takes the CUDA device of its ``local_rank``.

    Raises:
        InputError: if the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", local_rank) if device.index is None else device
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise InputError(f"trainer.device={name}: this machine has {count} CUDA devices; use cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"trainer.device={name}: this machine has no MPS device; use cpu or auto")
    return device


def prepare_torch(settings: TrainerSettings, seed: int) -> None:
    """Set TF32, determinism and the seed of every random stream."""
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    torch.backends.cudnn.allow_tf32 = settings.tf32
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if settings.deterministic or torch.are_deterministic_algorithms_enabled():
        # not otherwise: the call loads torch's compiler, which nearly doubles the time to start
        torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def build_parts(settings: Settings, device: torch.device, world: World) -> Parts:
    """Obtain the data, draw the initial weights and split the parameters.

    Raises:
        InputError: if the parts do not fit each other, the device or the number of processes.
    """
    dtype = DTYPES[settings.trainer.dtype]
    if device.type == "mps" and dtype is torch.float64:
        raise InputError("trainer.dtype=float64: MPS devices have no float64; use float32 or device=cpu")
    data = settings.data.build(device, dtype, settings.seed)
    _check_against_data(settings, data)
    world.check(len(data.train), settings.trainer.batch_size, "trainer.batch_size")
    model = settings.model.build(data.task).to(device=device, dtype=dtype)
    return Parts(data, model, split(settings, model) if settings.optimizer.uses_partition else None)


def split(settings: Settings, model: nn.Module) -> Partition:
    """The chosen partition of a model's parameters.

    Raises:
        InputError: if it does not fit the model.
    """
    try:
        return settings.partition.build(model)
    except InputError as error:  # the library knows no choices; the message names the choice
        raise InputError(
            str(error).replace("partition:", f"partition={settings.partition.name}:", 1)
        ) from error


def problem_of(
    settings: Settings, parts: Parts, world: World, on_update: Callable[[RateUpdate], None] | None = None
) -> TrainingProblem:
    """What the optimizer may need to know of the run.

    Args:
        settings, parts, world: of the run.
        on_update: receives a record of every update of the rates.
    """

    def curvature(batch_size: int | None) -> Iterable[tuple[Tensor, Tensor]]:
        samples = len(parts.data.train)
        if batch_size is not None and batch_size > samples and parts.data.task.input_shape:
            raise InputError(
                f"optimizer.curvature.batch_size={batch_size}: must be <= {samples}, "
                f"the training samples of data={parts.data.name}"
            )
        if batch_size is not None:
            world.check(batch_size, None, "optimizer.curvature.batch_size")
        return SharedStream(parts.data.train.stream(batch_size, seed=settings.seed + CURVATURE_STREAM), world)

    return TrainingProblem(
        model=parts.model,
        loss_fn=parts.data.task.loss,
        partition=parts.partition,
        curvature=curvature,
        on_update=on_update if on_update is not None else lambda update: None,
        likelihood=parts.data.task.likelihood,
        seed=settings.seed,
    )


def _check_against_data(settings: Settings, data: DataSet) -> None:
    """Check the options that depend on the data."""
    target = settings.trainer.target
    if (
        target.value is not None
        and target.metric.endswith("accuracy")
        and type(data.task).correct is Task.correct
    ):
        raise InputError(
            f"trainer.target.metric={target.metric}: data={data.name} has no accuracy; must be one of "
            "train_loss, validation_loss, test_loss"
        )
    batch_size = settings.trainer.batch_size
    if settings.optimizer.full_batch or not data.task.input_shape or batch_size is None:
        return
    if batch_size > len(data.train):
        raise InputError(
            f"trainer.batch_size={batch_size}: must be <= {len(data.train)}, "
            f"the training samples of data={data.name}"
        )


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
