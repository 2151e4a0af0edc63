"""The page as a file: self-contained, escaped, and made of the plots."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnewton.report.comparison import compare
from gnewton.report.curves import FEWEST_POINTS, MOST_POINTS, points_for, thin
from gnewton.report.page import page, write_page
from gnewton.report.plots.comparison_plots import comparison_plots
from tests.report.builders import falling, grouped_newton, row, update, write_run
from tests.report.sweeps import GROUPS, compared

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"

NAMES = ["grouped_newton", "sgd lr=0.01", "sgd lr=0.1", "sgd lr=1"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return compared(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def text(sweep):
    return page(sweep)


class _Page(HTMLParser):
    """Tags with their attributes, and the text of table cells, headings, buttons and plots."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th", "h2", "figcaption", "button", "text", "title"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data):
        for tag in self._open:
            self.texts[tag][-1] += data


def _figures(text: str) -> list[_Page]:
    return [_Page(figure) for figure in re.findall(r"<figure.*?</figure>", text, re.S)]


def test_it_is_one_file_that_needs_nothing_else(sweep, tmp_path):
    text = write_page(sweep, tmp_path / "report.html").read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]
    parsed = _Page(text)
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "data", "action", "srcset", "xlink:href"):
            value = attributes.get(name) or "data:,"
            assert value.startswith(("data:", "#")), (tag, attributes)
    assert "@import" not in text
    assert "<!--" not in text
    assert len(text) < 10**6


def test_it_has_every_cell_of_every_table(sweep, text):
    parsed = _Page(text)
    cells = [*parsed.texts["td"], *parsed.texts["th"]]
    for table in sweep.tables():
        for cell in (*table.headings, *(cell for cells in table.rows for cell in cells)):
            assert cell in cells
    assert sum(cell in ("diverged", "done") for cell in cells) >= len(sweep.runs)


def test_it_has_every_plot(sweep, text):
    plots = list(comparison_plots(sweep))
    sections = ["Progress", "Rates of the groups", "Sensitivity to the learning rate", "Performance profile"]
    assert list(dict.fromkeys(plot.section for plot in plots)) == sections
    assert [heading for heading in _Page(text).texts["h2"] if heading in sections] == sections
    progress, rates, sensitivity, profile = _figures(text)
    assert progress.texts["figcaption"] == ["mlp digits"]
    labels = [
        str(attributes["aria-label"])
        for figure in (progress, rates, sensitivity, profile)
        for tag, attributes in figure.tags
        if attributes.get("role") == "img"
    ]
    assert labels[:2] == [
        "Progress, mlp digits, against epochs",
        "Progress, mlp digits, against training seconds",
    ]
    assert len(labels) == len(plots)
    for title in ("train loss", "validation loss", "test loss", "train accuracy"):
        assert progress.texts["text"].count(title) == 2
    assert "learning rate of the group" in rates.texts["text"]
    assert "final validation loss" in sensitivity.texts["text"]
    assert "factor τ to the fewest training seconds" in profile.texts["text"]


def test_one_plot_of_each_figure_is_shown_first(text):
    for figure in _figures(text):
        hidden = ["hidden" in attributes for _, attributes in figure.tags if attributes.get("role") == "img"]
        assert hidden == [False, *[True] * (len(hidden) - 1)]


def test_the_legends_are_buttons_for_the_curves(text):
    progress, rates, sensitivity, profile = _figures(text)
    assert progress.texts["button"] == profile.texts["button"] == NAMES
    assert rates.texts["button"] == list(GROUPS)
    assert sensitivity.texts["button"] == ["sgd"]  # the mark of diverged runs is no curve
    for figure in (progress, rates, sensitivity, profile):
        buttons = {a["data-series"] for tag, a in figure.tags if tag == "button"}
        assert buttons == {a["data-series"] for tag, a in figure.tags if tag == "g" and "data-series" in a}
        assert set(figure.texts["title"]) <= set(figure.texts["button"])
        assert not set(figure.texts["button"]) & set(figure.texts["text"])  # not in the picture once more


def test_ids_are_unique_and_references_lead_somewhere(text):
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    references = set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text))
    assert references <= set(ids)
    assert len(references) > 10


def test_text_and_axes_follow_the_theme(text):
    figures = "".join(re.findall(r"<figure.*?</figure>", text, re.S))
    assert "#000000" not in figures
    assert "#ffffff" not in figures  # no paper of its own
    assert "currentColor" in figures
    assert "var(--line)" in figures


def test_runs_that_diverged_are_counted_below_the_sensitivity(text):
    assert "Diverged or failed: sgd at 1 (3)" in text


def test_names_are_text_wherever_they_stand(tmp_path):
    """In tables, notes, captions, legends and plots: none of it becomes markup."""
    for seed in (0, 1):
        rates = update(1, 0, {NASTY: 0.5, 'id="a" #000000': 0.25})
        options = {"seed": seed, "data.name": NASTY, "name": NASTY}
        write_run(
            tmp_path,
            f"<b>{seed}",
            {**options, **grouped_newton(extra=NASTY)},
            rows=falling([1.0]),
            rates=rates,
        )
        write_run(tmp_path, f"sgd{seed}", {**options, "optimizer.extra": NASTY}, rows=falling([1.0, 0.5]))
        write_run(tmp_path, f"sgd-{seed}", {**options, "optimizer.lr": 0.5}, rows=falling([1.0, 0.5]))
    text = page(compare([tmp_path]))
    parsed = _Page(text)
    tags = [tag for tag, _ in parsed.tags]
    assert "img" not in tags
    assert tags.count("script") == 1
    assert {NASTY, 'id="a" #000000'} <= set(parsed.texts["button"])
    assert {NASTY, 'id="a" #000000'} <= set(parsed.texts["title"])


def test_long_curves_are_thinned(tmp_path):
    rows = [row(epoch, epoch, float(epoch), train_loss=1 / epoch) for epoch in range(1, 3001)]
    for seed in (0, 1):
        write_run(tmp_path, str(seed), {"seed": seed}, rows=rows)
    for plot in comparison_plots(compare([tmp_path])):
        for line in plot.figure.axes[0].lines:
            assert len(line.get_xdata()) <= MOST_POINTS
            assert (line.get_xdata()[0], line.get_xdata()[-1]) == (1, 3000)


@given(st.integers(1, 2000), st.integers(2, 500))
def test_thinning_keeps_ends_and_order(length, limit):
    x, y = thin(np.arange(length), -np.arange(length), limit)
    assert len(x) == min(length, limit)
    assert (x[0], x[-1]) == (0, length - 1)
    assert (np.diff(x) > 0).all()
    assert (y == -x).all()


def test_the_more_curves_the_fewer_points():
    assert [points_for(curves) for curves in (1, 10**9)] == [MOST_POINTS, FEWEST_POINTS]
    limits = [points_for(curves) for curves in range(1, 20000, 100)]
    assert limits == sorted(limits, reverse=True)
