"""The faults that `make faults` injects, a few of each kind, and that the count can tell bad from good."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from gnewton.training.runlog import RunLog
from scripts.faults import interruptions
from scripts.faults.__main__ import KINDS
from scripts.faults.forks import warm_up

FEW = {
    "SIGKILL at a random moment": 5,
    "SIGINT, SIGTERM or SIGUSR1 at a random moment": 4,
    "checkpoint cut off or changed": 4,
    "full disk": 2,
    "folder or file without permission": 7,
    "folder, file or data removed during the run": 5,
    "32 processes at once, run folders": 64,
    "loss, gradient or summary not finite": 9,
    "out of memory": 4,
    "hostile data file": 8,
    "malformed overrides": 12,
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    place = tmp_path_factory.mktemp("warm")
    warm_up(place)
    return place


@pytest.fixture
def place(tmp_path, warm, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for folder in (tmp_path, *tmp_path.parents):  # some faults are met by a user without privileges
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)
    return tmp_path


def test_every_kind_is_here():
    assert set(FEW) == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("title", KINDS)
def test_every_fault_is_survived(title, place):
    inject, _ = KINDS[title]
    count = inject(FEW[title], place / "x", 11)
    assert count.failures == []
    assert count.injected == count.survived >= FEW[title]


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        ("rewind", lambda self, lengths: None),  # rows after the checkpoint stay, and come twice
        ("rates", lambda self, rows: None),  # rows are lost
    ],
    ids=["rewind", "rates"],
)
def test_a_defect_would_be_seen(broken, place, monkeypatch):
    name, replacement = broken
    original = getattr(RunLog, name)
    calls = []

    def defective(self, *arguments):
        calls.append(0)
        return (
            replacement(self, *arguments)
            if name == "rewind" or len(calls) > 3
            else original(self, *arguments)
        )

    monkeypatch.setattr(RunLog, name, defective)
    monkeypatch.setattr(interruptions, "OPTIMIZERS", ("grouped_newton",))
    monkeypatch.setattr(interruptions, "EVERY", ("2 steps",))
    assert interruptions.killed(4, place / "x", 3).failures
