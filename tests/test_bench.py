"""The benchmarks run and leave their tables; how long anything takes is not tested."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench"


@pytest.mark.parametrize(
    ("command", "columns"),
    [
        (
            "summary.py --only mlp:100 --sides tangent,textbook",
            {"network", "gradients", "speedup_over_textbook"},
        ),
        ("step.py --only mlp --optimizers grouped_newton", {"network", "optimizer", "summary_share"}),
        ("step.py --only mlp --optimizers adam --cpu-time", {"network", "optimizer", "times_sgd"}),
    ],
)
def test_a_benchmark_leaves_its_table(command: str, columns: set[str], tmp_path: Path) -> None:
    script, *options = command.split()
    table = tmp_path / "table.csv"
    ended = subprocess.run(
        [
            sys.executable,
            str(BENCH / script),
            *options,
            "--repeats",
            "1",
            "--threads",
            "1",
            "--out",
            str(table),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    rows = list(csv.DictReader(table.open()))
    assert rows
    assert columns <= set(rows[0])
