"""The style of all plots, their files, and figures with tables as HTML for notebooks."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gnewton.report.comparison import write_file

if TYPE_CHECKING:
    import pandas as pd

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#5A5A5A")
"""The palette of Okabe and Ito for colour-blind readers; its yellow and black are replaced by two colours
that show on white and on black."""

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
"""Line styles; the next one is used when all colours are."""

GRID_COLOR = "#dddddd"

RC: Any = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID_COLOR,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "gnewton",  # equal plots give equal files
}


def looks(count: int) -> list[dict[str, Any]]:
    """Colours and line styles for ``count`` lines."""
    styles = [{"color": color, "linestyle": dash} for dash in DASHES for color in COLORS]
    return list(islice(cycle(styles), count))


def series(place: int) -> str:
    """The ``gid`` of all artists of the curve at that place of the legend; the page finds them by it."""
    return f"series-{place}"


class InlineFigure(Figure):
    """A figure that a notebook draws in place, whether pyplot is set up or not."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


def figure(
    rows: int, columns: int, *, width: float = 4.0, height: float = 3.0
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a grid of axes.

    Args:
        rows, columns: of the grid.
        width, height: of each axes, in inches.
    """
    with mpl.rc_context(RC):
        canvas = InlineFigure(figsize=(width * columns, height * rows), layout="constrained")
        axes = canvas.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.grid(True)
    return canvas, [list(row) for row in axes]


def title(axis: Axes, text: str) -> None:
    """Set a left-aligned title."""
    axis.set_title(text, loc="left", fontsize=10, fontweight="bold", parse_math=False)


def log_scale(axis: Axes, which: str) -> None:
    """Make the "x" or "y" axis logarithmic; short numbers at its ticks are written without an exponent."""
    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    ticks = axis.xaxis if which == "x" else axis.yaxis
    ticks.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    low, high = ticks.get_view_interval()
    decades = math.log10(high / low) if low > 0 else math.inf
    # too few powers of ten: label what lies between them as well
    named = range(2, 9) if decades < 0.7 else (2, 3, 5) if decades < 1.5 else ()
    ticks.set_minor_formatter(
        FuncFormatter(lambda value, _: _plain(value) if _leading(value) in named else "")
    )


def _plain(value: float) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    return f"$10^{{{round(math.log10(value))}}}$" if _leading(value) == 1 else f"{value:.0e}"


def _leading(value: float) -> int:
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9)) if value > 0 else 0


def legend_below(canvas: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put one legend below all axes, in as many columns as fit; the figure grows by the rows it needs."""
    if not labels:
        return
    widest = max(map(len, labels))
    columns = max(1, min(len(labels), int(canvas.get_size_inches()[0] * 11 / (widest + 6))))
    rows = math.ceil(len(labels) / columns)
    canvas.set_figheight(canvas.get_figheight() + 0.19 * max(0, rows - 2))
    legend = canvas.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may contain $


def save(canvas: Figure, stem: Path) -> list[Path]:
    """Write a figure as ``stem.png`` and ``stem.svg`` and return the paths.

    Raises:
        InputError: if a file cannot be written.
    """
    return [
        write_file(stem.with_name(f"{stem.name}.{suffix}"), render(canvas, suffix)) for suffix in _FORMATS
    ]


_FORMATS: dict[str, Any] = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}


def render(canvas: Figure, suffix: str) -> bytes:
    """The content of a "png" or "svg" file of a figure."""
    buffer = io.BytesIO()
    with mpl.rc_context(RC):
        canvas.savefig(buffer, format=suffix, facecolor="white", **_FORMATS[suffix])
    return buffer.getvalue()


def slug(text: str) -> str:
    """A text as part of a file name: without special characters, at most 80 long."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", text).strip("_")[:80] or "plot"


ROWS = 60
"""Rows of a table that are shown; the middle of a longer one is left out."""


def fragment(title: str, table: pd.DataFrame, figures: Iterable[Figure]) -> str:
    """A title, a table with three digits and figures as embedded PNG images."""

    shown = table.to_html(max_rows=ROWS, float_format=lambda value: f"{value:.3g}", na_rep="–", border=0)
    images = [
        f'<img style="max-width:100%" alt="" src="data:image/png;base64,{_base64(render(plot, "png"))}">'
        for plot in figures
    ]
    return "\n".join([f"<div><p>{html.escape(title)}</p>", shown, *images, "</div>"])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
