"""Checks on a run folder: whole rows, none twice, and the same rows as a run without faults."""

from __future__ import annotations

import csv
from pathlib import Path

CLOCKS = {
    *("train_seconds", "evaluation_seconds", "logging_seconds", "checkpoint_seconds"),
    *("samples_per_second", "peak_memory_mib", "summary_seconds", "solve_seconds"),
}
"""Columns that the seed does not determine."""

KEYS = {"metrics.csv": ("step",), "rates.csv": ("update", "group")}
"""What makes a row of each file unique."""


def run_folder(root: Path) -> Path | None:
    """The run folder under an output root that can be resumed; None if there is none yet."""
    configs = sorted(root.glob("*/*/config.yaml"))
    return configs[0].parent if configs else None


def broken(folder: Path, *, resumed: bool) -> str | None:
    """What is wrong with the CSV files; a killed run may leave a last line without its end."""
    for title, keys in KEYS.items():
        path = folder / title
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        if not resumed:
            text = text[: text.rfind("\n") + 1]
        rows = list(csv.reader(text.splitlines()))
        if any(len(row) != len(rows[0]) for row in rows) or (resumed and not text.endswith("\n")):
            return f"{title} has a row of another length"
        places = [rows[0].index(key) for key in keys] if rows else []
        row_keys = [tuple(row[place] for place in places) for row in rows[1:]]
        if resumed and len(row_keys) != len(set(row_keys)):
            return f"{title} has a row twice"
    return None


def contents(folder: Path) -> dict[str, list[list[str]]]:
    """The rows of both files without the clocks, as they are written."""
    result = {}
    for title in KEYS:
        path = folder / title
        if path.exists():
            rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
            kept = [place for place, name in enumerate(rows[0]) if name not in CLOCKS]
            result[title] = [[row[place] for place in kept] for row in rows]
    return result
