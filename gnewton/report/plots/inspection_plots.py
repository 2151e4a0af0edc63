"""Plots of an inspection (heat maps of H̄, rates, spectrum, mass off the diagonal), and of suggested rates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

from gnewton.report.inspection_report import RATES, InspectionFiles
from gnewton.report.plots.loss_along_plots import along_figure
from gnewton.report.plots.style import COLORS, figure, legend_below, log_scale, save, title

Floats = npt.NDArray[np.float64]

DECADES = 9
"""Powers of ten below the largest value that a signed logarithmic scale shows."""

SATURATION = 2.0
"""Scaled entries beyond this value share the darkest colour: one outlier must not make the others pale."""

_MAP = "RdBu_r"  # white at zero; the hue shows the sign, the depth the size


def write_inspection_plots(files: InspectionFiles, folder: Path) -> list[Path]:
    """Write every plot as PNG and SVG and return the paths.

    Raises:
        InputError: if the folder cannot be written.
    """
    figures = {
        "hessian": hessian_figure(files),
        "rates": rates_figure(files),
        "spectrum": spectrum_figure(files),
        "distances": distances_figure(files),
        "along": along_figure(files),
    }
    return [path for name, plot in figures.items() if plot is not None for path in save(plot, folder / name)]


_MATRICES = {"hessian": "H̄", "gauss_newton": "Gauss–Newton matrix", "fisher": "Fisher matrix"}


def matrix_name(files: InspectionFiles) -> str:
    """What the matrix of an inspection is called in its figures."""
    return _MATRICES[files.matrix]


def hessian_figure(files: InspectionFiles) -> Figure:
    """H̄ on a signed logarithmic scale, and the correlation-scaled H̄ on a linear one, symmetric about zero."""
    size = len(files.names)
    side, room = max(2.3, 0.15 * size), _label_room(files)
    canvas, axes = figure(1, 2, width=side + 0.5 * room + 0.85, height=side + room + 0.7)
    left, right = axes[0]
    largest = float(np.abs(files.hessian).max()) or 1.0
    threshold = _threshold(files.hessian)
    norm = SymLogNorm(threshold, linscale=0.5, vmin=-largest, vmax=largest, base=10)
    _heat_map(canvas, left, files, files.hessian, norm)
    title(left, f"{matrix_name(files)}, signed log scale")
    bound = min(max(1.0, float(np.abs(files.scaled).max())), SATURATION)
    _heat_map(canvas, right, files, files.scaled, Normalize(-bound, bound))
    title(right, "correlation-scaled" if files.matrix != "hessian" else "H̄_st / √|H̄_ss H̄_tt|")
    right.set_yticklabels([])
    _head(canvas, files)
    return canvas


def _heat_map(canvas: Figure, axis: Axes, files: InspectionFiles, values: Floats, norm: Any) -> None:
    size = len(files.names)
    image = axis.imshow(values, cmap=_MAP, norm=norm, interpolation="nearest")
    axis.grid(False)
    font = _font(size)
    axis.set_xticks(range(size), files.names, rotation=90, fontsize=font)
    axis.set_yticks(range(size), files.names, fontsize=font)
    axis.tick_params(length=2, pad=1.5)
    for spine in axis.spines.values():
        spine.set_visible(False)
    layers = files.groups["layer"].to_numpy()
    for edge in np.flatnonzero(np.diff(layers)) + 0.5:  # boundaries between layers
        axis.axhline(edge, color="#bbbbbb", linewidth=0.4)
        axis.axvline(edge, color="#bbbbbb", linewidth=0.4)
    beyond = bool((np.abs(values) > norm.vmax).any())
    bar = canvas.colorbar(image, ax=axis, shrink=0.85, pad=0.02, extend="both" if beyond else "neither")
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=7, length=2)
    if isinstance(norm, SymLogNorm):
        low, top = round(math.log10(norm.linthresh)), math.floor(math.log10(norm.vmax or 1.0))
        powers = [10.0**power for power in range(top, low, -2 if top - low > 3 else -1)][::-1]
        bar.set_ticks([*(-power for power in reversed(powers)), 0.0, *powers])
        bar.ax.minorticks_off()
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def rates_figure(files: InspectionFiles) -> Figure:
    """The rates of each group: bars with the cubic term, marks without it and for each group alone."""
    size = len(files.names)
    canvas, axes = figure(1, 1, width=7.0, height=max(2.2, 0.17 * size + 1.4))
    axis = axes[0][0]
    places = np.arange(size)
    values = {rule: files.groups[f"rate_{rule}"].to_numpy(dtype=float) for rule in RATES}
    handles: list[Any] = [axis.barh(places, _shown(values["cubic"]), height=0.62, color=COLORS[0], alpha=0.8)]
    handles += axis.plot(
        _shown(values["newton"]), places, "D", color=COLORS[1], markersize=5, markerfacecolor="none"
    )
    handles += axis.plot(
        _shown(values["alone"]), places, "|", color=COLORS[2], markersize=8, markeredgewidth=2.0
    )
    axis.set_yticks(places, files.names, fontsize=_font(size))
    axis.set_ylim(size - 0.4, -0.6)
    axis.grid(False, axis="y")
    axis.axvline(0, color="#888888", linewidth=0.8)
    axis.set_xlabel("rate η of the group, in units of the direction")
    _signed_log(axis, np.concatenate(list(values.values())))
    labels = [RATES[rule] + _remark(files, rule) for rule in RATES]
    legend_below(canvas, handles, labels)
    _head(canvas, files)
    return canvas


def _remark(files: InspectionFiles, rule: str) -> str:
    if rule == "cubic":
        missing = files.groups["rate_cubic"].isna().all()
        return f", λ_int {files.about['internal_damping']:g}" + (": no minimum" if missing else "")
    unbounded = files.about["statuses"][rule] == "unbounded"
    return ": a saddle" if rule == "newton" and unbounded else ""


def spectrum_figure(files: InspectionFiles) -> Figure:
    """The eigenvalues of H̄ along unit directions (signed log) and of the scaled H̄ (linear)."""
    canvas, axes = figure(1, 2, width=4.2, height=3.0)
    named = matrix_name(files)
    for axis, column, name in zip(
        axes[0],
        ("per_length", "scaled"),
        (f"of {named} along unit directions", f"of the correlation-scaled {named}"),
        strict=True,
    ):
        values = np.sort(files.spectrum[column].to_numpy(dtype=float))[::-1]
        rank = np.arange(1, len(values) + 1)
        for mask, color in ((values >= 0, COLORS[0]), (values < 0, COLORS[1])):
            axis.vlines(rank[mask], 0, values[mask], color=color, linewidth=1.0, alpha=0.6)
            axis.plot(rank[mask], values[mask], "o", color=color, markersize=3.5)
        axis.axhline(0, color="#888888", linewidth=0.8)
        axis.set_xlabel("rank")
        axis.set_xlim(0.3, len(values) + 0.7)
        title(axis, f"eigenvalues {name}")
        if column == "per_length":
            _signed_log(axis, values, which="y")
    _head(canvas, files)
    return canvas


def distances_figure(files: InspectionFiles) -> Figure | None:
    """The share of Σ|H̄_st| off the diagonal, by the distance between the layers of s and t.

    Returns:
        None for a single group.
    """
    rows = files.distances
    if rows.empty:
        return None
    canvas, axes = figure(1, 1, width=max(4.6, 0.3 * len(rows) + 3.0), height=3.0)
    axis = axes[0][0]
    layers = rows["layers"].to_numpy(dtype=float)
    first = axis.bar(layers - 0.2, rows["share"], width=0.38, color=COLORS[0])
    second = axis.bar(layers + 0.2, rows["scaled_share"], width=0.38, color=COLORS[1])
    axis.set_xlabel("layers from one group to the other (0: the same layer)")
    axis.set_ylabel("share of Σ|H̄_st|")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.set_xticks(layers[:: max(1, len(layers) // 12)])
    total, scaled = rows["share"].sum(), rows["scaled_share"].sum()
    legend_below(
        canvas,
        [first, second],
        [f"{matrix_name(files)}: {total:.0%} off the diagonal", f"correlation-scaled: {scaled:.0%}"],
    )
    _head(canvas, files)
    return canvas


def _head(canvas: Figure, files: InspectionFiles) -> None:
    about = files.about
    text = about.get("title")
    if text is None:
        place = f"step {about['step']:,}" if about["step"] else "initial weights"
        text = f"{about['model']} on {about['data']}, {place}"
    canvas.suptitle(text, x=0.005, ha="left", fontsize=12, fontweight="bold")


def _font(size: int) -> float:
    return 8.0 if size <= 16 else 7.0 if size <= 30 else 6.0


def _shown(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _signed_log(axis: Axes, values: Floats, which: str = "x") -> None:
    """Use a logarithmic scale on both sides of zero if the sizes differ by a factor of 30 or more."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(sizes) or sizes.max() / sizes.min() < 30:
        return
    threshold = _threshold(values)
    decades = math.log10(sizes.max() / threshold)
    set_scale = axis.set_xscale if which == "x" else axis.set_yscale
    set_scale("symlog", linthresh=threshold, linscale=0.4)
    set_limits = axis.set_xlim if which == "x" else axis.set_ylim
    low, high = np.nanmin(values), np.nanmax(values)
    set_limits(2 * low if low < 0 else 0, 2 * high if high > 0 else 0)
    ticks = axis.xaxis if which == "x" else axis.yaxis
    ticks.set_major_locator(SymmetricalLogLocator(base=10, linthresh=threshold))
    step = math.ceil(decades / 4)
    ticks.set_major_formatter(
        FuncFormatter(lambda value, _: _power(value) if value == 0 or _named(value, threshold, step) else "")
    )


def _threshold(values: Floats) -> float:
    """The power of ten below which a signed logarithmic scale is linear."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(sizes):
        return 1.0
    return 10.0 ** math.floor(math.log10(max(sizes.min(), sizes.max() * 10.0**-DECADES)))


def _named(value: float, threshold: float, step: int) -> bool:
    """Whether a power of ten gets a label; those next to zero have no room."""
    powers = round(math.log10(abs(value) / threshold))
    return powers > 0 and powers % step == 0


def _label_room(files: InspectionFiles) -> float:
    """Inches for the longest name of a group beside a heat map."""
    return 0.0085 * _font(len(files.names)) * max(map(len, files.names)) + 0.1


def _power(value: float) -> str:
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    return f"${sign}10^{{{round(math.log10(abs(value)))}}}$"


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
