"""Run folders made by hand, in the format in which runs write them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gnewton.runfiles import METRICS_COLUMNS, RATES_COLUMNS, STEPS_COLUMNS

CONFIG: dict[str, Any] = {
    "name": "mlp-digits-sgd",
    "seed": 0,
    "output_root": "outputs",
    "resume": None,
    "model": {"name": "mlp", "widths": ["8"], "activation": "tanh"},
    "data": {"name": "digits", "subset": None, "split_seed": 0, "augment": {"flip": False}},
    "partition": {"name": "per_tensor"},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": {"name": "constant"}},
    "trainer": {
        "name": "default",
        "epochs": 3,
        "max_steps": None,
        "device": "auto",
        "dtype": "float32",
        "tf32": False,
        "progress": "auto",
        "evaluation": {"every": 1, "train": True},
        "target": {"metric": "validation_accuracy", "value": None},
    },
}

ENVIRONMENT: dict[str, Any] = {
    "time": "2026-11-22T10:00:00+00:00",
    "packages": {"torch": "2.14.1"},
    "cores": 2,
    "threads": 1,
    "processes": 1,
    "device": "cpu",
    "device_name": "Test Processor",
}

GPU: dict[str, Any] = ENVIRONMENT | {"device": "cuda:0", "device_name": "Test GPU"}


def row(epoch: float, step: int, seconds: float, **values: Any) -> dict[str, Any]:
    """A row of metrics.csv; what is not given stays empty."""
    return {"epoch": float(epoch), "step": step, "train_seconds": seconds, **values}


def falling(
    losses: Sequence[float], *, step: int = 10, seconds: float = 1.0, **last: Any
) -> list[dict[str, Any]]:
    """One row per epoch with these validation losses; ``last`` is added to the last row."""
    rows = [
        row(place, place * step, place * seconds, validation_loss=loss)
        for place, loss in enumerate(losses, start=1)
    ]
    if rows:
        rows[-1] |= last
    return rows


def update(number: int, step: int, rates: Mapping[str, float], **values: Any) -> list[dict[str, Any]]:
    """The rows of rates.csv of one update: one per group."""
    shared = {
        "update": number,
        "step": step,
        "step_size": 0.3,
        "status": "interior",
        "fallback": False,
        "warmup": False,
        "summary_seconds": 0.0,
        "solve_seconds": 0.0,
        **values,
    }
    return [{**shared, "group": group, "rate": rate} for group, rate in rates.items()]


def write_run(
    root: Path,
    folder: str,
    options: Mapping[str, Any] | None = None,
    *,
    rows: Iterable[Mapping[str, Any]] = (),
    rates: Iterable[Mapping[str, Any]] | None = None,
    steps: Iterable[Mapping[str, Any]] | None = None,
    result: Mapping[str, Any] | str | None = "done",
    environment: Mapping[str, Any] = ENVIRONMENT,
) -> Path:
    """Write a run folder and return it.

    Args:
        root, folder: where.
        options: dotted names and their values, over those of ``CONFIG``; a group may be replaced whole.
        rows: of metrics.csv.
        rates: of rates.csv; None: there is no such file.
        steps: of steps.csv; None: there is no such file.
        result: the status, or all of result.json; None: the run was killed, or is still going on.
        environment: environment.json.
    """
    place = root / folder
    place.mkdir(parents=True)
    config = copy.deepcopy(CONFIG)
    for name, value in (options or {}).items():
        *path, last = name.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    (place / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8")
    (place / "environment.json").write_text(json.dumps(environment), "utf-8")
    (place / "metrics.csv").write_text(csv_text(METRICS_COLUMNS, rows), "utf-8")
    if rates is not None:
        (place / "rates.csv").write_text(csv_text(RATES_COLUMNS, rates), "utf-8")
    if steps is not None:
        (place / "steps.csv").write_text(csv_text(STEPS_COLUMNS, steps), "utf-8")
    if result is not None:
        content = {"status": result} if isinstance(result, str) else result
        (place / "result.json").write_text(json.dumps(content), "utf-8")
    return place


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """As a run writes it: numbers with all their digits, booleans in lower case, nothing for no value."""
    lines = [",".join(columns)]
    for entry in rows:
        assert set(entry) <= set(columns)
        lines.append(",".join(_cell(entry.get(column)) for column in columns))
    return "".join(f"{line}\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text


def grouped_newton(**options: Any) -> dict[str, Any]:
    """The options of a run of GroupedNewton."""
    return {"optimizer": {"name": "grouped_newton", "step_size": 0.3, "period": 10, **options}}
