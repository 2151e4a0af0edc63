"""The learning rates of the groups over training, one figure for each set-up that has them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from gnewton.report.plots.style import figure, legend_below, log_scale, title
from gnewton.report.rates import median_rates
from gnewton.report.setups import Setup

LEGEND_UP_TO = 24
"""Up to so many groups each is named; beyond, a colour bar gives their places in the partition."""


def rates_figure(setup: Setup) -> Figure | None:
    """Learning rate λ₁η of every group against training steps; biases and other vectors are dashed.

    Returns:
        None where the set-up has no rates.
    """
    members = [run.rates for run in setup.runs if run.rates is not None]
    rates = median_rates(members)
    if rates is None:
        return None
    made, axes = figure(1, 1, width=8.0, height=4.5)
    axis = axes[0][0]
    names = [str(name) for name in rates.columns]
    steps = [*rates.index, max(setup.last_step, rates.index[-1])]  # the last rates hold up to the end
    colors = _colors(len(names))
    handles = [
        axis.step(
            steps,
            [*rates[name], rates[name].iloc[-1]],
            where="post",
            color=color,
            linewidth=1.3,
            linestyle="--" if name.rpartition(".")[2] in ("bias", "biases") else "-",
        )[0]
        for name, color in zip(rates.columns, colors, strict=True)
    ]
    axis.set_xlabel("training steps")
    axis.set_ylabel("learning rate of the group")
    over = f", median of {len(members)} runs" if len(members) > 1 else ""
    title(axis, f"{setup.label}: rates{over}")
    _scale(axis, rates.to_numpy())
    if len(names) <= LEGEND_UP_TO:
        legend_below(made, handles, names)
    else:
        mappable = ScalarMappable(Normalize(1, len(names)), colormaps["viridis"])
        made.colorbar(mappable, ax=axis, label="place of the group in the partition (dashed: biases)")
    return made


def _colors(count: int) -> list[tuple[float, ...]]:
    return [tuple(color) for color in colormaps["viridis"](np.linspace(0, 0.92, count))]


def _scale(axis: Axes, values: npt.NDArray[np.float64]) -> None:
    """Logarithmic where all rates are positive; linear around zero where some are not."""
    positive = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(positive):
        return
    if (values[np.isfinite(values)] > 0).all():
        log_scale(axis, "y")
    else:
        axis.set_yscale("symlog", linthresh=float(np.quantile(positive, 0.05)))
        axis.axhline(0, color="#888888", linewidth=0.8)
