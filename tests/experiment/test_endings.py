"""Runs that end badly, and the files they leave: divergence, signals, a full disk."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from gnewton.runfiles import METRICS_COLUMNS
from gnewton.training import csvlog
from gnewton.training.checkpoint import load_checkpoint
from tests.conftest import SMALL, SMALL_BASELINE
from tests.experiment.interruptions import after_step, killed, send

UNBOUNDED = (*SMALL_BASELINE, "trainer.device=cpu", "model.activation=relu")


def _only_run(root):
    (folder,) = root.glob("outputs/*/*")
    return folder


def _result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("log_every", [1, 50])
def test_divergence(cli, tmp_path, log_every):
    answer = cli(
        ["train", "optimizer=sgd", "optimizer.lr=1e12", f"trainer.log_every={log_every}", *UNBOUNDED]
    )
    assert answer.code == 3
    message = answer.err.splitlines()[-1]
    assert message.startswith("gnewton: the ")
    assert " at step " in message or " after step " in message
    folder = _only_run(tmp_path)
    assert _result(folder)["status"] == "diverged"
    assert "gnewton: " + _result(folder)["message"] == message
    assert "diverged: the " in (folder / "train.log").read_text()
    state = load_checkpoint(folder / "checkpoint" / "last.pt")
    assert all(value.isfinite().all() for value in state["model"].values())
    pd.read_csv(folder / "metrics.csv")


def test_divergence_in_a_sweep_keeps_the_others(cli, tmp_path):
    answer = cli(["train", "-m", "optimizer=sgd", "optimizer.lr=1e12,0.01", "trainer.epochs=2", *UNBOUNDED])
    assert answer.code == 3
    statuses = [_result(folder)["status"] for folder in sorted(tmp_path.glob("outputs/mlp*/*"))]
    assert statuses == ["diverged", "done"]


def test_a_full_disk_is_one_message(cli, tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    original = csvlog.CsvLog.write

    def write(self, rows):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            original(self, rows)

    monkeypatch.setattr(csvlog.CsvLog, "write", write)
    answer = cli(["train", *SMALL, "trainer.device=cpu"])
    assert answer.code == 1
    assert answer.err.splitlines()[-1].endswith("cannot be written (No space left on device)")
    assert "Traceback" not in answer.err
    folder = _only_run(tmp_path)
    assert _result(folder)["status"] == "failed"
    assert (folder / "metrics.csv").read_text() == ",".join(METRICS_COLUMNS) + "\n"


def _ended_by(number, folder):
    """Exit code and messages of `gnewton train` in a process of its own, sent a signal after an epoch."""
    command = [
        sys.executable,
        "-m",
        "gnewton",
        "train",
        *SMALL,
        "trainer.epochs=100000",
        "trainer.device=cpu",
    ]
    process = subprocess.Popen(
        [*command, "optimizer.period=3"], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        logs = list(folder.glob("outputs/*/*/metrics.csv"))
        if logs and logs[0].read_text().count("\n") > 2:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def _assert_good_order(folder, number, err):
    """The run in ``folder`` was ended by signal ``number`` and records it."""
    last = err.splitlines()[-1]
    assert last.startswith(f"gnewton: interrupted by {signal.Signals(number).name} after step ")
    assert "Traceback" not in err
    result = _result(folder)
    assert result["status"] == "interrupted"
    state = load_checkpoint(folder / "checkpoint" / "last.pt")
    assert state["step"] == result["step"]
    rates = pd.read_csv(folder / "rates.csv")
    assert rates["step"].max() == ((state["step"] - 1) // 3) * 3  # no update is lost
    checkpoints = sorted(entry.name for entry in (folder / "checkpoint").iterdir())
    assert checkpoints == ["best.pt", "last.pt", "previous.pt"]


@pytest.mark.slow
def test_a_signal_ends_the_process_in_good_order(tmp_path):
    returned, err = _ended_by(signal.SIGINT, tmp_path)
    assert returned == 130
    _assert_good_order(_only_run(tmp_path), signal.SIGINT, err)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=str)
def test_a_signal_ends_the_run_in_good_order(number, cli, tmp_path, monkeypatch):
    with after_step(monkeypatch, 8, send(number)):
        answer = cli(["train", *SMALL, "optimizer.period=3", "trainer.epochs=9", "trainer.device=cpu"])
    assert answer.code == 143
    _assert_good_order(_only_run(tmp_path), number, answer.err)


def test_a_killed_run_leaves_whole_files(cli, tmp_path, monkeypatch):
    command = ["train", *SMALL, "optimizer.period=3", "trainer.epochs=9", "trainer.device=cpu"]
    with after_step(monkeypatch, 8, send(signal.SIGKILL)):
        assert killed(lambda: cli(command)) == signal.SIGKILL
    folder = _only_run(tmp_path)
    for title in ("metrics.csv", "rates.csv"):
        text = (folder / title).read_text()
        assert text.endswith("\n")
        rows = list(csv.reader(text.splitlines()))
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}
    load_checkpoint(folder / "checkpoint" / "last.pt")
    assert not (folder / "result.json").exists()


def test_a_signal_ends_all_jobs_of_multirun(cli, tmp_path, monkeypatch):
    with after_step(monkeypatch, 4, send(signal.SIGINT)):
        answer = cli(["train", "--multirun", *SMALL, "trainer.device=cpu", "seed=1,2,3", "trainer.epochs=2"])
    assert answer.code == 130
    assert answer.err.count("interrupted by SIGINT") >= 1
    assert len(list(tmp_path.glob("outputs/mlp*/*"))) == 1
