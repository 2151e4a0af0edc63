"""Tables and figures as HTML that a notebook shows."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ROWS = 60
"""Rows of a table that are shown; the middle of a longer one is left out."""


def fragment(title: str, table: pd.DataFrame, figures: Iterable[Figure]) -> str:
    """A title, a table with three digits and figures as embedded PNG images."""
    from gnewton.report.plots.style import rendered

    shown = table.to_html(max_rows=ROWS, float_format=lambda value: f"{value:.3g}", na_rep="–", border=0)
    images = [
        f'<img style="max-width:100%" alt="" src="data:image/png;base64,{_encoded(rendered(plot, "png"))}">'
        for plot in figures
    ]
    return "\n".join([f"<div><p>{html.escape(title)}</p>", shown, *images, "</div>"])


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
