"""The tables of a comparison as plain text and Markdown: columns, cells and the marks of the best values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gnewton.report.measures import Spread

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A measure as a column of a table.

    Attributes:
        title: heading, with the unit.
        measure: one of :data:`gnewton.report.measures.MEASURES`.
        scale: factor on the values.
        unit: written after each value.
        best: +1 if higher is better, −1 if lower is better, 0 if neither.
        infinite: text for an infinite value; empty: the status of the runs that have it.
    """

    title: str
    measure: str
    scale: float = 1.0
    unit: str = ""
    best: int = 0
    infinite: str = ""

    def cell(self, row: Any) -> str:
        """The median and, for several runs, the spread."""
        spread: Spread = row[self.measure]
        if spread.count == 0:
            return NOTHING
        infinite = self.infinite or _broken(row)
        median, low, high = (
            infinite if math.isinf(value) else self.number(value)
            for value in (spread.median, spread.low, spread.high)
        )
        text = median if math.isinf(spread.median) else f"{median}{self.unit}"
        return text if low == high else f"{text} ({low}…{high})"

    def number(self, value: float) -> str:
        """A finite number, without its unit."""
        scaled = value * self.scale
        return f"{scaled:.1f}" if self.unit == " %" else significant(scaled)


@dataclass(frozen=True)
class Table:
    """A table of strings, with marks on the best values among comparable ones."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    best: list[list[bool]]


def _losses() -> list[Column]:
    return [Column(split, f"{split}_loss", best=-1) for split in ("train", "validation", "test")]


def _accuracies() -> list[Column]:
    return [
        Column(split, f"{split}_accuracy", scale=100, unit=" %", best=1)
        for split in ("train", "validation", "test")
    ]


LOSS = (Column("epochs", "epochs"), *_losses())

ACCURACY = tuple(_accuracies())

TARGET = (
    Column("training s", "target_seconds", best=-1, infinite="missed"),
    Column("steps", "target_steps", best=-1, infinite="missed"),
    Column("epochs", "target_epochs", best=-1, infinite="missed"),
)

COST = (
    Column("training s", "train_seconds"),
    Column("ms/step", "seconds_per_step", scale=1000, best=-1),
    Column("in the summary", "summary_share", scale=100, unit=" %"),
    Column("in the solve", "solve_share", scale=100, unit=" %"),
    Column("peak MiB", "peak_memory_mib", best=-1),
)


def build_tables(table: pd.DataFrame) -> list[Table]:
    """Tables of the cost of reaching the target (if there is one), final losses and accuracies, and costs.

    Args:
        table: from :func:`gnewton.report.measures.table_of_setups`.
    """
    tables = []
    targets = [target for target in dict.fromkeys(table["target"]) if target]
    if targets:
        with_target = table[table["target"] != ""]
        title = f"To the target: {targets[0]}" if len(targets) == 1 else "To the target"
        lead: list[tuple[str, Callable[[Any], str]]] = [("set-up", lambda row: row["setup"])]
        if len(targets) > 1:
            lead.append(("target", lambda row: row["target"]))
        lead.append(("reached", reached_cell))
        tables.append(_table(title, with_target, lead, TARGET))
    setup: list[tuple[str, Callable[[Any], str]]] = [("set-up", lambda row: row["setup"])]
    tables.append(_table("Loss at the end", table, [*setup, ("runs", runs_cell)], LOSS))
    if any(spread.count for column in ACCURACY for spread in table[column.measure]):
        tables.append(_table("Accuracy at the end", table, setup, ACCURACY))
    tables.append(_table("Cost", table, setup, COST))
    return tables


def runs_cell(row: Any) -> str:
    """The number of runs, and how many diverged, failed or did not finish."""
    bad = [f"{row[name]} {name}" for name in ("diverged", "failed", "unfinished") if row[name]]
    return f"{row['runs']} ({', '.join(bad)})" if bad else str(row["runs"])


def _broken(row: Any) -> str:
    """The statuses of the runs without a final value."""
    return "/".join(name for name in ("diverged", "failed") if row[name]) or "infinite"


def reached_cell(row: Any) -> str:
    """The number of runs that reached the target."""
    known = row["reached"] + row["missed"]
    return f"{row['reached']} of {known}" if known else "not measured"


def as_text(tables: Sequence[Table]) -> str:
    """The tables with aligned columns, for a terminal."""
    return "\n\n".join(f"{table.title}\n\n{_align(table)}" for table in tables)


def as_markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown, with the best values in bold."""
    return "\n\n".join(f"## {table.title}\n\n{_markdown(table)}" for table in tables)


def significant(value: float, digits: int = 4) -> str:
    """A number with ``digits`` significant digits, without an exponent unless it would be long."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _table(
    title: str,
    rows: pd.DataFrame,
    lead: Sequence[tuple[str, Callable[[Any], str]]],
    columns: Sequence[Column],
) -> Table:
    used = [column for column in columns if any(spread.count for spread in rows[column.measure])]
    marks = {column.measure: _best(rows, column) for column in used}
    return Table(
        title,
        [*(heading for heading, _ in lead), *(column.title for column in used)],
        [
            [*(cell(row) for _, cell in lead), *(column.cell(row) for column in used)]
            for _, row in rows.iterrows()
        ],
        [
            [*(False for _ in lead), *(marks[column.measure][position] for column in used)]
            for position in range(len(rows))
        ],
    )


def _best(rows: pd.DataFrame, column: Column) -> list[bool]:
    """Marks on the best medians of each problem and target shared by several set-ups; all ties are marked."""
    marks = [False] * len(rows)
    if not column.best:
        return marks
    targets = rows["target"] if column in TARGET else [""] * len(rows)
    problems = list(zip(rows["problem"], targets, strict=True))
    medians = [spread.median for spread in rows[column.measure]]
    for problem in set(problems):
        finite = [m for m, p in zip(medians, problems, strict=True) if p == problem and math.isfinite(m)]
        if problems.count(problem) > 1 and finite:
            top = max(finite) if column.best > 0 else min(finite)
            marks = [
                mark or (p == problem and median == top)
                for mark, p, median in zip(marks, problems, medians, strict=True)
            ]
    return marks


def _align(table: Table) -> str:
    lines = [table.headings, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.headings))]
    texts = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join(["---", *["---:"] * (len(table.headings) - 1)]) + "|"
    rows = [
        line([f"**{cell}**" if best else _literal(cell) for cell, best in zip(cells, marks, strict=True)])
        for cells, marks in zip(table.rows, table.best, strict=True)
    ]
    return "\n".join([line(table.headings), rule, *rows])


def _literal(text: str) -> str:
    """A text with the special characters of Markdown escaped."""
    return re.sub(r"([\\|<*`])", r"\\\1", text)
