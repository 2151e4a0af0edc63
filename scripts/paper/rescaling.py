"""Invariance: a network trained in parameterisations that differ by a factor for each group.

θ_s = a_s θ̃_s, in two forms:

- ``powers``: powers of two for weights and biases (:mod:`scripts.paper.units`). The runs start from the same
  function to the last bit.
- ``ntk``: ``model.scaling=true``, the parameterisation of the neural tangent kernel: 1/√fan_in for weights.
  They are drawn in float32, so the runs start from functions that differ by its rounding.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from gnewton.experiment.build import open_point
from gnewton.report.plots.style import figure, legend_below, log_scale, looks, title
from gnewton.training.checkpoint import load_checkpoint
from scripts.paper.record import FigureFiles
from scripts.paper.runs import Workshop, composed, last_checkpoint
from scripts.paper.settings import PAPER, PaperSettings
from scripts.paper.units import Times
from scripts.study.plan import Trial
from scripts.study.stages import Outcome

PLAIN = "plain"
FORMS = {PLAIN: (), "powers": ("model.spread=8",), "ntk": ("model.scaling=true",)}
RESCALED = ("powers", "ntk")
DTYPES = ("float64", "float32")
CAPPED = f"{PAPER}, cap"
"""The method with the cap on steps, whose floor, for parameters that start at 0, is in fixed units."""


def rescaling(settings: PaperSettings, workshop: Workshop) -> FigureFiles:
    """Train in each form and compare losses and weights.

    The paper's preset is trained in all forms and number formats; in float64, :data:`CAPPED` in powers and
    the rivals in ntk.
    """
    name, seed = settings.rescaling_task[0].partition("=")[2], settings.curves.seeds[0]
    pairs = [
        (method, dtype, form)
        for method in settings.rescaling
        for dtype in DTYPES[: 2 if method == PAPER else 1]
        for form in {PAPER: RESCALED, CAPPED: RESCALED[:1]}.get(method, RESCALED[1:])
    ]
    trials = {
        (method, dtype, form): settings.trial(
            name,
            method,
            f"{dtype} {form}",
            seed,
            (*settings.rescaling_task, *settings.rescaling[method], f"trainer.dtype={dtype}", *FORMS[form]),
        )
        for method, dtype, other in pairs
        for form in (PLAIN, other)
    }
    outcomes = dict(zip(trials, workshop.run(list(trials.values())), strict=True))
    lines, ends = [], []
    for method, dtype, form in pairs:
        plain, other = outcomes[method, dtype, PLAIN], outcomes[method, dtype, form]
        about = {"method": method, "dtype": dtype, "form": form}
        line = deviations(plain, other)
        lines.append(line.assign(**about))
        ends.append(
            {
                **about,
                "steps": len(line),
                "at_start": line["deviation"].iloc[0] if len(line) else math.nan,
                "at_end": line["deviation"].iloc[-1] if len(line) else math.nan,
                "largest": line["deviation"].max(),
                "weights": distance_of_weights(plain, other),
                "lost": plain.lost + other.lost,
            }
        )
    table = pd.concat(lines, ignore_index=True)
    return FigureFiles(
        tables={"deviation": table, "ends": pd.DataFrame(ends)},
        images={"deviation": _figure(table, name)},
        outcomes=list(outcomes.values()),
    )


def deviations(plain: Outcome, other: Outcome) -> pd.DataFrame:
    """The losses of two runs step by step, and |L − L̃|/|L|."""
    if plain.run is None or other.run is None:
        return pd.DataFrame(columns=["step", "plain", "rescaled", "deviation"], dtype=float)
    losses = [run.steps.set_index("step")["loss"] for run in (plain.run, other.run)]
    table = pd.concat(losses, axis=1, keys=["plain", "rescaled"], join="inner").reset_index()
    return table.assign(deviation=(table["plain"] - table["rescaled"]).abs() / table["plain"].abs())


def distance_of_weights(plain: Outcome, other: Outcome) -> float:
    """‖θ − a θ̃‖ / ‖θ − θ_0‖ at the end of two runs: their distance relative to the way that was trained."""
    end, end_of_other = _weights(plain), _weights(other)
    if end is None or end_of_other is None:
        return math.nan
    start, units = _initial(plain.trial), _units(other.trial)
    apart = way = 0.0
    for key, value in end.items():
        apart += float((value - units[key] * end_of_other[key]).double().square().sum())
        way += float((value - start[key]).double().square().sum())
    return math.sqrt(apart / way) if way > 0 else math.nan


def _weights(outcome: Outcome) -> dict[str, Tensor] | None:
    path = last_checkpoint(outcome)
    return None if path is None else load_checkpoint(path)["model"]


@cache
def _initial(trial: Trial) -> dict[str, Tensor]:
    point = open_point(composed(trial.overrides), None)
    return {key: value.detach().cpu() for key, value in point.model.state_dict().items()}


def _units(trial: Trial) -> dict[str, float]:
    """a_s of every parameter of a run, by its name."""
    point = open_point(composed(trial.overrides), None)
    units = {}
    for key, stored in point.model.named_parameters():
        times = point.model.get_submodule(f"{key.rpartition('.')[0]}.0")
        assert isinstance(times, Times)
        factor = times.factor
        ntk = point.settings.model.scaling and stored.ndim > 1  # type: ignore[attr-defined]
        units[key] = factor / math.sqrt(stored[0].numel()) if ntk else factor
    return units


def _figure(table: pd.DataFrame, name: str) -> Figure:
    canvas, axes = figure(1, len(DTYPES), width=4.4, height=3.2)
    kinds = list(dict.fromkeys(zip(table["method"], table["form"], strict=True)))
    styles = dict(zip(kinds, looks(len(kinds)), strict=True))
    shown = table.assign(deviation=table["deviation"].where(table["deviation"] > 0, np.finfo(float).eps / 4))
    for axis, dtype in zip(axes[0], DTYPES, strict=True):
        for (method, form), style in styles.items():
            line = shown[(shown["method"] == method) & (shown["form"] == form) & (shown["dtype"] == dtype)]
            axis.plot(line["step"], line["deviation"], linewidth=1.3, **style)
        axis.set_xlabel("step")
        axis.set_ylabel("relative deviation of the loss")
        log_scale(axis, "y")
        title(axis, f"{name}, {dtype}")
    handles = [axes[0][0].plot([], [], **style)[0] for style in styles.values()]
    legend_below(canvas, handles, [f"{method}, {form}" for method, form in kinds])
    return canvas
