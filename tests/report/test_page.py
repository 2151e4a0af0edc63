"""The page as a file: self-contained, escaped, and of a bearable size."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnewton.report.comparison import compare
from gnewton.report.curves import FEWEST_POINTS, MOST_POINTS, points_for, thin
from gnewton.report.html.charts import all_charts
from gnewton.report.html.page import page, write_page
from gnewton.report.html.traces import numbers
from tests.report.builders import falling, grouped_newton, row, update, write_run
from tests.report.sweeps import GROUPS, compared

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return compared(tmp_path_factory.mktemp("sweep"))


class _Page(HTMLParser):
    """Tags with their attributes, and the text of the cells of the tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.cells[-1] += data


def _data(text: str):
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)[1])


def test_it_is_one_file_that_needs_nothing_else(sweep, tmp_path):
    text = write_page(sweep, tmp_path / "report.html").read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]
    parsed = _Page(text)
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "data", "action", "srcset"):
            assert (attributes.get(name) or "data:,").startswith("data:"), (tag, attributes)
    assert "@import" not in text.partition("<script>")[0]
    assert "<!--" not in text.partition("<script>")[0]


def test_it_has_every_cell_of_every_table(sweep):
    cells = _Page(page(sweep)).cells
    for table in sweep.tables():
        for cell in (*table.headings, *(cell for cells in table.rows for cell in cells)):
            assert cell in cells
    assert sum(cell in ("diverged", "done") for cell in cells) >= len(sweep.runs)


def test_the_charts(sweep):
    charts = all_charts(sweep)
    assert [chart["section"] for chart in charts] == [
        "Progress",
        "Rates of the groups",
        "Sensitivity to the learning rate",
        *["Performance profile"] * 2,
    ]
    progress, rates, sensitivity, profile, _ = charts
    assert {(view["metric"], view["axis"]) for view in progress["views"]} == {
        (f"{split} {kind}", axis)
        for split in ("train", "validation", "test")
        for kind in ("loss", "accuracy")
        for axis in ("epochs", "steps", "training seconds")
    }
    first = progress["views"][0]
    assert (first["metric"], first["axis"], first["log_y"], first["percent"]) == (
        "validation loss",
        "epochs",
        True,
        False,
    )
    gn = [trace for trace in first["traces"] if trace["legendgroup"] == "grouped_newton"]
    assert len(gn) == 3 + 2  # the runs, the band, the median
    assert gn[-1]["x"] == [1, 2, 3, 4]
    assert gn[-1]["y"] == pytest.approx([1.1 * 1.1 * 2.0**-epoch for epoch in range(1, 5)], rel=1e-5)
    band = dict(zip(zip(gn[3]["x"], [0] * 4 + [1] * 4, strict=True), gn[3]["y"], strict=True))
    assert (band[4, 0], band[4, 1]) == pytest.approx((1.2 * 1.1 / 16, 1.1 / 16), rel=1e-5)
    assert [trace["name"] for trace in rates["views"][0]["traces"]] == list(GROUPS)
    assert rates["views"][0]["traces"][0]["y"] == [1.0, 1.5, 2.0, 2.0]
    assert rates["views"][0]["traces"][0]["x"] == [10, 20, 30, 40]
    assert sensitivity["note"] == "Diverged or failed: sgd at 1 (3)"
    assert profile["title"] == "steps, 3 instances (problem and seed)"
    assert all(trace["y"][-1] in (0, 1) for trace in profile["views"][0]["traces"])


def test_what_diverged_is_a_gap_and_never_an_infinity(sweep):
    text = page(sweep)
    first = _data(text)[0]["views"][0]
    lost = [trace for trace in first["traces"] if trace["legendgroup"] == "sgd lr=1"]
    assert [trace["marker"]["symbol"][-1] for trace in lost[:3]] == ["x"] * 3
    assert "Infinity" not in json.dumps(_data(text))


def test_names_are_text_wherever_they_stand(tmp_path):
    """In tables, notes, titles, legends and data: none of it becomes markup."""
    for seed in (0, 1):
        rates = update(1, 0, {NASTY: 0.5})
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
    tags = [tag for tag, _ in _Page(text).tags]
    assert "img" not in tags
    assert tags.count("script") == 3
    for chart in _data(text):
        for view in chart["views"]:
            for trace in view["traces"]:
                assert "<" not in trace["name"]
                hover = trace.get("hovertemplate", "")
                assert "alert" not in hover
                assert re.sub("</?extra>", "", hover).count("<") == 0


def test_long_curves_are_thinned_and_it_says_so(tmp_path):
    rows = [row(epoch, epoch, float(epoch), train_loss=1 / epoch) for epoch in range(1, 3001)]
    for seed in (0, 1):
        write_run(tmp_path, str(seed), {"seed": seed}, rows=rows)
    (chart,) = all_charts(compare([tmp_path]))
    lengths = {len(trace["x"]) for view in chart["views"] for trace in view["traces"]}
    assert lengths <= {MOST_POINTS, 2 * MOST_POINTS, 200, 400}
    assert chart["note"].startswith(
        f"Curves of more than {MOST_POINTS} points are drawn at {MOST_POINTS} of them"
    )
    ends = {
        (trace["x"][0], trace["x"][-1]) for trace in chart["views"][0]["traces"] if trace.get("fill") is None
    }
    assert ends == {(1, 3000)}


def test_short_curves_are_whole(sweep):
    assert all_charts(sweep)[0]["note"] == ""


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


def test_numbers_for_json():
    assert numbers([0.123456789, math.inf, -math.inf, math.nan, 1e-300, 5]) == [
        0.123457,
        None,
        None,
        None,
        1e-300,
        5.0,
    ]
