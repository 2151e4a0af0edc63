"""The files of a figure: CSV tables, PNG images, the line that makes it and every run that is in it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

import gnewton
from gnewton.backend import describe_environment
from gnewton.report.comparison import write_file
from gnewton.report.plots.style import render
from scripts.study.stages import Outcome

MADE_WITH = "made_with.json"

NO_PLACE = ("directory", "overrides", "platform")
"""What the record of a figure leaves out: places on this machine, and what the table of runs has."""


@dataclass
class FigureFiles:
    """What a figure consists of, before it is written.

    Attributes:
        tables, images: by file name without suffix.
        outcomes: every run that was made for it, whatever became of it.
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    images: dict[str, Figure] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def write(self, folder: Path, command: Sequence[str], device: torch.device) -> list[Path]:
        """Write all files into ``folder`` and return their paths.

        Args:
            folder: of the figure.
            command: the line that makes it.
            device: on which it was made.
        """
        texts: Mapping[str, str] = {
            **{f"{name}.csv": _csv(table) for name, table in self.tables.items()},
            **({"runs.csv": _csv(table_of_trials(self.outcomes))} if self.outcomes else {}),
            MADE_WITH: _made_with(command, device),
        }
        written = [write_file(folder / name, text) for name, text in texts.items()]
        images = {f"{name}.png": render(image, "png") for name, image in self.images.items()}
        return written + [write_file(folder / name, image) for name, image in images.items()]


def table_of_trials(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """Every run with its status, its end, and the line that repeats it."""
    rows = []
    for outcome in outcomes:
        trial, run = outcome.trial, outcome.run
        end = {} if run is None or run.metrics.empty else run.metrics.iloc[-1].to_dict()
        rows.append(
            {
                "task": trial.task,
                "method": trial.method,
                "setting": trial.setting,
                "seed": trial.seed,
                "status": outcome.status,
                **{name: end.get(name) for name in ("step", "train_loss", "test_accuracy", "train_seconds")},
                "line": shlex.join(["gnewton", "train", *dict.fromkeys(trial.overrides)]),
            }
        )
    return pd.DataFrame(rows)


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g")


def _made_with(command: Sequence[str], device: torch.device) -> str:
    environment = describe_environment(device, command, [], gnewton.__version__)
    kept = {key: value for key, value in environment.items() if key not in NO_PLACE}
    kept["command"] = shlex.join(command)
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
