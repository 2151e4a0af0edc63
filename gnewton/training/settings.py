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

    every: int = option(
        1, help="epochs between two evaluations: one row of metrics.csv each", at_least=1, role=Role.RESUMABLE
    )
    train: bool = option(True, help="evaluate on the whole training split too")
    batch_size: int = option(1000, help="samples per forward pass", at_least=1, role=Role.SAMPLES)
    max_samples: int | None = option(
        None,
        help="evaluate on the first so many samples of each split; null: on all of them",
        at_least=1,
        role=Role.SAMPLES,
    )


@dataclass(kw_only=True)
class Target:
    """The score at which the run stops and reports its time."""

    metric: str = option(
        "validation_accuracy",
        help="a loss or accuracy of metrics.csv: {train,validation,test}_{loss,accuracy}",
        choices=SCORES,
        role=Role.RESUMABLE,
    )
    value: float | None = option(
        None,
        help="stop as soon as the metric reaches this value, and report the time; null: never",
        role=Role.RESUMABLE | Role.BUDGET,
    )


@dataclass(kw_only=True)
class EarlyStop:
    """The metric whose standstill, or whose lag behind other runs, ends the run."""

    metric: str = option(
        "validation_loss", help="a loss or accuracy of metrics.csv", choices=SCORES, role=Role.RESUMABLE
    )
    patience: int | None = option(
        None,
        help="evaluations in a row without a better value, after which the run ends; null: never",
        at_least=1,
        role=Role.RESUMABLE,
    )
    bounds: list[float] = option(
        [],
        help="the run ends at the k-th evaluation if the best value so far is worse than the k-th of these",
        role=Role.RESUMABLE,
        before=[],
    )

    @property
    def watches(self) -> bool:
        """Whether the metric can end the run."""
        return self.patience is not None or bool(self.bounds)

    @property
    def sign(self) -> float:
        """Factor on the metric that makes lower values better."""
        return -1.0 if self.metric.endswith("accuracy") else 1.0


@dataclass(kw_only=True)
class TrainerSettings:
    """The options of the training loop."""

    name: str
    epochs: int = option(
        10, help="passes over the training split", at_least=1, role=Role.RESUMABLE | Role.COURSE | Role.BUDGET
    )
    max_steps: int | None = option(
        None,
        help="stop after so many training steps; null: no limit",
        at_least=1,
        role=Role.RESUMABLE | Role.COURSE | Role.BUDGET,
    )
    max_seconds: float | None = option(
        None,
        help="stop after so many seconds of training; null: no limit",
        above=0,
        role=Role.RESUMABLE | Role.COURSE | Role.BUDGET,
    )
    batch_size: int | None = option(
        100,
        help="samples per training step; null: the whole training split",
        at_least=1,
        role=Role.SAMPLES | Role.BATCHES,
    )
    microbatch: int | None = option(
        None,
        help="samples per forward and backward pass; larger batches are added up; null: no limit",
        at_least=1,
        role=Role.SAMPLES | Role.BATCHES,
    )
    clip_norm: float | None = option(
        None,
        help="longest gradient of all parameters together; a longer one is shortened to it; null: no limit",
        above=0,
        before=None,
    )
    ema: float | None = option(
        None,
        help="decay per step of an average of the weights at which the model is evaluated; null: no average",
        above=0,
        below=1,
        before=None,
    )
    log_every: int = option(
        50, help="training steps between two reads of the loss", at_least=1, role=Role.RESUMABLE | Role.COURSE
    )
    checkpoint_every: str = option(
        "1 epoch",
        help="time between two checkpoints: 2 epochs, 100 steps or 60 s",
        role=Role.RESUMABLE | Role.COURSE,
    )
    on_nonfinite: str = option(
        "stop",
        help="a number is not finite: stop (exit code 3); skip the step; rollback to the last checkpoint",
        choices=("stop", "skip", "rollback"),
        role=Role.RESUMABLE,
    )
    divergence: float | None = option(
        10.0,
        help="the training loss stays above this many times that at the start: exit code 3; null: go on",
        above=1,
        before=None,
        role=Role.RESUMABLE,
    )
    max_recoveries: int = option(
        10,
        help="steps skipped in a row, or rollbacks in all; one more stops the run",
        at_least=1,
        role=Role.RESUMABLE,
    )
    rollback_factor: float = option(
        0.5,
        help="each rollback multiplies the learning rates (GroupedNewton: λ_1) by it",
        above=0,
        at_most=1,
        role=Role.RESUMABLE,
    )
    device: str = option(
        "auto", help="auto: CUDA if there is one, else the CPU; cpu; cuda or cuda:1; mps", role=Role.VIEW
    )
    dtype: str = option("float32", help="float32 or float64", choices=("float32", "float64"), role=Role.VIEW)
    precision: str = option(
        "full",
        help="full: as dtype has it; bfloat16 or float16: training passes in autocast (sgd, adam, adamw)",
        choices=("full", "bfloat16", "float16"),
    )
    compile: bool = option(
        False, help="put the training passes through torch.compile (sgd, adam, adamw, lbfgs)"
    )
    tf32: bool = option(False, help="let CUDA round matrix products to TF32")
    deterministic: bool = option(
        False, help="only algorithms that give the same bits in every run; slower on CUDA"
    )
    progress: str = option(
        "auto",
        help="bar: a progress bar; lines: a line per epoch; auto: a bar on a terminal",
        choices=("auto", "bar", "lines"),
        role=Role.RESUMABLE | Role.COURSE,
    )
    evaluation: Evaluation = option(Evaluation, help="when and on what to evaluate", role=Role.COURSE)
    target: Target = option(Target, help="the score at which the run stops", role=Role.COURSE)
    early_stop: EarlyStop = option(
        EarlyStop, help="the metric whose standstill ends the run", before=EarlyStop, role=Role.COURSE
    )

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
        watched = self.early_stop.metric if self.early_stop.watches else ""
        if watched.startswith("train") and not self.evaluation.train:
            yield "early_stop.metric", "needs trainer.evaluation.train=true"


def _known_device(name: str) -> bool:
    kind, colon, index = name.partition(":")
    return name in ("auto", "cpu", "cuda", "mps") or (kind == "cuda" and bool(colon) and index.isdigit())
