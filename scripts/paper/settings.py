"""What the figures are made of, read from quick.yaml or full.yaml beside this module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.study.plan import Plan, Trial

PAPER = "grouped_newton_paper"
"""The method with the author's settings, and its name in the tables."""

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class PaperSettings:
    """The sizes and set-ups of all figures.

    Attributes:
        common: overrides of every run.
        curves: the tasks, methods, rates and seeds of the training curves.
        matrices: overrides of each set-up whose H̄ is shown.
        stages: for each of them, the steps of training at which it is shown besides the start; None: the end.
        samples: for each of them, the training samples over which H̄ is averaged.
        ablation_task: overrides of the task of the ablations.
        ablation_seeds: of their runs.
        ablations: overrides of each variant by its name; they come after those of the paper's optimizer.
        rescaling_task: overrides of the task that is trained in two parameterisations.
        rescaling: overrides of each method that is trained so, by its name.
        costs: overrides of each network whose summary is timed.
        repeats: of a timing; the least counts.
        reference_most: groups up to which the engine of S backward passes is timed.
    """

    common: Overrides
    curves: Plan
    matrices: Mapping[str, Overrides]
    stages: Mapping[str, tuple[int | None, ...]]
    samples: Mapping[str, int]
    ablation_task: Overrides
    ablation_seeds: tuple[int, ...]
    ablations: Mapping[str, Overrides]
    rescaling_task: Overrides
    rescaling: Mapping[str, Overrides]
    costs: Mapping[str, Overrides]
    repeats: int
    reference_most: int

    @classmethod
    def read(cls, name: str) -> PaperSettings:
        """The settings in ``NAME.yaml`` beside this module."""
        path = Path(__file__).parent / f"{name}.yaml"
        return cls.parse(yaml.safe_load(path.read_text(encoding="utf-8")))

    @classmethod
    def parse(cls, content: dict[str, Any]) -> PaperSettings:
        """The settings of this content of a YAML file."""
        common = tuple(content["common"])
        matrices, ablations = content["matrices"], content["ablations"]
        rescaling, costs = content["rescaling"], content["costs"]
        return cls(
            common=common,
            curves=Plan.parse({"common": common, **content["curves"]}),
            matrices={name: tuple(value["overrides"]) for name, value in matrices["setups"].items()},
            stages={name: tuple(value["steps"]) for name, value in matrices["setups"].items()},
            samples={name: int(value["samples"]) for name, value in matrices["setups"].items()},
            ablation_task=tuple(ablations["task"]),
            ablation_seeds=tuple(ablations["seeds"]),
            ablations=_by_name(ablations["variants"]),
            rescaling_task=tuple(rescaling["task"]),
            rescaling=_by_name(rescaling["methods"]),
            costs=_by_name(costs["networks"]),
            repeats=int(costs["repeats"]),
            reference_most=int(costs["reference_most"]),
        )

    def trial(self, task: str, method: str, setting: str, seed: int, overrides: Overrides) -> Trial:
        """A run with the common overrides; those given come last."""
        return Trial(task, method, setting, seed, (*self.common, *overrides, f"seed={seed}"))


def _by_name(content: Mapping[str, list[str]]) -> dict[str, Overrides]:
    return {name: tuple(overrides) for name, overrides in content.items()}
