"""Short runs of one configuration with different learning rates, to see what they give."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from gnewton.errors import Diverged
from gnewton.experiment.prepare import prepare
from gnewton.experiment.run import run

METRICS = ("train_loss", "validation_loss", "validation_accuracy")
"""What a short run is judged by."""


@dataclass(frozen=True)
class Choice:
    """Learning rates to try: ``lr`` for all, or ``rates`` by parameter where there are any."""

    name: str
    lr: float
    rates: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Tried:
    """What a choice gave: for each metric the values over the seeds; None where there is no such thing.

    Attributes:
        choice: the rates.
        metrics: by name, one value per seed that did not diverge.
        diverged: how many seeds did.
    """

    choice: Choice
    metrics: Mapping[str, Sequence[float]]
    diverged: int

    def median(self, metric: str) -> float | None:
        """The median of a metric over the seeds; None where no seed has it."""
        values = self.metrics[metric]
        return statistics.median(values) if values else None


def try_rates(
    config: DictConfig, choices: Sequence[Choice], *, steps: int, seeds: Sequence[int], samples: int
) -> list[Tried]:
    """Train from the initial weights for a few steps with each choice; nothing is kept on the disk.

    Args:
        config: of the runs; its optimizer has ``lr`` and ``rates``.
        choices: what to try.
        steps: training steps of each run.
        seeds: a run for each.
        samples: of each split, on which the metrics are taken.
    """
    found = []
    for choice in choices:
        values: dict[str, list[float]] = {metric: [] for metric in METRICS}
        diverged = 0
        for seed in seeds:
            with tempfile.TemporaryDirectory(prefix="gnewton-check-") as folder:
                try:
                    report = run(prepare(_configured(config, choice, steps, seed, samples, folder)))
                except Diverged:
                    diverged += 1
                    continue
            for metric in METRICS:
                value = report.outcome.metrics.get(metric)
                if value is not None:
                    values[metric].append(float(value))
        found.append(Tried(choice, values, diverged))
    return found


def _configured(
    config: DictConfig, choice: Choice, steps: int, seed: int, samples: int, folder: str
) -> DictConfig:
    config = config.copy()
    changes = {
        "name": "check",
        "output_root": folder,
        "resume": None,
        "logger": {},
        "seed": seed,
        "optimizer.lr": choice.lr,
        "optimizer.rates": dict(choice.rates) if choice.rates is not None else None,
        "trainer.epochs": steps,  # the limit of steps ends it
        "trainer.max_steps": steps,
        "trainer.max_seconds": None,
        "trainer.target.value": None,
        "trainer.checkpoint_every": f"{steps + 1} steps",
        "trainer.progress": "lines",
        "trainer.evaluation.every": steps,
        "trainer.evaluation.train": True,
        "trainer.evaluation.max_samples": samples,
    }
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False)
    return config
