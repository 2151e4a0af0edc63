"""The report of a study: CSV files, a Markdown page and figures."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import gnewton
from gnewton.report.curves import Profile
from gnewton.report.plots.comparison_plots import profile_figure
from gnewton.report.plots.style import figure, legend_below, looks, save, title
from scripts.study.plan import Plan
from scripts.study.results import final_loss, geometric_mean, ratios, trailing_loss
from scripts.study.stages import Outcome


def write_report(
    folder: Path, plan: Plan, searched: Sequence[Outcome], finals: Sequence[Outcome], results: pd.DataFrame
) -> None:
    """Write all_runs.csv, results.csv, README.md, curves and the performance profile."""
    folder.mkdir(parents=True, exist_ok=True)
    _all_runs([*searched, *finals]).to_csv(folder / "all_runs.csv", index=False, float_format="%.6g")
    results.to_csv(folder / "results.csv", index=False, float_format="%.6g")
    (folder / "README.md").write_text(_page(plan, searched, finals, results), encoding="utf-8")
    _curves(folder / "curves", plan, finals)
    _profile(folder / "profile", plan, results)


def _all_runs(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Every run of the study: none is left out."""
    return pd.DataFrame(
        [
            {
                "task": outcome.trial.task,
                "method": outcome.trial.method,
                "setting": outcome.trial.setting,
                "seed": outcome.trial.seed,
                "status": outcome.status,
                "train_loss": final_loss(outcome),
            }
            for outcome in outcomes
        ]
    )


def _page(plan: Plan, searched: Sequence[Outcome], finals: Sequence[Outcome], results: pd.DataFrame) -> str:
    base = plan.reference
    lines = [
        "# Study",
        "",
        f"- gnewton {gnewton.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"- {len(searched)} runs of the search (seed {plan.search_seed}), {len(finals)} final runs "
        f"(seeds {', '.join(map(str, plan.seeds))}); every run is in all_runs.csv",
        "- training loss: over the training set at the end, median (least…greatest) of the seeds; a run that "
        "diverged counts as infinite",
        f"- to {base}: share of the run after which the mean loss of the last tenth of the steps is that of "
        f"{base} at its end",
        "",
        f"| task | method | setting | n | lost | training loss | / {base} | to {base} | test accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_row, results.to_dict("records")),
        "",
        f"Training loss over that of {base}, across the tasks:",
        "",
        "| method | geometric mean | worst |",
        "|---|---|---|",
    ]
    for method in plan.methods:
        against = ratios(results, base, method.name)
        lines.append(f"| {method.name} | {geometric_mean(against):.2f} | {against.max():.2f} |")
    return "\n".join([*lines, "", "![training loss by step](curves.png)", "", "![profile](profile.png)", ""])


def _row(row: dict[Any, Any]) -> str:
    spread = f"{row['train_loss']:.4g} ({row['least']:.4g}…{row['greatest']:.4g})"
    share = "never" if math.isinf(row["share_to_reference"]) else f"{row['share_to_reference']:.2f}"
    accuracy = "" if math.isnan(row["test_accuracy"]) else f"{100 * row['test_accuracy']:.1f} %"
    cells = (row["task"], row["method"], row["setting"], row["n"], row["lost"], spread)
    return "| " + " | ".join(map(str, (*cells, f"{row['ratio']:.2f}", share, accuracy))) + " |"


def _curves(stem: Path, plan: Plan, finals: Sequence[Outcome]) -> None:
    """The trailing training loss by step: one axes per task, the median over the seeds."""
    columns = min(3, len(plan.tasks))
    rows = math.ceil(len(plan.tasks) / columns)
    canvas, axes = figure(rows, columns, width=4.2, height=3.0)
    styles = dict(zip([m.name for m in plan.methods], looks(len(plan.methods)), strict=True))
    flat = list(np.asarray(axes).flat)
    for axis, task in zip(flat, plan.tasks, strict=False):
        for method, style in styles.items():
            of_method = [
                trailing_loss(o)
                for o in finals
                if o.trial.task == task and o.trial.method == method and not o.lost
            ]
            if of_method:
                median = pd.concat(of_method, axis=1).median(axis=1)
                axis.plot(median.index, median.to_numpy(), linewidth=1.4, **style)
        axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.set_ylabel("training loss")
        title(axis, task)
    for axis in flat[len(plan.tasks) :]:
        axis.set_visible(False)
    handles = [flat[0].plot([], [], **style)[0] for style in styles.values()]
    legend_below(canvas, handles, list(styles))
    save(canvas, stem)


def _profile(stem: Path, plan: Plan, results: pd.DataFrame) -> None:
    """The share of tasks on which a method ends within a factor of the least loss (Dolan and Moré, 2002)."""
    losses = results.pivot(index="task", columns="method", values="train_loss")
    losses = losses[[method.name for method in plan.methods]]
    canvas = profile_figure([Profile("train_loss", losses.div(losses.min(axis=1), axis=0))])
    assert canvas is not None
    save(canvas, stem)
