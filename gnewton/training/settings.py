"""The options of the trainer. Torch-free: they are read before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gnewton.errors import InputError
from gnewton.options import option, show
from gnewton.runfiles import SCORES
from gnewton.training.interval import Interval


@dataclass(kw_only=True)
class Evaluation:
    """When and on what the model is evaluated."""

    every: int = option(at_least=1)
    train: bool = option()
    batch_size: int = option(at_least=1)
    max_samples: int | None = option(at_least=1)


@dataclass(kw_only=True)
class Target:
    """A value of a metric at which the run stops and reports its time."""

    metric: str = option(choices=SCORES)
    value: float | None = option()


@dataclass(kw_only=True)
class TrainerSettings:
    """Everything the training loop needs to know."""

    name: str
    epochs: int = option(at_least=1)
    max_steps: int | None = option(at_least=1)
    max_seconds: float | None = option(above=0)
    batch_size: int | None = option(at_least=1)
    microbatch: int | None = option(at_least=1)
    log_every: int = option(at_least=1)
    checkpoint_every: str = option()
    on_nonfinite: str = option(choices=("stop", "skip", "rollback"))
    divergence: float | None = option(above=1, default=None)
    max_recoveries: int = option(at_least=1)
    rollback_factor: float = option(above=0, at_most=1)
    device: str = option()
    dtype: str = option(choices=("float32", "float64"))
    precision: str = option(choices=("full", "bfloat16", "float16"))
    compile: bool = option()
    tf32: bool = option()
    deterministic: bool = option()
    progress: str = option(choices=("auto", "bar", "lines"))
    evaluation: Evaluation
    target: Target

    def sizes(self) -> str:
        """The options that decide the memory of a training step, to be named where it does not do."""
        return f"trainer.microbatch={show(self.microbatch)} or trainer.batch_size={show(self.batch_size)}"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Checks that tie several options together."""
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


def _known_device(name: str) -> bool:
    kind, colon, index = name.partition(":")
    return name in ("auto", "cpu", "cuda", "mps") or (kind == "cuda" and bool(colon) and index.isdigit())
