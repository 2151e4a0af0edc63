"""Numbers that are not finite: detected within the logging period, and handled as configured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch

from gnewton.errors import Diverged
from gnewton.optim.options import OptimizerRecipe
from gnewton.runfiles import BEST, LAST, PREVIOUS
from gnewton.training import evaluate as evaluate_module
from gnewton.training import trainer as trainer_module
from gnewton.training import training_step
from gnewton.training.checkpoint import load_checkpoint
from tests.conftest import SMALL, SMALL_BASELINE
from tests.experiment.interruptions import assert_same_run, rows

OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "sgd": ("optimizer=sgd", "optimizer.momentum=0.9", *SMALL_BASELINE),
    "adam": ("optimizer=adam", *SMALL_BASELINE),
    "lbfgs": ("optimizer=lbfgs", *SMALL_BASELINE[:2]),
    "kfac": ("optimizer=kfac", *SMALL_BASELINE),
    "kfac ekfac": ("optimizer=kfac", "optimizer.preconditioner=ekfac", *SMALL_BASELINE),
    "grouped_newton": ("optimizer=grouped_newton", "optimizer.period=2", *SMALL),
    "grouped_newton adam": ("optimizer=grouped_newton", "optimizer/direction=adam", *SMALL),
    "grouped_newton kfac": ("optimizer=grouped_newton", "optimizer/direction=kfac", *SMALL),
}
LENGTH = ("trainer.epochs=3", "trainer.log_every=2")
PER_EPOCH = dict.fromkeys(OPTIMIZERS, 3) | {"lbfgs": 1}


def _at(name: str) -> int:
    """A step of the second epoch at which something breaks."""
    return PER_EPOCH[name] + (1 if PER_EPOCH[name] > 1 else 0)


@contextmanager
def poisoned(
    monkeypatch: pytest.MonkeyPatch, kind: str, steps: Callable[[int], bool], value: float = math.nan
) -> Iterator[None]:
    """Within the block, the loss or the gradient of the training steps in ``steps`` is ``value``."""
    current: list[Any] = [None]
    make_step, add_gradient = trainer_module.Trainer._make_step, training_step.add_gradient

    def noted(self: Any, whole: Any) -> None:
        current[0] = self.state.step
        make_step(self, whole)

    def broken(model: Any, *arguments: Any) -> Any:
        loss, correct = add_gradient(model, *arguments)
        if not steps(current[0]):
            return loss, correct
        if kind == "gradient":
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[3] = value
            return loss, correct
        for p in model.parameters():
            p.grad.fill_(value)
        return torch.full_like(loss, value), correct

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_make_step", noted)
        patch.setattr(training_step, "add_gradient", broken)
        yield


def _only(root):
    (folder,) = root.glob("*/*")
    return folder


def _finite(folder) -> None:
    for name in (LAST, PREVIOUS, BEST):
        path = folder / "checkpoint" / name
        if path.exists():
            assert all(value.isfinite().all() for value in load_checkpoint(path)["model"].values())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_stop(name, kind, value, run, monkeypatch, tmp_path):
    with (
        poisoned(monkeypatch, kind, lambda step: step == _at(name), value),
        pytest.raises(Diverged) as caught,
    ):
        run([*OPTIMIZERS[name], *LENGTH])
    assert caught.value.exit_code == 3
    folder = _only(tmp_path)
    _finite(folder)
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["message"]) == ("diverged", str(caught.value))
    assert result["step"] <= _at(name) + 2  # within the logging period
    if kind == "loss":
        assert str(caught.value) == f"the training loss is {value} at step {_at(name)}"
    assert len(rows(folder / "metrics.csv")) == 1 + 2


@pytest.fixture(scope="module")
def without_the_step(finished):
    """without_the_step(name) -> the folder of a run in which step ``_at(name)`` is never computed."""

    @cache
    def oracle(name):
        original = trainer_module.Trainer._make_step

        def without(self, batch):
            if self.state.step == _at(name):
                self._advance_schedule()
                self.state.step += 1
            else:
                original(self, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer_module.Trainer, "_make_step", without)
            return finished([*OPTIMIZERS[name], *LENGTH, "name=without"])

    return oracle


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_skip_is_the_run_without_that_step(name, kind, run, without_the_step, monkeypatch, tmp_path):
    bad = _at(name)
    with poisoned(monkeypatch, kind, lambda step: step == bad):
        report = run([*OPTIMIZERS[name], *LENGTH, "trainer.on_nonfinite=skip"], tmp_path / "skip")
    assert (report.outcome.status, report.outcome.skipped) == ("done", 1)
    assert_same_run(without_the_step(name), report.folder)
    said = (report.folder / "train.log").read_text(encoding="utf-8")
    assert said.count("this step is skipped") == 1


@pytest.mark.parametrize("name", ["sgd", "grouped_newton"])
def test_skip_without_a_fault_changes_nothing(name, run, finished, tmp_path):
    plain = finished([*OPTIMIZERS[name], *LENGTH])
    skip = run([*OPTIMIZERS[name], *LENGTH, "trainer.on_nonfinite=skip"], tmp_path / "skip").folder
    assert_same_run(plain, skip)


@pytest.mark.parametrize("name", ["adam", "grouped_newton"])
def test_skip_several_steps_also_the_first_and_the_last(name, run, monkeypatch):
    with poisoned(monkeypatch, "loss", lambda step: step in (0, 4, 5, 8)):
        outcome = run([*OPTIMIZERS[name], *LENGTH, "trainer.on_nonfinite=skip"]).outcome
    assert (outcome.status, outcome.step, outcome.skipped) == ("done", 9, 4)


def test_skip_has_a_limit(run, monkeypatch, tmp_path):
    options = ("trainer.on_nonfinite=skip", "trainer.max_recoveries=2")
    with (
        poisoned(monkeypatch, "gradient", lambda step: step >= 4),
        pytest.raises(Diverged, match="2 in a row were skipped \\(trainer.max_recoveries\\)") as caught,
    ):
        run([*OPTIMIZERS["sgd"], *LENGTH, *options])
    assert caught.value.exit_code == 3
    _finite(_only(tmp_path))


@pytest.fixture(scope="module")
def at_half_the_rates(finished, compose):
    """at_half_the_rates(name) -> a run stopped after an epoch and resumed with half the learning rates."""
    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    @cache
    def oracle(name):
        folder = finished([*OPTIMIZERS[name], *LENGTH, f"trainer.max_steps={PER_EPOCH[name]}", "name=half"])
        path = folder / "checkpoint" / LAST
        state = load_checkpoint(path)
        assert state["step"] == PER_EPOCH[name]
        for group in state["optimizer"]["param_groups"]:
            group["lr"] *= 0.5
        state["scheduler"]["base_lrs"] = [0.5 * rate for rate in state["scheduler"]["base_lrs"]]
        torch.save(state, path)
        overrides = [f"resume={folder}", "trainer.max_steps=null"]
        run_experiment(prepare(compose(overrides), overrides))
        return folder

    return oracle


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_rollback(name, kind, run, at_half_the_rates, monkeypatch, tmp_path):
    bad, epoch = [_at(name)], PER_EPOCH[name]

    def once(step):
        if bad and step == bad[0]:
            bad.clear()
            return True
        return False

    with poisoned(monkeypatch, kind, once):
        report = run([*OPTIMIZERS[name], *LENGTH, "trainer.on_nonfinite=rollback"], tmp_path / "rollback")
    assert (report.outcome.status, report.outcome.rollbacks) == ("done", 1)
    assert_same_run(at_half_the_rates(name), report.folder)
    table = pd.read_csv(report.folder / "metrics.csv")[1:].reset_index(drop=True)
    schedule = (1.0, 8 / 9, 2 / 9) if name.startswith("grouped_newton") else (1.0, 1.0, 1.0)
    expected = [factor * scale for factor, scale in zip(schedule, (1.0, 0.5, 0.5), strict=True)]
    assert list(table["lr"] / table["lr"][0]) == pytest.approx(expected, rel=1e-12)
    assert list(table["step"]) == [epoch, 2 * epoch, 3 * epoch]
    assert table["train_seconds"].is_monotonic_increasing


def test_each_rollback_lowers_the_rates_further(run, monkeypatch):
    bad = [4, 3, 4]
    options = ("trainer.on_nonfinite=rollback", "trainer.rollback_factor=0.1")
    with poisoned(monkeypatch, "loss", lambda step: bool(bad) and step == bad[0] and bool(bad.pop(0))):
        report = run([*OPTIMIZERS["sgd"], *LENGTH, *options])
    assert report.outcome.rollbacks == 3
    table = pd.read_csv(report.folder / "metrics.csv")[1:].reset_index(drop=True)
    assert list(table["lr"] / table["lr"][0]) == pytest.approx([1.0, 1e-3, 1e-3])


def test_rollback_has_a_limit(run, monkeypatch, tmp_path):
    options = ("trainer.on_nonfinite=rollback", "trainer.max_recoveries=2")
    with (
        poisoned(monkeypatch, "loss", lambda step: step == 4),
        pytest.raises(Diverged, match="rolled back 2 times \\(trainer.max_recoveries\\)"),
    ):
        run([*OPTIMIZERS["sgd"], *LENGTH, *options])
    folder = _only(tmp_path)
    _finite(folder)
    assert len(rows(folder / "metrics.csv")) == 1 + 2


def test_rollback_tames_a_learning_rate_that_is_too_large(run):
    overrides = ("optimizer=sgd", "optimizer.lr=1e12", "model.activation=relu", *SMALL_BASELINE, *LENGTH)
    options = ("trainer.on_nonfinite=rollback", "trainer.rollback_factor=1e-4", "trainer.log_every=1")
    report = run([*overrides[:-1], *options])
    assert report.outcome.status == "done"
    assert 2 <= report.outcome.rollbacks <= 5
    _finite(report.folder)


def _with_summary(monkeypatch, spoil):
    """Every summary passes through ``spoil(number, summary)``, counted from 0."""
    import dataclasses

    from gnewton.summary import Summarizer

    original, calls = Summarizer.summarize, []

    def summarize(self, *arguments):
        summary = original(self, *arguments)
        calls.append(0)
        return dataclasses.replace(summary, **spoil(len(calls) - 1, summary))

    monkeypatch.setattr(Summarizer, "summarize", summarize)


@pytest.mark.parametrize("part", ["gradient", "hessian", "third"])
@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_summary_that_is_not_finite(part, policy, run, monkeypatch, tmp_path):
    _with_summary(
        monkeypatch, lambda number, s: {part: getattr(s, part) * math.nan} if number == 2 else {}
    )  # the update at step 4
    overrides = [*OPTIMIZERS["grouped_newton"], *LENGTH, f"trainer.on_nonfinite={policy}"]
    if policy == "stop":
        with pytest.raises(Diverged, match="the summary is not finite at step 4$"):
            run(overrides)
        _finite(_only(tmp_path))
        return
    report = run(overrides)
    assert report.outcome.status == "done"
    assert (report.outcome.skipped, report.outcome.rollbacks) == ((1, 0) if policy == "skip" else (0, 1))
    table = pd.read_csv(report.folder / "rates.csv")
    statuses = table.groupby("step")["status"].first()
    assert (statuses[4] == "invalid_input") == (policy == "skip")
    rates = table.pivot(index="step", columns="group", values="rate")
    assert rates.loc[4].equals(rates.loc[2]) == (policy == "skip")  # the rates before it stay in force


@pytest.mark.parametrize(("bad", "in_a_row"), [((1, 3), False), ((1, 2), True)])
def test_only_consecutive_failures_count_towards_the_limit(bad, in_a_row, run, monkeypatch):
    _with_summary(monkeypatch, lambda number, s: {"gradient": s.gradient * math.nan} if number in bad else {})
    options = ("trainer.on_nonfinite=skip", "trainer.max_recoveries=1")
    overrides = [*OPTIMIZERS["grouped_newton"], *LENGTH, *options]
    if in_a_row:
        with pytest.raises(Diverged, match="1 in a row were skipped"):
            run(overrides)
    else:
        assert run(overrides).outcome.skipped == 2


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_an_evaluation_that_is_not_finite(policy, run, monkeypatch, tmp_path):
    original, calls = evaluate_module.evaluate_splits, []

    def evaluate(*arguments):
        scores = original(*arguments)
        calls.append(0)
        if len(calls) == 3:
            scores["validation"] = type(scores["validation"])(math.nan, 0.5)
        return scores

    monkeypatch.setattr(evaluate_module, "evaluate_splits", evaluate)
    overrides = [*OPTIMIZERS["sgd"], *LENGTH, f"trainer.on_nonfinite={policy}"]
    if policy == "rollback":
        report = run(overrides)
        assert (report.outcome.status, report.outcome.rollbacks) == ("done", 1)
        assert [row[0] for row in rows(report.folder / "metrics.csv")[1:]] == ["0.0", "1.0", "2.0", "3.0"]
    else:
        with pytest.raises(Diverged, match="the validation loss is nan after step 6"):
            run(overrides)


def test_a_diverged_run_can_be_resumed_with_another_policy(run, compose, monkeypatch, tmp_path):
    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    with poisoned(monkeypatch, "loss", lambda step: step == 4):
        with pytest.raises(Diverged):
            run([*OPTIMIZERS["adam"], *LENGTH])
        overrides = [f"resume={_only(tmp_path)}", "trainer.on_nonfinite=skip"]
        outcome = run_experiment(prepare(compose(overrides), overrides)).outcome
    assert (outcome.status, outcome.skipped) == ("done", 1)


def test_recipes_are_untouched():
    """The policies work with every optimizer, since they do not depend on its recipe."""
    assert not [name for name in vars(OptimizerRecipe) if "finite" in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["trainer.max_recoveries=3"],
            "trainer.max_recoveries=3: has no effect with trainer.on_nonfinite=stop",
        ),
        (
            ["trainer.rollback_factor=0.1", "trainer.on_nonfinite=skip"],
            "trainer.rollback_factor=0.1: has no effect without trainer.on_nonfinite=rollback",
        ),
        (["trainer.on_nonfinite=ignore"], "trainer.on_nonfinite=ignore: must be one of stop, skip, rollback"),
        (["trainer.max_recoveries=0", "trainer.on_nonfinite=skip"], "must be a whole number >= 1"),
        (
            ["trainer.rollback_factor=2", "trainer.on_nonfinite=rollback"],
            "must be a finite number > 0 and <= 1",
        ),
    ],
)
def test_meaningless_options_are_refused(options, message, cli):
    answer = cli(["train", *options])
    assert answer.code == 2
    assert message in answer.err
