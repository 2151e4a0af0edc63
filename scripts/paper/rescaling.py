"""Invariance: one network trained in two parameterisations that differ by a factor for each group.

``model.scaling=true`` is the parameterisation of the neural tangent kernel: the weights of a layer are √fan_in
times larger and its input is divided by √fan_in. So θ_s = a_s θ̃_s with a_s = 1/√fan_in for weights, 1 for biases.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from gnewton.experiment.point import open_point
from gnewton.report.plots.style import figure, legend_below, log_scale, looks, title
from gnewton.training.checkpoint import load_checkpoint
from scripts.paper.record import FigureFiles
from scripts.paper.runs import Workshop, composed, last_checkpoint
from scripts.paper.settings import PaperSettings
from scripts.study.plan import Trial
from scripts.study.stages import Outcome

DTYPES = ("float64", "float32")
FORMS = {"plain": (), "scaled": ("model.scaling=true",)}


def rescaling(settings: PaperSettings, workshop: Workshop) -> FigureFiles:
    """Train every method in both parameterisations and number formats, and compare losses and weights."""
    name, seed = settings.rescaling_task[0].partition("=")[2], settings.curves.seeds[0]
    trials = {
        (method, dtype, form): settings.trial(
            name,
            method,
            f"{dtype} {form}",
            seed,
            (*settings.rescaling_task, *overrides, f"trainer.dtype={dtype}", *FORMS[form]),
        )
        for method, overrides in settings.rescaling.items()
        for dtype in DTYPES
        for form in FORMS
    }
    outcomes = dict(zip(trials, workshop.run(list(trials.values())), strict=True))
    lines, ends = [], []
    for method in settings.rescaling:
        for dtype in DTYPES:
            plain, scaled = (outcomes[method, dtype, form] for form in FORMS)
            line = deviations(plain, scaled).assign(method=method, dtype=dtype)
            lines.append(line)
            ends.append(
                {
                    "method": method,
                    "dtype": dtype,
                    "steps": len(line),
                    "first_step": line["deviation"].iloc[0] if len(line) else math.nan,
                    "largest": line["deviation"].max(),
                    "last_step": line["deviation"].iloc[-1] if len(line) else math.nan,
                    "weights": distance_of_weights(plain, scaled),
                    "lost": plain.lost + scaled.lost,
                }
            )
    table = pd.concat(lines, ignore_index=True)
    return FigureFiles(
        tables={"deviation": table, "ends": pd.DataFrame(ends)},
        images={"deviation": _figure(table, name)},
        outcomes=list(outcomes.values()),
    )


def deviations(plain: Outcome, scaled: Outcome) -> pd.DataFrame:
    """The losses of two runs step by step, and |L − L̃|/|L|."""
    if plain.run is None or scaled.run is None:
        return pd.DataFrame(columns=["step", "plain", "scaled", "deviation"], dtype=float)
    losses = [run.steps.set_index("step")["loss"] for run in (plain.run, scaled.run)]
    table = pd.concat(losses, axis=1, keys=["plain", "scaled"], join="inner").reset_index()
    return table.assign(deviation=(table["plain"] - table["scaled"]).abs() / table["plain"].abs())


def distance_of_weights(plain: Outcome, scaled: Outcome) -> float:
    """‖θ − a θ̃‖ / ‖θ − θ_0‖ at the end of two runs: their distance relative to the way that was trained."""
    ends = [_weights(outcome) for outcome in (plain, scaled)]
    if ends[0] is None or ends[1] is None:
        return math.nan
    starts = [_initial(outcome.trial) for outcome in (plain, scaled)]
    apart = way = 0.0
    for key, end in ends[0].items():
        largest = starts[1][key].abs().max()
        factor = float(starts[0][key].abs().max() / largest) if largest > 0 else 1.0
        apart += float((end - factor * ends[1][key]).double().square().sum())
        way += float((end - starts[0][key]).double().square().sum())
    return math.sqrt(apart / way) if way > 0 else math.nan


def _weights(outcome: Outcome) -> dict[str, Tensor] | None:
    path = last_checkpoint(outcome)
    return None if path is None else load_checkpoint(path)["model"]


def _initial(trial: Trial) -> dict[str, Tensor]:
    point = open_point(composed(trial.overrides), None)
    return {key: value.detach().cpu() for key, value in point.model.state_dict().items()}


def _figure(table: pd.DataFrame, name: str) -> Figure:
    canvas, axes = figure(1, len(DTYPES), width=4.4, height=3.2)
    methods = list(dict.fromkeys(table["method"]))
    styles = dict(zip(methods, looks(len(methods)), strict=True))
    shown = table.assign(deviation=table["deviation"].where(table["deviation"] > 0, np.finfo(float).eps))
    for axis, dtype in zip(axes[0], DTYPES, strict=True):
        for method, style in styles.items():
            line = shown[(shown["method"] == method) & (shown["dtype"] == dtype)]
            axis.plot(line["step"], line["deviation"], linewidth=1.3, **style)
        axis.set_xlabel("step")
        axis.set_ylabel("relative deviation of the loss")
        log_scale(axis, "y")
        title(axis, f"{name}, {dtype}")
    handles = [axes[0][0].plot([], [], **style)[0] for style in styles.values()]
    legend_below(canvas, handles, methods)
    return canvas
