"""The display during a run: every line once, and the bar only where it is wanted."""

from __future__ import annotations

import re

import pytest

from gnewton.training.runlog import ProgressBar, summary_line
from tests.conftest import SMALL

RUN = ["train", *SMALL, "trainer.epochs=2", "trainer.device=cpu", "trainer.log_every=1"]


@pytest.mark.parametrize("style", ["bar", "lines", "auto"])
def test_every_line_once(style, cli):
    answer = cli([*RUN, f"trainer.progress={style}"])
    assert answer.code == 0
    assert answer.out == ""
    for epoch in (1, 2):
        assert answer.err.count(f"epoch {epoch}, step {3 * epoch}, running loss") == 1
    assert answer.err.count("done: results in") == 1
    assert ("step/s" in answer.err or "s/step" in answer.err) == (style == "bar")  # no terminal: no bar


def test_the_bar_shows_loss_rates_speed_and_remaining_time(capsys):
    with ProgressBar("bar", total=10) as progress:
        for _ in range(5):
            progress.advance()
        progress.show(0.12345, [0.01, 0.5, 0.2])
        progress._bar.refresh()
    shown = capsys.readouterr().err
    assert "5/10" in shown
    assert "loss 0.1234, rate 0.01…0.5" in shown or "loss 0.1235, rate 0.01…0.5" in shown
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+(step/s|s/step)", shown)


def test_one_rate_is_no_range(capsys):
    with ProgressBar("bar", total=1) as progress:
        progress.show(1.0, [0.01])
        progress._bar.refresh()
    assert "loss 1, rate 0.01]" in capsys.readouterr().err


def test_nothing_is_shown_without_a_bar(capsys):
    with ProgressBar("lines", total=3) as progress:
        progress.advance()
        progress.show(1.0, [0.1, 0.2])
    assert capsys.readouterr() == ("", "")


def test_the_line_of_an_epoch_leaves_out_missing_values():
    row = {"epoch": 1.5, "step": 3, "running_loss": 0.5, "train_seconds": 2.0}
    row |= {f"{part}_{what}": None for part in ("train", "test") for what in ("loss", "accuracy")}
    row |= {"validation_loss": 0.25, "validation_accuracy": 0.875}
    assert summary_line(row) == "epoch 1.5, step 3, running loss 0.5, validation 0.25 (87.50 %), 2.00 s"
