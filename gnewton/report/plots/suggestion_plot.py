"""The plot of suggested learning rates."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gnewton.report.plots.style import COLORS, figure, legend_below, log_scale, title

ALL = "(all)"
"""The row of all parameters together."""


def suggestion_figure(table: pd.DataFrame) -> Figure:
    """The rate of each group with its spread, on a logarithmic scale, and the rate of all parameters.

    Args:
        table: the columns of suggestion.csv, indexed by ``group``; the row ``(all)`` is the common rate.
    """
    groups, common = table.drop(index=ALL), table.loc[ALL]
    size = len(groups)
    canvas, axes = figure(1, 1, width=7.0, height=max(2.2, 0.19 * size + 1.3))
    axis = axes[0][0]
    places = np.arange(size)
    solved = (groups["from"] == "solve").to_numpy()
    rates = groups["rate"].to_numpy(dtype=float)
    low, high = (groups[name].to_numpy(dtype=float) for name in ("low", "high"))
    handles, labels = [], []
    if solved.any():
        spread = axis.hlines(
            places[solved],
            np.maximum(low[solved], rates[solved] / 100),
            high[solved],
            color=COLORS[0],
            alpha=0.5,
        )
        points = axis.plot(rates[solved], places[solved], "o", color=COLORS[0], markersize=5)
        handles += [points[0], spread]
        labels += ["rate of the group", "10–90 % over resampled batches"]
    if not solved.all():
        handles += axis.plot(
            rates[~solved], places[~solved], "o", color=COLORS[0], markersize=5, markerfacecolor="none"
        )
        labels.append("that of all: the solve gives none above 0")
    axis.axvspan(float(common["low"]), float(common["high"]), color=COLORS[1], alpha=0.15, linewidth=0)
    handles.append(axis.axvline(float(common["rate"]), color=COLORS[1], linewidth=1.2))
    labels.append(f"all parameters together: {float(common['rate']):.3g}")
    axis.set_yticks(places, list(groups.index), fontsize=8 if size <= 30 else 6)
    axis.set_ylim(size - 0.4, -0.6)
    axis.grid(False, axis="y")
    ends = np.concatenate([rates, high[solved], [float(common["rate"])]])
    middle, reach = math.sqrt(ends.min() * ends.max()), max(1.6 * math.sqrt(ends.max() / ends.min()), 4.0)
    axis.set_xlim(middle / reach, middle * reach)
    log_scale(axis, "x")
    axis.set_xlabel("learning rate")
    title(axis, "suggested learning rates")
    legend_below(canvas, handles, labels)
    return canvas
