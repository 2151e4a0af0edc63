"""A loss that rises and stays finite ends a run as diverged: alone, resumed, shared, in sweeps."""

from __future__ import annotations

import json
import signal

import pytest

from gnewton.errors import Diverged, Interrupted
from gnewton.runfiles import LAST
from gnewton.training.checkpoint import load_checkpoint
from tests.conftest import SMALL, SMALL_BASELINE
from tests.experiment.interruptions import after_step, rows, send

RISING = ("optimizer=sgd", "optimizer.lr=1e3", "model.activation=relu", *SMALL_BASELINE)
"""Its loss is some thousands from the first steps on, and finite."""


def _only(root):
    (folder,) = root.glob("*/*")
    return folder


def _result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    "length",
    [
        ("trainer.epochs=9",),
        ("trainer.epochs=1",),
        ("trainer.max_steps=2",),
        ("trainer.epochs=9", "trainer.log_every=1", "trainer.checkpoint_every=1 steps"),
    ],
    ids=" ".join,
)
def test_the_run_ends_as_diverged(length, run, tmp_path):
    with pytest.raises(Diverged, match="the training loss has diverged: median ") as caught:
        run([*RISING, *length])
    assert caught.value.exit_code == 3
    folder = _only(tmp_path)
    assert _result(folder)["status"] == "diverged"
    assert "trainer.divergence=10" in _result(folder)["message"]
    state = load_checkpoint(folder / "checkpoint" / LAST)
    assert state["step"] <= 1  # from before the loss rose: that of step 1 is the first high one


def test_without_the_check_the_run_ends_as_done(run):
    report = run([*RISING, "trainer.epochs=4", "trainer.divergence=null"])
    assert report.outcome.status == "done"
    assert report.outcome.metrics["running_loss"] > 100


def test_a_larger_factor_lets_the_run_go_on(run):
    assert run([*RISING, "trainer.epochs=1", "trainer.divergence=1e30"]).outcome.status == "done"


def test_a_sound_run_keeps_its_steps(run, tmp_path):
    sound = ["optimizer=adam", *SMALL_BASELINE, "trainer.epochs=3"]
    one = run([*sound, "trainer.divergence=2"], tmp_path / "on").folder
    other = run([*sound, "trainer.divergence=null"], tmp_path / "off").folder
    assert rows(one / "metrics.csv") == rows(other / "metrics.csv")


def test_a_resumed_run_diverges_at_the_same_step(run, compose, monkeypatch, tmp_path):
    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    length = ("trainer.epochs=9", "trainer.log_every=2")
    with pytest.raises(Diverged) as whole:
        run([*RISING, *length], tmp_path / "whole")
    with after_step(monkeypatch, 5, send(signal.SIGTERM)), pytest.raises(Interrupted):
        run([*RISING, *length], tmp_path / "parts")
    overrides = [f"resume={_only(tmp_path / 'parts')}"]
    with pytest.raises(Diverged) as parts:
        run_experiment(prepare(compose(overrides), overrides))
    assert str(parts.value) == str(whole.value)
    first, second = (_only(tmp_path / name) for name in ("whole", "parts"))
    assert rows(first / "metrics.csv") == rows(second / "metrics.csv")
    overrides = [overrides[0], "trainer.divergence=null"]
    assert run_experiment(prepare(compose(overrides), overrides)).outcome.status == "done"


def test_rollback_lowers_the_rates(run):
    options = ("trainer.on_nonfinite=rollback", "trainer.rollback_factor=1e-2", "trainer.epochs=4")
    report = run([*RISING, *options])
    assert report.outcome.status == "done"
    assert 1 <= report.outcome.rollbacks <= 3
    assert report.outcome.metrics["running_loss"] < 20


def test_skip_cannot_cure_divergence(run):
    with pytest.raises(Diverged, match="the training loss has diverged"):
        run([*RISING, "trainer.on_nonfinite=skip", "trainer.epochs=4"])


def test_exit_code_and_comparison_show_divergence(cli):
    """How a sweep treats this exit code is tested with stand-ins in sweep/test_sweep.py."""
    lengths = ["trainer.epochs=3", "trainer.device=cpu"]
    assert cli(["train", *RISING, *lengths]).code == 3
    assert cli(["train", "optimizer=sgd", *SMALL_BASELINE, *lengths]).code == 0
    answer = cli(["compare", "outputs", "--no-plots"])
    assert answer.code == 0
    assert "diverged" in answer.out


def test_options_are_checked(cli):
    answer = cli(["train", "trainer.divergence=1"])
    assert answer.code == 2
    assert "trainer.divergence=1.0: must be a finite number > 1" in answer.err


def test_methods_with_few_steps(run):
    """Full batches: a verdict takes ten steps, so that one bad step of a Newton method does not end a run."""
    sound = run(["optimizer=lbfgs", *SMALL[:1], "data.subset=60", "trainer.epochs=12"])
    assert sound.outcome.status == "done"
