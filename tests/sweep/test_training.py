"""Sweeps of real runs: what stand-ins cannot show."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from gnewton.report.runs import find_runs
from gnewton.runfiles import METRICS_COLUMNS
from tests.sweep.conftest import Sweeps, until, with_stand_in

# data that need no other library: what a process loads is most of its time
TINY = [
    *("optimizer=sgd", "model.widths=[8]", "data=teacher", "data.train=60", "trainer.batch_size=20"),
    *("trainer.device=cpu", "trainer.epochs=3"),
]
CLOCKS = [name for name in METRICS_COLUMNS if name.endswith(("_seconds", "per_second", "_mib"))]


@pytest.fixture
def sweeps(tmp_path):
    return Sweeps(tmp_path)


def _rows(folder):
    return pd.read_csv(folder / "metrics.csv").drop(columns=CLOCKS)


@pytest.mark.slow
def test_one_raises_one_is_killed(cli, sweeps, monkeypatch):
    """Other endings, sound jobs and resuming are tested with stand-ins in test_sweep.py."""
    monkeypatch.setenv("PYTHONPATH", with_stand_in(os.environ.get("PYTHONPATH")))
    monkeypatch.setenv("GNEWTON_FAULTS", json.dumps({"seed=1": "raise", "seed=2": "kill"}))
    answer = cli(["sweep", *TINY, "seed=1,2", "launcher.jobs=2"])
    assert answer.code == 4
    assert answer.err.splitlines() == [
        "gnewton: 2 jobs: 2 failed",
        "  job 1  seed=1: failed, exit code 1; last line: RuntimeError: a defect",
        "  job 2  seed=2: failed, killed by SIGKILL",
    ]
    assert sweeps.statuses() == ["failed"] * 2


@pytest.mark.slow
def test_a_killed_sweep_gives_what_an_undisturbed_one_gives(cli, start, sweeps, tmp_path):
    longer = [
        *TINY[:-1],
        "trainer.epochs=200",
        "trainer.evaluation.every=50",
        "trainer.checkpoint_every=20 epochs",
    ]
    process = start("sweep", *longer, "seed=0")
    until(lambda: list(tmp_path.rglob("last.pt")))
    (job,) = [int(line) for line in _children(process.pid)]
    process.kill()
    process.communicate()
    os.kill(job, signal.SIGKILL)
    assert sweeps.statuses() == ["pending"]
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert (answer.code, answer.err) == (0, "")
    assert sweeps.statuses() == ["done"]
    (folder,) = [run.folder for run in find_runs([sweeps.folder])[0]]
    assert "resumed" in json.loads((folder / "environment.json").read_text())
    assert cli(["train", *longer, "seed=0", "name=undisturbed"]).code == 0
    (other,) = (tmp_path / "outputs" / "undisturbed").iterdir()
    pd.testing.assert_frame_equal(_rows(folder), _rows(other))


def _children(pid):
    """Processes that a thread of ``pid`` has started."""
    return {
        child
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    }
