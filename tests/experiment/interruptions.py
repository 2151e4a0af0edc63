"""Interrupt a run at a chosen moment, and compare the files of two runs."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gnewton.runfiles import LAST
from gnewton.training import evaluate as evaluate_module
from gnewton.training.checkpoint import load_checkpoint
from gnewton.training.runlog import ProgressBar

DOCUMENT = Path(__file__).parents[2] / "docs" / "csv.md"
CLOCKS = set(re.findall(r"^\| `(\w+)` \| float \| (?:s|samples/s|MiB) \|", DOCUMENT.read_text("utf-8"), re.M))
"""Columns that no seed decides."""


def rows(path: Path) -> list[list[str]]:
    """The cells of a CSV file as they are written, header first, without the clocks."""
    table = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    kept = [place for place, name in enumerate(table[0]) if name not in CLOCKS]
    assert {len(row) for row in table} == {len(table[0])}
    return [[row[place] for place in kept] for row in table]


def assert_same_run(first: Path, second: Path) -> None:
    """The rows of both CSV files and every tensor of the last checkpoint are equal, bit for bit."""
    for title in ("metrics.csv", "steps.csv", "rates.csv"):
        assert (first / title).exists() == (second / title).exists()
        if (first / title).exists():
            assert rows(first / title) == rows(second / title)
    states = [load_checkpoint(folder / "checkpoint" / LAST) for folder in (first, second)]
    for key in (
        "model",
        "optimizer",
        "scheduler",
        "epoch",
        "step",
        "meter",
        "step_log",
        "best",
        "updates",
        "random",
    ):
        assert _equal(states[0][key], states[1][key]), key


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@contextmanager
def after_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> Iterator[None]:
    """Within the block, ``act`` is called once ``step`` training steps have been made by this process."""
    count = 0
    original = ProgressBar.advance

    def advance(self: ProgressBar) -> None:
        nonlocal count
        original(self)
        count += 1
        if count == step:
            act()

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "advance", advance)
        yield


@contextmanager
def in_evaluation(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> Iterator[None]:
    """Within the block, ``act`` is called as the ``number``-th evaluation of this process begins."""
    count = 0
    original = evaluate_module.evaluate_splits

    def evaluate(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            act()
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "evaluate_splits", evaluate)
        yield


def send(number: int) -> Callable[[], None]:
    """A function that sends a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def killed(work: Callable[[], object]) -> int:
    """Do ``work`` in a fork of this process and return its wait status; 0: it finished."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]
