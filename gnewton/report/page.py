"""The page of a comparison: its tables and plots in one HTML file that needs no other file and no network.

The plots are the figures of :mod:`gnewton.report.plots` as inline SVG. Text and axes take the colours of the
page, which has a light and a dark theme. The buttons of a legend hide and show curves.
"""

from __future__ import annotations

import html
import io
import re
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gnewton.report.comparison import Comparison, write_file
from gnewton.report.plots.comparison_plots import Plot, comparison_plots
from gnewton.report.plots.style import GRID_COLOR, RC, looks, series
from gnewton.report.tables import Table, significant

RUN_COLUMNS = (
    "setup",
    "seed",
    "status",
    "epochs",
    "train_seconds",
    "train_loss",
    "validation_loss",
    "folder",
)
"""Columns of the table of all runs."""


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write the page of a comparison and return its path.

    Raises:
        InputError: if it cannot be written.
    """
    return write_file(path, page(comparison))


def page(comparison: Comparison) -> str:
    """The page as one HTML document."""
    setups, runs = len(comparison.setups), len(comparison.runs)
    parts = {
        "title": html.escape("Comparison: " + "; ".join(comparison.problems)),
        "subtitle": f"{setups} set-up{_s(setups)}, {runs} run{_s(runs)}",
        "hardware": html.escape(comparison.hardware),
        "style": _resource("page.css"),
        "script": _resource("page.js"),
        "tables": "\n".join(map(_table, comparison.tables())),
        "plots": "\n".join(_sections(list(comparison_plots(comparison)))),
        "runs": _runs(comparison),
        "notes": "\n".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes),
    }
    return re.sub(r"<!--(\w+)-->", lambda match: parts[match[1]], _resource("page.html"))


def _sections(plots: list[Plot]) -> list[str]:
    sections = []
    number = 0
    for name, members in groupby(plots, key=lambda plot: plot.section):
        figures = []
        for _, variants in groupby(
            members, key=lambda plot: (plot.title, plot.stem if not plot.axis else "")
        ):
            figures.append(_figure(list(variants), f"plot{number}"))
            number += 1
        sections.append(f"<section><h2>{html.escape(name)}</h2>\n" + "\n".join(figures) + "\n</section>")
    return sections


def _figure(variants: list[Plot], identifier: str) -> str:
    """The plots of one title, of which one is visible, with a menu of their axes and a common legend."""
    drawings = [
        _drawing(plot, f"{identifier}-{number}", hidden=number > 0) for number, plot in enumerate(variants)
    ]
    menu = ""
    if len(variants) > 1:
        options = "".join(f"<option>{html.escape(plot.axis)}</option>" for plot in variants)
        menu = f'<div class="controls"><label>against <select>{options}</select></label></div>'
    note = f'<p class="note">{html.escape(variants[0].note)}</p>' if variants[0].note else ""
    return (
        f'<figure id="{identifier}"><figcaption>{html.escape(variants[0].title)}</figcaption>{menu}\n'
        + "\n".join(svg for svg, _ in drawings)
        + f'\n<div class="legend">{drawings[0][1]}</div>{note}</figure>'
    )


def _drawing(plot: Plot, identifier: str, *, hidden: bool) -> tuple[str, str]:
    """A plot as inline SVG, and the buttons of its legend, which the page puts below it as HTML."""
    figure = plot.figure
    entries = _take_legend(figure)
    figure.suptitle("")
    if len(figure.axes) == 1:
        figure.axes[0].set_title("", loc="left")
    buffer = io.BytesIO()
    with mpl.rc_context({**RC, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    svg = _inline(buffer.getvalue().decode(), identifier, [entry.label for entry in entries])
    width = round(figure.get_figwidth() * 72)
    label = html.escape(
        ", ".join(filter(None, (plot.section, plot.title, plot.axis and f"against {plot.axis}")))
    )
    drawing = (
        f'<div class="plot"{" hidden" if hidden else ""} role="img" aria-label="{label}" '
        f'style="--width: {width}px" tabindex="0">{svg}</div>'
    )
    return drawing, "".join(entry.button() for entry in entries if entry.place >= 0)


_METADATA = ("Creator", "Date", "Format", "Type")


@dataclass(frozen=True)
class _Entry:
    """An entry of a legend.

    Attributes:
        label: its text.
        place: its number, if curves belong to it; else −1.
        color, dashes: of its line; ``dashes`` as in SVG.
    """

    label: str
    place: int
    color: str
    dashes: str

    def button(self) -> str:
        """The HTML button that hides and shows the curves."""
        line = (
            f'<svg viewBox="0 0 26 10" aria-hidden="true"><line x1="0" x2="26" y1="5" y2="5" '
            f'stroke="{self.color}" stroke-width="2.5" stroke-dasharray="{self.dashes}"/></svg>'
        )
        return (
            f'<button type="button" data-series="{self.place}" aria-pressed="true">'
            f"{line}{html.escape(self.label)}</button>"
        )


def _take_legend(figure: Figure) -> list[_Entry]:
    """Remove the legend of a figure and return its entries."""
    if not figure.legends:
        return []
    legend = figure.legends[0]
    drawn = {artist.get_gid() for artist in figure.findobj(lambda artist: artist.get_gid() is not None)}
    entries = []
    texts, handles = legend.get_texts(), legend.legend_handles
    for place, (text, handle, look) in enumerate(zip(texts, handles, looks(len(texts)), strict=True)):
        color = to_hex(handle.get_color()) if handle is not None else "#555555"  # type: ignore[attr-defined]
        dashes = ""
        if handle is not None and handle.get_linestyle() != "-":  # type: ignore[attr-defined]
            pattern = look["linestyle"][1] if isinstance(look["linestyle"], tuple) else (4, 2)
            dashes = " ".join(str(1.5 * length) for length in pattern)
        entries.append(_Entry(text.get_text(), place if series(place) in drawn else -1, color, dashes))
    legend.remove()
    return entries


def _inline(svg: str, identifier: str, labels: list[str]) -> str:
    """The SVG of a figure, ready to stand in the page.

    Ids become unique, and black and the colour of the grid follow the theme. The curves of a legend entry get
    the attribute ``data-series`` and a title, which a browser shows under the pointer.
    """
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S
    )
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)

    def adapt(match: re.Match[str]) -> str:
        tag = match[0]
        place = re.fullmatch(r'<g id="series-(\d+)">', tag)
        if place is not None:
            title = html.escape(labels[int(place[1])], quote=False) if int(place[1]) < len(labels) else ""
            return f'<g data-series="{place[1]}">' + (f"<title>{title}</title>" if title else "")
        tag = re.sub(r'\bid="', f'id="{identifier}-', tag)
        tag = re.sub(r"url\(#", f"url(#{identifier}-", tag)
        tag = re.sub(r'href="#', f'href="#{identifier}-', tag)
        tag = re.sub(r" font-family: [^;\"]*;?", "", tag)  # that of the page
        return tag.replace("#000000", "currentColor").replace(GRID_COLOR, "var(--line)")

    return re.sub(r"<[^>]*>", adapt, svg).strip()  # text and attributes have no bare < and >


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
    """A cell with the spread fainter than the median."""
    median, bracket, spread = text.partition(" (")
    inner = html.escape(median)
    if bracket and spread.endswith(")"):
        inner += f' <span class="spread">({html.escape(spread)}</span>'
    return f'<td class="best">{inner}</td>' if best else f"<td>{inner}</td>"


def _runs(comparison: Comparison) -> str:
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in RUN_COLUMNS)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(_plain(row[name]))}</td>" for name in RUN_COLUMNS) + "</tr>"
        for row in comparison.runs.to_dict("records")
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value or abs(value) == float("inf") else significant(value)
    return str(value)


def _resource(name: str) -> str:
    return resources.files("gnewton.report").joinpath(name).read_text(encoding="utf-8")


def _s(count: int) -> str:
    return "" if count == 1 else "s"
