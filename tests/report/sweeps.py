"""A sweep made by hand that has something to show in every table, plot and chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gnewton.report.comparison import Comparison, compare
from gnewton.report.measures import MetricTarget
from tests.report.builders import grouped_newton, row, update, write_run

GROUPS = {"hidden.weight": 0.5, "hidden.bias": 0.25, "head.weight": 0.125}

TARGET = MetricTarget("validation_loss", 0.5)


def rows_of(speed: float, seed: int, epochs: int = 4, seconds: float = 1.0) -> list[dict[str, Any]]:
    """Losses speed⁻ᵉ (1 + seed/10), and accuracies that grow with them."""
    losses = [speed**-epoch * (1 + seed / 10) for epoch in range(1, epochs + 1)]
    return [
        row(
            epoch,
            10 * epoch,
            epoch * seconds * (1 + seed / 20),
            train_loss=loss,
            validation_loss=1.1 * loss,
            test_loss=1.2 * loss,
            train_accuracy=1 / (1 + loss),
            validation_accuracy=0.9 / (1 + loss),
            test_accuracy=0.8 / (1 + loss),
            peak_memory_mib=500.0 + seed,
        )
        for epoch, loss in enumerate(losses, start=1)
    ]


def write_sweep(root: Path, *, data: str = "digits", **options: Any) -> Path:
    """SGD at three learning rates, the largest of which diverges, and GroupedNewton; three seeds each."""
    place = root / data
    for seed in range(3):
        shared = {"seed": seed, "data.name": data, **options}
        for speed, lr in ((1.2, 0.01), (1.5, 0.1)):
            write_run(place, f"sgd{lr}-{seed}", {**shared, "optimizer.lr": lr}, rows=rows_of(speed, seed))
        lost = rows_of(0.5, seed, epochs=2)
        write_run(place, f"sgd1-{seed}", {**shared, "optimizer.lr": 1.0}, rows=lost, result="diverged")
        rates = [
            line
            for number, step in enumerate((0, 10, 20, 30))
            for line in update(
                number + 1,
                step,
                {name: rate * (1 + number) * (number > 0) for name, rate in GROUPS.items()},
                warmup=number == 0,
                summary_seconds=0.25,
                solve_seconds=0.01,
            )
        ]
        write_run(
            place, f"gn-{seed}", {**shared, **grouped_newton()}, rows=rows_of(2, seed, seconds=3), rates=rates
        )
    return root


def compared(root: Path, **options: Any) -> Comparison:
    """The comparison of :func:`write_sweep`."""
    return compare([write_sweep(root, **options)], target=TARGET)
