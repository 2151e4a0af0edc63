"""Short runs of one configuration with different learning rates, to compare them."""

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
"""The metrics by which short runs are compared."""


@dataclass(frozen=True)
class RateChoice:
    """Learning rates to try: ``lr`` for all parameters without one of their own in ``rates``."""

    name: str
    lr: float
    rates: Mapping[str, float] | None = None


@dataclass(frozen=True)
class ShortRuns:
    """The result of one choice of rates.

    Attributes:
        choice: the rates.
        metrics: by name, one value per seed that did not diverge; none where the task has no such metric.
        diverged: how many seeds diverged.
    """

    choice: RateChoice
    metrics: Mapping[str, Sequence[float]]
    diverged: int

    def median(self, metric: str) -> float | None:
        """The median of a metric over the seeds; None where no seed has it."""
        values = self.metrics[metric]
        return statistics.median(values) if values else None


def try_rates(
    config: DictConfig, choices: Sequence[RateChoice], *, steps: int, seeds: Sequence[int], samples: int
) -> list[ShortRuns]:
    """Train from the initial weights for a few steps with each choice; nothing stays on the disk.

    Args:
        config: of the runs; its optimizer has ``lr`` and ``rates``.
        choices: the rates to try.
        steps: training steps of each run.
        seeds: those of the runs of each choice.
        samples: how many samples of each split the metrics are evaluated on.
    """
    results = []
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
        results.append(ShortRuns(choice, values, diverged))
    return results


def _configured(
    config: DictConfig, choice: RateChoice, steps: int, seed: int, samples: int, folder: str
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
