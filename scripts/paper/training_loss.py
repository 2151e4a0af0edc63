"""Training losses of several methods by epochs and by seconds, as a figure and as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gnewton.report.plots.style import figure, legend_below, log_scale, looks, title
from scripts.study.results import at_end, trailing_loss
from scripts.study.stages import Outcome

AXES = {"epoch": "epochs", "train_seconds": "training seconds"}


def curve_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """The training loss along every run.

    Columns: ``task``, ``method``, ``setting``, ``seed``, ``step``, ``epoch``, ``train_seconds``, ``loss``
    (the mean since the row before) and ``trailing`` (the mean over a tenth of the run's steps).
    """
    tables = []
    for outcome in outcomes:
        if outcome.run is None or outcome.run.steps.empty:
            continue
        steps, end = outcome.run.steps, outcome.run.metrics.iloc[-1]
        trial = outcome.trial
        per_epoch = float(end["step"]) / float(end["epoch"]) if end["epoch"] else np.nan
        table = steps[["step", "train_seconds", "loss"]].assign(
            task=trial.task,
            method=trial.method,
            setting=trial.setting,
            seed=trial.seed,
            epoch=steps["step"] / per_epoch,
            trailing=steps["step"].map(trailing_loss(outcome)),
        )
        tables.append(table)
    columns = ["task", "method", "setting", "seed", "step", "epoch", "train_seconds", "loss", "trailing"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def loss_figure(curves: pd.DataFrame, heading: str) -> Figure:
    """The trailing training loss of one task by epochs and by seconds, the median over the seeds.

    Args:
        curves: rows of :func:`curve_table` of one task.
        heading: of the figure.
    """
    canvas, axes = figure(1, len(AXES), width=4.6, height=3.4)
    methods = list(dict.fromkeys(curves["method"]))
    styles = dict(zip(methods, looks(len(methods)), strict=True))
    for axis, (column, label) in zip(axes[0], AXES.items(), strict=True):
        for method, style in styles.items():
            of_method = curves[(curves["method"] == method) & curves["trailing"].notna()]
            median = of_method.groupby("step")[[column, "trailing"]].median()
            axis.plot(median[column], median["trailing"], linewidth=1.5, **style)
        axis.set_xlim(left=0)
        axis.set_xlabel(label)
        axis.set_ylabel("training loss")
        if (curves["trailing"].dropna() > 0).all():
            log_scale(axis, "y")
    title(axes[0][0], heading)
    handles = [axes[0][0].plot([], [], **style)[0] for style in styles.values()]
    legend_below(canvas, handles, methods)
    return canvas


def end_table(outcomes: Sequence[Outcome], reference: str) -> pd.DataFrame:
    """The ends of every task and method, over the seeds.

    Columns: ``task``, ``method``, ``setting``, ``n``, ``lost`` (runs without an end), the median, least and
    greatest final training loss, its median over that of ``reference``, and median test accuracy and seconds.
    """
    rows = []
    for task, method in dict.fromkeys((o.trial.task, o.trial.method) for o in outcomes):
        members = [o for o in outcomes if (o.trial.task, o.trial.method) == (task, method)]
        losses = at_end(members, "train_loss")
        rows.append(
            {
                "task": task,
                "method": method,
                "setting": members[0].trial.setting,
                "n": len(members),
                "lost": sum(o.lost for o in members),
                "train_loss": losses.median(),
                "least": losses.min(),
                "greatest": losses.max(),
                "test_accuracy": at_end(members, "test_accuracy").median(),
                "train_seconds": at_end(members, "train_seconds").median(),
            }
        )
    table = pd.DataFrame(rows)
    base = table[table["method"] == reference].set_index("task")["train_loss"]
    table.insert(8, "ratio", table["train_loss"] / table["task"].map(base))
    return table
