"""The options of the training loop. Torch-free: they are checked before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gnewton.errors import InputError
from gnewton.options import Role, option, show
from gnewton.runfiles import SCORES

STEPS, EPOCHS, SECONDS = "steps", "epochs", "seconds"

_UNITS = {"": EPOCHS, "epoch": EPOCHS, "epochs": EPOCHS, "step": STEPS, "steps": STEPS} | dict.fromkeys(
    ("s", "second", "seconds"), SECONDS
)
_ALLOWED = "must be a number of epochs, steps or seconds: 2 epochs, 100 steps, 60 s"


@dataclass(frozen=True)
class Interval:
    """How often checkpoints are written: every ``count`` of ``STEPS``, ``EPOCHS`` or ``SECONDS``.

    Only seconds may be a fraction.
    """

    count: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Interval:
        """The interval written as ``100 steps``, ``2 epochs`` (or just ``2``) or ``60 s``.

        Raises:
            InputError: saying what is allowed.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text)
        if match is None or match[2] not in _UNITS:
            raise InputError(_ALLOWED)
        count, unit = float(match[1]), _UNITS[match[2]]
        if not 0 < count < math.inf or (unit != SECONDS and not count.is_integer()):
            raise InputError(_ALLOWED)
        return cls(count, unit)

    def due_after(self, unit: str, done: float) -> bool:
        """Whether a checkpoint is due after ``done`` of ``unit``; never if the interval has another unit."""
        if unit != self.unit:
            return False
        return done >= self.count if unit == SECONDS else done % self.count == 0


@dataclass(kw_only=True)
class Evaluation:
    """When and on what the model is evaluated."""

    every: int = option(at_least=1, role=Role.RESUMABLE)
    train: bool = option()
    batch_size: int = option(at_least=1, role=Role.SAMPLES)
    max_samples: int | None = option(at_least=1, role=Role.SAMPLES)


@dataclass(kw_only=True)
class Target:
    """The score at which the run stops and reports its time."""

    metric: str = option(choices=SCORES, role=Role.RESUMABLE)
    value: float | None = option(role=Role.RESUMABLE)


@dataclass(kw_only=True)
class EarlyStop:
    """The metric whose standstill ends the run, and the number of evaluations that it may stand still."""

    metric: str = option(choices=SCORES, default="validation_loss", role=Role.RESUMABLE)
    patience: int | None = option(at_least=1, default=None, role=Role.RESUMABLE)


@dataclass(kw_only=True)
class TrainerSettings:
    """The options of the training loop."""

    name: str
    epochs: int = option(at_least=1, role=Role.RESUMABLE | Role.COURSE)
    max_steps: int | None = option(at_least=1, role=Role.RESUMABLE | Role.COURSE)
    max_seconds: float | None = option(above=0, role=Role.RESUMABLE | Role.COURSE)
    batch_size: int | None = option(at_least=1, role=Role.SAMPLES)
    microbatch: int | None = option(at_least=1, role=Role.SAMPLES)
    clip_norm: float | None = option(above=0, default=None)
    log_every: int = option(at_least=1, role=Role.RESUMABLE | Role.COURSE)
    checkpoint_every: str = option(role=Role.RESUMABLE | Role.COURSE)
    on_nonfinite: str = option(choices=("stop", "skip", "rollback"), role=Role.RESUMABLE)
    divergence: float | None = option(above=1, default=None, role=Role.RESUMABLE)
    max_recoveries: int = option(at_least=1, role=Role.RESUMABLE)
    rollback_factor: float = option(above=0, at_most=1, role=Role.RESUMABLE)
    device: str = option()
    dtype: str = option(choices=("float32", "float64"))
    precision: str = option(choices=("full", "bfloat16", "float16"))
    compile: bool = option()
    tf32: bool = option()
    deterministic: bool = option()
    progress: str = option(choices=("auto", "bar", "lines"), role=Role.RESUMABLE | Role.COURSE)
    evaluation: Evaluation = option(role=Role.COURSE)
    target: Target = option(role=Role.COURSE)
    early_stop: EarlyStop = option(default_factory=EarlyStop, role=Role.COURSE)

    def sizes(self) -> str:
        """The options that decide the memory of a training step, for the message when it runs out."""
        return f"trainer.microbatch={show(self.microbatch)} or trainer.batch_size={show(self.batch_size)}"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that are not allowed, alone or together with others."""
        if not _known_device(self.device):
            yield "device", "must be one of auto, cpu, cuda, cuda:0, cuda:1, …, mps"
        try:
            Interval.parse(self.checkpoint_every)
        except InputError as error:
            yield "checkpoint_every", str(error)
        if self.precision != "full" and self.dtype == "float64":
            yield "precision", "needs trainer.dtype=float32"
        if (
            self.target.value is not None
            and self.target.metric.startswith("train")
            and not self.evaluation.train
        ):
            yield "target.metric", "needs trainer.evaluation.train=true"
        watched = self.early_stop.metric if self.early_stop.patience is not None else ""
        if watched.startswith("train") and not self.evaluation.train:
            yield "early_stop.metric", "needs trainer.evaluation.train=true"


def _known_device(name: str) -> bool:
    kind, colon, index = name.partition(":")
    return name in ("auto", "cpu", "cuda", "mps") or (kind == "cuda" and bool(colon) and index.isdigit())
