"""Puts tables, charts, notes and Plotly's own script together to one page."""

from __future__ import annotations

import html
import json
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from gnewton.report.comparison import Comparison, write_file
from gnewton.report.html.charts import all_charts
from gnewton.report.tables import Table, significant


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write the page of a comparison; returns its path.

    Raises:
        InputError: if it cannot be written.
    """
    return write_file(path, page(comparison))


def page(comparison: Comparison) -> str:
    """The page as text: one HTML document with style, script, data and Plotly within."""
    from plotly.offline import get_plotlyjs

    charts = all_charts(comparison)
    setups, runs = len(comparison.setups), len(comparison.runs)
    parts = {
        "title": html.escape("Comparison: " + "; ".join(comparison.problems)),
        "subtitle": f"{setups} set-up{_s(setups)}, {runs} run{_s(runs)}",
        "hardware": html.escape(comparison.hardware),
        "tables": "\n".join(map(_table, comparison.tables())),
        "charts": "\n".join(_sections(charts)),
        "runs": _runs(comparison),
        "notes": "\n".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes),
        "style": _resource("page.css"),
        "script": _resource("page.js"),
        "data": _json(charts),
        "plotly": get_plotlyjs(),
    }
    text = _resource("page.html")
    for name, content in parts.items():
        text = text.replace(f"<!--{name}-->", content, 1)
    return text


def _sections(charts: list[dict[str, Any]]) -> list[str]:
    sections = []
    for name, members in groupby(charts, key=lambda chart: str(chart["section"])):
        figures = "\n".join(
            f"<figure><figcaption>{html.escape(chart['title'])}</figcaption>"
            f'<div class="controls" id="{chart["id"]}-controls"></div>'
            f'<div class="chart" id="{chart["id"]}"></div>'
            f'<div class="legend" id="{chart["id"]}-legend"></div>'
            f'<p class="note">{html.escape(chart.get("note", ""))}</p></figure>'
            for chart in members
        )
        sections.append(f"<section><h2>{html.escape(name)}</h2>\n{figures}\n</section>")
    return sections


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in table.headings)
    rows = "\n".join(
        "<tr>" + "".join(_cell(cell, best) for cell, best in zip(cells, marks, strict=True)) + "</tr>"
        for cells, marks in zip(table.rows, table.best, strict=True)
    )
    return (
        f"<section><h2>{html.escape(table.title)}</h2>\n"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _cell(text: str, best: bool) -> str:
    """The median in full ink, the spread behind it fainter."""
    median, bracket, spread = text.partition(" (")
    inner = html.escape(median)
    if bracket and spread.endswith(")"):
        inner += f' <span class="spread">({html.escape(spread)}</span>'
    return f'<td class="best">{inner}</td>' if best else f"<td>{inner}</td>"


def _runs(comparison: Comparison) -> str:
    columns = [
        "setup",
        "seed",
        "status",
        "epochs",
        "train_seconds",
        "train_loss",
        "validation_loss",
        "folder",
    ]
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(_plain(row[name]))}</td>" for name in columns) + "</tr>"
        for row in comparison.runs.to_dict("records")
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value or abs(value) == float("inf") else significant(value)
    return str(value)


def _json(content: Any) -> str:
    """JSON that may stand within a script element."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _s(count: int) -> str:
    return "" if count == 1 else "s"
