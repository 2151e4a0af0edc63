"""The benchmarks run and leave their tables; how long anything takes is not tested."""

from __future__ import annotations

import csv
import os
import runpy
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
        ("inner.py --only critic-small", {"model", "tangent", "reference", "ratio"}),
        ("trainer.py --only mlp --steps 2", {"network", "side", "step_ms", "times_bare_median"}),
        ("ways.py --only binary --groups 2", {"network", "groups", "rows", "tangents", "chosen", "loss"}),
        ("ways.py --only binary --groups 4 --slices", {"sliced", "faster"}),
        ("taylor.py --only mlp --orders 1,2", {"network", "order", "taylor", "nested", "difference"}),
    ],
)
def test_a_benchmark_leaves_its_table(
    command: str, columns: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which has torch already."""
    script, *options = command.split()
    table = tmp_path / "table.csv"
    path = str(BENCH / script)
    monkeypatch.syspath_prepend(str(BENCH))  # a script imports others
    monkeypatch.setattr(sys, "argv", [path, *options, "--repeats=1", "--threads=1", f"--out={table}"])
    runpy.run_path(path, run_name="__main__")
    rows = list(csv.DictReader(table.open()))
    assert rows
    assert columns <= set(rows[0])


def test_the_gpu_check_takes_its_way_on_the_cpu(tmp_path: Path) -> None:
    """Parts that are done are not repeated; what they run is tested above and in test_devices."""
    check = BENCH.parent / "gpu" / "check.sh"
    for done in ("summary", "step"):
        (tmp_path / f"{done}.done").touch()
    ended = subprocess.run(
        [str(check), "--dry-run", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "summary: done before" in ended.stdout
    assert "1 passed" in (tmp_path / "tests.log").read_text()
    tables = (tmp_path / "tables.md").read_text()
    assert "tflops_per_s" in tables
    assert "What a summary costs" not in tables
