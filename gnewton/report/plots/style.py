"""How every plot looks, and how it is written."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gnewton.report.comparison import write_file

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#5A5A5A")
"""Okabe and Ito's palette, which the colour-blind can tell apart; yellow and black are exchanged for two that
show on white and on black."""

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
"""Line styles, for when the colours are used up."""

_RC: Any = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "gnewton",  # the same plot gives the same file
}


def looks(count: int) -> list[dict[str, Any]]:
    """Colour and line style of each of ``count`` lines."""
    styles = [{"color": color, "linestyle": dash} for dash in DASHES for color in COLORS]
    return list(islice(cycle(styles), count))


def figure(
    rows: int, columns: int, *, width: float = 4.0, height: float = 3.0
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a grid of axes.

    Args:
        rows, columns: of the grid.
        width, height: of each of the axes, in inches.
    """
    with mpl.rc_context(_RC):
        made = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = made.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.grid(True)
    return made, [list(row) for row in axes]


def title(axis: Axes, text: str) -> None:
    """Set the title of axes, at their left."""
    axis.set_title(text, loc="left", fontsize=10, fontweight="bold", parse_math=False)


def log_scale(axis: Axes, which: str) -> None:
    """Make the "x" or "y" axis logarithmic, with plain numbers at the ticks where these are short."""
    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    ticks = axis.xaxis if which == "x" else axis.yaxis
    ticks.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    low, high = ticks.get_view_interval()
    few = low > 0 and math.log10(high / low) < 1.5  # too few powers of ten to read the axis by
    ticks.set_minor_formatter(
        FuncFormatter(lambda value, _: _plain(value) if few and _leading(value) in (2, 3, 5) else "")
    )


def _plain(value: float) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    return f"$10^{{{round(math.log10(value))}}}$" if _leading(value) == 1 else f"{value:.0e}"


def _leading(value: float) -> int:
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9)) if value > 0 else 0


def legend_below(made: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for all axes, under them, in as many columns as fit; the figure grows by what it needs."""
    if not labels:
        return
    widest = max(map(len, labels))
    columns = max(1, min(len(labels), int(made.get_size_inches()[0] * 11 / (widest + 6))))
    rows = math.ceil(len(labels) / columns)
    made.set_figheight(made.get_figheight() + 0.19 * max(0, rows - 2))
    legend = made.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with $ is no formula


def save(made: Figure, stem: Path) -> list[Path]:
    """Write a figure as ``stem.png`` and ``stem.svg``; returns their paths.

    Raises:
        InputError: if they cannot be written.
    """
    paths = []
    for suffix, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        buffer = io.BytesIO()
        with mpl.rc_context(_RC):
            made.savefig(buffer, format=suffix, facecolor="white", **options)  # type: ignore[arg-type]
        paths.append(write_file(stem.with_name(f"{stem.name}.{suffix}"), buffer.getvalue()))
    return paths


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", text).strip("_")[:80] or "plot"
