"""The code in docs/python.md runs as printed, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_code_blocks_of_the_page_run_in_order(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) >= 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    shown = capsys.readouterr().out
    assert shown.startswith("Summary of 4 groups, loss 1.")
    assert "0.weight" in shown
    assert names["inspection"].rates.index.tolist() == ["0", "2"]


def test_the_names_on_the_page_exist():
    import gnewton

    listed = PAGE[PAGE.index("Averages:") :]
    for name in re.findall(r"`([A-Z]\w+)`", listed):
        assert name in gnewton.__all__
