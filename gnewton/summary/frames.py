"""A summary as a table: a DataFrame, text and HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

ROWS = 60
"""Rows of a table that are shown; the middle of a longer one is left out."""

SHOWN = ("gradient", "curvature", "third")
"""Columns of the table as text."""


def group_frame(parts: Mapping[str, Tensor], names: Sequence[str]) -> pd.DataFrame:
    """A row for each group, by its name, else its number: derivatives and their noise.

    The columns are ``gradient``, ``curvature`` (the diagonal of H̄), ``third`` where it was requested, and
    each of them with ``_noise``, in the unit of the loss.

    Args:
        parts: the tensors of the summary by attribute.
        names: of the groups; empty where they are not known.
    """
    import pandas as pd

    columns = {}
    for suffix in ("", "_noise"):
        for name in SHOWN:
            entries = parts.get({"curvature": "hessian"}.get(name, name) + suffix)
            if entries is not None:
                columns[name + suffix] = (entries if entries.dim() == 1 else entries.diagonal()).cpu().numpy()
    index = pd.Index(list(names) or range(len(columns["gradient"])), name="group")
    return pd.DataFrame(columns, index=index)


def title(count: int, loss: float) -> str:
    """The line above the table."""
    return f"Summary of {count} group{'s' if count != 1 else ''}, loss {loss:.6g}"


def as_text(head: str, table: pd.DataFrame) -> str:
    """A title and the derivatives of each group."""
    return f"{head}\n{_shown(table).to_string(max_rows=ROWS, float_format=lambda value: f'{value:.4g}')}"


def as_html(head: str, table: pd.DataFrame) -> str:
    """The same as HTML."""
    cells = _shown(table).to_html(max_rows=ROWS, float_format=lambda value: f"{value:.4g}", border=0)
    return f"<div><p>{html.escape(head)}</p>\n{cells}</div>"


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in SHOWN if name in table]]
