"""Reading the files of a run, which may have been killed or may still be going on."""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from gnewton.errors import InputError, first_line


def read_csv(
    path: Path, columns: Collection[str], needed: Collection[str], text: Collection[str] = ()
) -> pd.DataFrame:
    """The whole lines of a CSV file: a kill may have left a last one without its end.

    Args:
        path: the file. One without any whole line has no rows: a run that is just starting leaves it so.
        columns: what is read of it, where it is there; what is not text is a number or true and false.
        needed: of these, what has to be there, in every row.
        text: of these, what is text.

    Raises:
        InputError: if it cannot be read, lacks a column, or has a cell that is no number.
    """
    try:
        content = path.read_text(encoding="utf-8")
        content = content[: content.rfind("\n") + 1]
        if not content:
            return pd.DataFrame(columns=list(needed), dtype=float)
        frame = pd.read_csv(
            io.StringIO(content),
            usecols=lambda name: name in columns,
            dtype=dict.fromkeys(text, "category"),
            keep_default_na=False,  # a group may be called "null"
            na_values={name: ["", "nan"] for name in columns if name not in text},
        )
    except (OSError, ValueError) as error:  # pandas' errors and broken UTF-8 are ValueErrors
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the surplus for row labels, and shifts all
        raise InputError(f"{path}: cannot be read (rows have more cells than the header)")
    missing = [name for name in needed if name not in frame]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}")
    if frame.empty:
        return frame.astype(float)
    for name in frame:
        if name not in text and not pd.api.types.is_numeric_dtype(frame[name]):
            raise InputError(f"{path}: the column {name} holds something that is no number")
        if name in needed and frame[name].isna().any():
            raise InputError(f"{path}: the column {name} has empty cells")
    return frame


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        InputError: if it cannot be read or is no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object")
    return content
