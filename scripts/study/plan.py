"""The plan of a study, read from a YAML file beside this module: tasks, methods, settings, seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from gnewton.errors import InputError
from gnewton.options import did_you_mean

SEARCH, FINAL = "search", "final"
"""The stages: every setting of the tuned methods on one seed, then the best of each on fresh seeds."""


@dataclass(frozen=True)
class Trial:
    """One run of the study.

    Attributes:
        task, method: their names.
        setting: what distinguishes it from the other runs of the method, such as "lr=0.01 linear".
        seed: of the run.
        overrides: of ``gnewton train``.
    """

    task: str
    method: str
    setting: str
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """An optimizer and the settings that are tried for it; untuned with a single one.

    Attributes:
        name: in tables and plots.
        overrides: that choose it.
        rates: values of ``optimizer.lr``; empty: none is set.
        schedules: choices of ``optimizer/schedule``; empty: the default one.
    """

    name: str
    overrides: tuple[str, ...]
    rates: tuple[float, ...] = ()
    schedules: tuple[str, ...] = ()

    @property
    def tuned(self) -> bool:
        """Whether there is more than one setting."""
        return len(self.settings()) > 1

    def settings(self) -> dict[str, tuple[str, ...]]:
        """The overrides of each setting by its name."""
        settings = {}
        for rate in self.rates or (None,):
            for schedule in self.schedules or (None,):
                names = [] if rate is None else [f"lr={rate:g}"]
                overrides = [] if rate is None else [f"optimizer.lr={rate}"]
                if schedule is not None:
                    names.append(schedule)
                    overrides.append(f"optimizer/schedule={schedule}")
                settings[" ".join(names)] = (*self.overrides, *overrides)
        return settings


@dataclass(frozen=True)
class Plan:
    """Everything that a study runs.

    Attributes:
        tasks: overrides of each task by its name.
        methods: in the order of the tables; rivals are measured against ``reference``.
        reference: name of the tuned method whose loss the others are to reach.
        common: overrides of every run.
        search_seed, seeds: seed of the search, and the fresh ones of the final runs.
    """

    tasks: dict[str, tuple[str, ...]]
    methods: tuple[Method, ...]
    reference: str
    common: tuple[str, ...]
    search_seed: int
    seeds: tuple[int, ...]

    @classmethod
    def read(cls, name: str) -> Plan:
        """The plan in ``NAME.yaml`` beside this module."""
        path = Path(__file__).parent / f"{name}.yaml"
        return cls.parse(yaml.safe_load(path.read_text(encoding="utf-8")))

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Plan:
        """The plan of this content of a YAML file."""
        methods = tuple(
            Method(
                method,
                tuple(value["overrides"]),
                tuple(float(rate) for rate in value.get("rates", ())),
                tuple(value.get("schedules", ())),
            )
            for method, value in content["methods"].items()
        )
        return cls(
            {task: tuple(overrides) for task, overrides in content["tasks"].items()},
            methods,
            content["reference"],
            tuple(content["common"]),
            int(content["search_seed"]),
            tuple(int(seed) for seed in content["seeds"]),
        )

    def only(self, tasks: list[str], methods: list[str]) -> Plan:
        """The part of the plan with these tasks and methods; empty lists mean all.

        The reference stays, since the others are measured against it.

        Raises:
            InputError: for a task or a method that the plan does not have.
        """
        known = {"--only": list(self.tasks), "--methods": [method.name for method in self.methods]}
        for option, names in (("--only", tasks), ("--methods", methods)):
            for name in names:
                if name not in known[option]:
                    allowed = "; ".join(known[option])
                    raise InputError(
                        f"{option} {name}: must be one of {allowed}{did_you_mean(name, known[option])}"
                    )
        methods = [*methods, self.reference] if methods else []
        return replace(
            self,
            tasks={task: value for task, value in self.tasks.items() if not tasks or task in tasks},
            methods=tuple(method for method in self.methods if not methods or method.name in methods),
        )

    def search(self) -> list[Trial]:
        """The runs of the search: all settings of the tuned methods on one seed."""
        return [
            self._trial(task, method, setting, self.search_seed)
            for task in self.tasks
            for method in self.methods
            if method.tuned
            for setting in method.settings()
        ]

    def final(self, chosen: dict[tuple[str, str], str]) -> list[Trial]:
        """The runs that count: every method on the fresh seeds.

        Args:
            chosen: the setting of each tuned method by (task, method).
        """
        return [
            self._trial(task, method, chosen.get((task, method.name), next(iter(method.settings()))), seed)
            for task in self.tasks
            for method in self.methods
            for seed in self.seeds
        ]

    def _trial(self, task: str, method: Method, setting: str, seed: int) -> Trial:
        overrides = (*self.tasks[task], *self.common, *method.settings()[setting], f"seed={seed}")
        return Trial(task, method.name, setting, seed, overrides)
