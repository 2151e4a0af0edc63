"""How the end of training depends on the learning rate: runs that differ in it and in the seed alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gnewton.report.measures import Spread, measure_run
from gnewton.report.setups import Setup, distinguish, identity
from gnewton.runfiles import BROKEN

RATE_OPTIONS = ("optimizer.lr", "optimizer.damping")
"""What scales the steps: the learning rate, or the damping λ₁ of GroupedNewton."""

LOSSES = ("validation_loss", "train_loss", "test_loss")
"""The first of these that was measured is shown."""


@dataclass(frozen=True)
class Sensitivity:
    """One method at several learning rates, on one problem.

    Attributes:
        label: of the method.
        problem: what it solves.
        option: which of :data:`RATE_OPTIONS` varies.
        rates: in increasing order.
        losses: the spread of the final loss at each.
        points: the final loss of each run at each rate; infinite where it diverged or failed.
    """

    label: str
    problem: str
    option: str
    rates: list[float]
    losses: list[Spread]
    points: list[list[float]]


def find_sensitivities(setups: Iterable[Setup]) -> tuple[str, list[Sensitivity]]:
    """Every method of which there are runs at two learning rates or more.

    Returns:
        the loss that is compared, and the methods.
    """
    setups = list(setups)
    metric = next((name for name in LOSSES if _measured(setups, name)), LOSSES[0])
    families: dict[str, list[Setup]] = {}
    for setup in setups:
        option = _option(setup)
        if option is not None:
            rest = {key: value for key, value in setup.options.items() if key != option}
            families.setdefault(identity(rest), []).append(setup)
    several = [family for family in families.values() if len(family) > 1]
    labels = _labels(several)
    return metric, [
        _sensitivity(family, label, metric) for family, label in zip(several, labels, strict=True)
    ]


def _labels(families: Sequence[Sequence[Setup]]) -> list[str]:
    options = [
        {
            key: value
            for key, value in family[0].options.items()
            if key not in RATE_OPTIONS and key.split(".")[0] not in ("model", "data", "name")
        }
        for family in families
    ]
    return distinguish(options, always=("optimizer.name",))


def _sensitivity(family: Sequence[Setup], label: str, metric: str) -> Sensitivity:
    option = str(_option(family[0]))
    ordered = sorted(family, key=lambda setup: float(setup.options[option]))
    points = [
        [value for run in setup.runs if not math.isnan(value := measure_run(run, None)[metric])]
        for setup in ordered
    ]
    return Sensitivity(
        label,
        family[0].problem,
        option,
        [float(setup.options[option]) for setup in ordered],
        [Spread.over(values) for values in points],
        points,
    )


def _option(setup: Setup) -> str | None:
    return next(
        (
            option
            for option in RATE_OPTIONS
            if isinstance(setup.options.get(option), (int, float)) and setup.options[option] > 0
        ),
        None,
    )


def _measured(setups: Sequence[Setup], metric: str) -> bool:
    return any(
        run.status not in BROKEN and math.isfinite(measure_run(run, None)[metric])
        for setup in setups
        for run in setup.runs
    )
