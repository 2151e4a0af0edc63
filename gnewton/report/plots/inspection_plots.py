"""The plots of an inspection: heat maps of H̄, rates, spectrum, mass off the diagonal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

from gnewton.report.inspection_report import RATES, Inspected
from gnewton.report.plots.style import COLORS, figure, legend_below, save, title

Floats = npt.NDArray[np.float64]

DECADES = 9
"""A signed logarithmic scale shows at most so many powers of ten below the largest number."""

MOST = 2.0
"""Beyond this a scaled entry has the darkest colour: a single one would make all others pale."""

_MAP = "RdBu_r"  # white at zero: the sign is the hue, the size the depth


def write_inspection_plots(found: Inspected, folder: Path) -> list[Path]:
    """Write every plot as PNG and SVG; returns the paths.

    Raises:
        InputError: if the folder cannot be written.
    """
    figures = {
        "hessian": hessian_figure(found),
        "rates": rates_figure(found),
        "spectrum": spectrum_figure(found),
        "distances": distances_figure(found),
    }
    return [path for name, made in figures.items() if made is not None for path in save(made, folder / name)]


def hessian_figure(found: Inspected) -> Figure:
    """H̄ on a signed logarithmic scale, and the correlation-scaled H̄ on a linear one, symmetric about zero."""
    size = len(found.names)
    side, room = max(2.3, 0.15 * size), _label_room(found)
    made, axes = figure(1, 2, width=side + 0.5 * room + 0.85, height=side + room + 0.7)
    left, right = axes[0]
    largest = float(np.abs(found.hessian).max()) or 1.0
    threshold = _threshold(found.hessian)
    norm = SymLogNorm(threshold, linscale=0.5, vmin=-largest, vmax=largest, base=10)
    _heat_map(made, left, found, found.hessian, norm)
    title(left, "H̄, signed log scale")
    bound = min(max(1.0, float(np.abs(found.scaled).max())), MOST)
    _heat_map(made, right, found, found.scaled, Normalize(-bound, bound))
    title(right, "H̄_st / √|H̄_ss H̄_tt|")
    right.set_yticklabels([])
    _head(made, found)
    return made


def _heat_map(made: Figure, axis: Axes, found: Inspected, values: Floats, norm: Any) -> None:
    size = len(found.names)
    image = axis.imshow(values, cmap=_MAP, norm=norm, interpolation="nearest")
    axis.grid(False)
    font = _font(size)
    axis.set_xticks(range(size), found.names, rotation=90, fontsize=font)
    axis.set_yticks(range(size), found.names, fontsize=font)
    axis.tick_params(length=2, pad=1.5)
    for spine in axis.spines.values():
        spine.set_visible(False)
    layers = found.groups["layer"].to_numpy()
    for edge in np.flatnonzero(np.diff(layers)) + 0.5:  # where a layer ends
        axis.axhline(edge, color="#bbbbbb", linewidth=0.4)
        axis.axvline(edge, color="#bbbbbb", linewidth=0.4)
    beyond = bool((np.abs(values) > norm.vmax).any())
    bar = made.colorbar(image, ax=axis, shrink=0.85, pad=0.02, extend="both" if beyond else "neither")
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=7, length=2)
    if isinstance(norm, SymLogNorm):
        low, top = round(math.log10(norm.linthresh)), math.floor(math.log10(norm.vmax or 1.0))
        powers = [10.0**power for power in range(top, low, -2 if top - low > 3 else -1)][::-1]
        bar.set_ticks([*(-power for power in reversed(powers)), 0.0, *powers])
        bar.ax.minorticks_off()
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def rates_figure(found: Inspected) -> Figure:
    """A bar for the rate of each group with the cubic term, a mark for those without it and alone."""
    size = len(found.names)
    made, axes = figure(1, 1, width=7.0, height=max(2.2, 0.17 * size + 1.4))
    axis = axes[0][0]
    places = np.arange(size)
    values = {rule: found.groups[f"rate_{rule}"].to_numpy(dtype=float) for rule in RATES}
    handles: list[Any] = [axis.barh(places, _shown(values["cubic"]), height=0.62, color=COLORS[0], alpha=0.8)]
    handles += axis.plot(
        _shown(values["newton"]), places, "D", color=COLORS[1], markersize=5, markerfacecolor="none"
    )
    handles += axis.plot(
        _shown(values["alone"]), places, "|", color=COLORS[2], markersize=8, markeredgewidth=2.0
    )
    axis.set_yticks(places, found.names, fontsize=_font(size))
    axis.set_ylim(size - 0.4, -0.6)
    axis.grid(False, axis="y")
    axis.axvline(0, color="#888888", linewidth=0.8)
    axis.set_xlabel("rate η of the group, in units of the direction")
    _signed_log(axis, np.concatenate(list(values.values())))
    labels = [RATES[rule] + _remark(found, rule) for rule in RATES]
    legend_below(made, handles, labels)
    _head(made, found)
    return made


def _remark(found: Inspected, rule: str) -> str:
    if rule == "cubic":
        missing = found.groups["rate_cubic"].isna().all()
        return f", λ_int {found.about['internal_damping']:g}" + (": no minimum" if missing else "")
    unbounded = found.about["statuses"][rule] == "unbounded"
    return ": a saddle" if rule == "newton" and unbounded else ""


def spectrum_figure(found: Inspected) -> Figure:
    """The eigenvalues of H̄ along unit directions (signed log) and of the scaled H̄ (linear)."""
    made, axes = figure(1, 2, width=4.2, height=3.0)
    for axis, column, name in zip(
        axes[0],
        ("per_length", "scaled"),
        ("of H̄ along unit directions", "of the correlation-scaled H̄"),
        strict=True,
    ):
        values = np.sort(found.spectrum[column].to_numpy(dtype=float))[::-1]
        rank = np.arange(1, len(values) + 1)
        for chosen, color in ((values >= 0, COLORS[0]), (values < 0, COLORS[1])):
            axis.vlines(rank[chosen], 0, values[chosen], color=color, linewidth=1.0, alpha=0.6)
            axis.plot(rank[chosen], values[chosen], "o", color=color, markersize=3.5)
        axis.axhline(0, color="#888888", linewidth=0.8)
        axis.set_xlabel("rank")
        axis.set_xlim(0.3, len(values) + 0.7)
        title(axis, f"eigenvalues {name}")
        if column == "per_length":
            _signed_log(axis, values, which="y")
    _head(made, found)
    return made


def distances_figure(found: Inspected) -> Figure | None:
    """The share of Σ|H̄_st| off the diagonal, by the distance between the layers of s and t.

    Returns:
        None for a single group.
    """
    rows = found.distances
    if rows.empty:
        return None
    made, axes = figure(1, 1, width=max(4.6, 0.3 * len(rows) + 3.0), height=3.0)
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
        made, [first, second], [f"H̄: {total:.0%} off the diagonal", f"correlation-scaled: {scaled:.0%}"]
    )
    _head(made, found)
    return made


def _head(made: Figure, found: Inspected) -> None:
    about = found.about
    place = f"step {about['step']:,}" if about["step"] else "initial weights"
    text = f"{about['model']} on {about['data']}, {place}"
    made.suptitle(text, x=0.005, ha="left", fontsize=12, fontweight="bold")


def _font(size: int) -> float:
    return 8.0 if size <= 16 else 7.0 if size <= 30 else 6.0


def _shown(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _signed_log(axis: Axes, values: Floats, which: str = "x") -> None:
    """A scale that is logarithmic on both sides of zero, where sizes differ by more than a factor of 30."""
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
    """Whether a power of ten gets its label: those next to zero have no room."""
    powers = round(math.log10(abs(value) / threshold))
    return powers > 0 and powers % step == 0


def _label_room(found: Inspected) -> float:
    """Inches for the longest name of a group beside a heat map."""
    return 0.0085 * _font(len(found.names)) * max(map(len, found.names)) + 0.1


def _power(value: float) -> str:
    if value == 0:
        return "0"
    sign = "−" if value < 0 else ""
    return f"${sign}10^{{{round(math.log10(abs(value)))}}}$".replace("−", "-")
