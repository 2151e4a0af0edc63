"""The loop: the computation of a step, when it stops, and the files it writes."""

from __future__ import annotations

import copy
import math
import traceback
from collections import UserDict
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from gnewton.errors import Diverged, InputError
from gnewton.optim.options import ScheduleRecipe
from gnewton.optim.options.components import (
    CosineSchedule,
    LinearSchedule,
    PlateauSchedule,
    StepSchedule,
    TrapezoidSchedule,
)
from gnewton.training import resources, runlog
from gnewton.training.checkpoint import load_checkpoint
from gnewton.training.evaluate import evaluate
from gnewton.training.settings import Evaluation, Target
from gnewton.training.training_step import add_gradient
from gnewton.training.world import World
from tests.training import builders


def _all_metrics(folder):
    return pd.read_csv(folder / "metrics.csv")


def _metrics(folder):
    """The rows of metrics.csv but that of step 0."""
    return _all_metrics(folder).query("step > 0").reset_index(drop=True)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 17, 100])
def test_evaluation_is_weighted_by_samples(batch_size):
    data = builders.classification()
    model = builders.network(data.task)
    inputs, targets = data.validation.inputs, data.validation.targets
    outputs = model(inputs).detach()
    expected = nn.functional.cross_entropy(outputs, targets, reduction="sum").item() / 17
    score = evaluate(model, data.task, data.validation, batch_size)
    assert score.loss == pytest.approx(expected, rel=1e-13)
    assert score.accuracy == (outputs.argmax(1) == targets).sum().item() / 17


def test_evaluation_of_the_first_samples_only():
    data = builders.classification()
    model = builders.network(data.task)
    outputs = model(data.test.inputs[:5]).detach()
    score = evaluate(model, data.task, data.test, 3, limit=5)
    assert score.loss == pytest.approx(data.task.loss(outputs, data.test.targets[:5]).item(), rel=1e-13)


def test_evaluation_restores_the_mode_and_keeps_the_gradients():
    data = builders.classification()
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    before = copy.deepcopy(model.state_dict())
    for mode in (True, False):
        model.train(mode)
        first, second = (evaluate(model, data.task, data.test, 4) for _ in range(2))
        assert first == second  # dropout is off
        assert model.training is mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_regression_has_no_accuracy():
    data = builders.regression()
    score = evaluate(builders.network(data.task), data.task, data.test, 4)
    assert score.accuracy is None
    assert score.loss > 0


@pytest.mark.parametrize(
    "data", [builders.classification(), builders.regression()], ids=["labels", "numbers"]
)
@pytest.mark.parametrize("microbatch", [1, 3, 7, 10, 25])
def test_microbatches_add_up_to_the_batch(data, microbatch):
    model = builders.network(data.task)
    batch = (data.train.inputs[:10], data.train.targets[:10])
    loss = data.task.loss(model(batch[0]), batch[1])
    expected = torch.autograd.grad(loss, list(model.parameters()))
    total, correct = add_gradient(model, data.task, batch, microbatch)
    assert total.item() == pytest.approx(loss.item(), rel=1e-12)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)
    if correct is not None:
        assert correct.item() == (model(batch[0]).argmax(1) == batch[1]).sum().item()


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
def test_any_mapping_of_inputs_is_cut_with_its_targets(kind):
    data = builders.classification()
    network = builders.network(data.task)
    model = Named(network)
    x, targets = data.train.inputs[:10], data.train.targets[:10]
    batch = (kind({"x": x, "scale": torch.ones(())}), targets)
    expected = torch.autograd.grad(data.task.loss(network(x), targets), list(network.parameters()))
    total, correct = add_gradient(model, data.task, batch, 4)
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)
    shares = [World(rank, 2).share(batch) for rank in range(2)]
    assert torch.equal(torch.cat([share["x"] for share, _ in shares]), x)
    assert [len(labels) for _, labels in shares] == [5, 5]
    score = evaluate(model, data.task, OneBatch(batch), 10)
    assert score.loss == pytest.approx(total.item(), rel=1e-12)
    assert score.accuracy == pytest.approx(correct.item() / 10)


@pytest.mark.parametrize(
    ("batch", "fault"),
    [
        ((torch.ones(2, 4), np.zeros(2)), "a ndarray as targets"),
        ((np.ones((2, 4)), torch.zeros(2)), "a ndarray as inputs"),
        (((torch.ones(2, 4), None), torch.zeros(2)), "a NoneType as inputs[1]"),
        ((UserDict(x=[1, 2]), torch.zeros(2)), "a list as inputs['x']"),
        ((torch.ones(2, 4),), "a tuple of 1"),
        ({"x": torch.ones(2, 4)}, "a dict"),
    ],
)
def test_a_batch_of_another_form_is_refused_by_its_fault(batch, fault):
    data = builders.classification()
    with pytest.raises(InputError) as refusal:
        evaluate(builders.network(data.task), data.task, OneBatch(batch), 2)
    assert (
        f"(inputs, targets), a tensor (or a tuple or dictionary of tensors) and a tensor, not {fault}; "
        in (str(refusal.value))
    )


class Named(torch.nn.Module):
    """A network that takes its input by name, and a factor of it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, scale):
        return self.network(scale * x)


class OneBatch:
    """A split of one batch."""

    def __init__(self, batch):
        self.batch = batch

    def in_order(self, batch_size, limit=None):
        yield self.batch


def test_a_run_with_microbatches_is_the_same_run(tmp_path):
    folders = [tmp_path / name for name in ("whole", "pieces")]
    for folder, microbatch in zip(folders, (None, 3), strict=True):
        folder.mkdir()
        builders.trainer(folder, microbatch=microbatch).fit()
    whole, pieces = (_metrics(folder) for folder in folders)
    losses = [name for name in whole if name.endswith("loss")]
    pd.testing.assert_frame_equal(whole[losses], pieces[losses], rtol=1e-12)


def test_sgd_makes_the_steps_it_should(tmp_path):
    """The same steps as those of a loop of three lines."""
    trainer = builders.trainer(tmp_path, recipe=builders.sgd(lr=0.2))
    model = copy.deepcopy(trainer.model)
    for epoch in range(2):
        for inputs, targets in trainer.data.train.epoch(epoch, 10):
            gradients = torch.autograd.grad(
                trainer.data.task.loss(model(inputs), targets), list(model.parameters())
            )
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.2 * gradient
    trainer.fit()
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_running_loss_is_the_mean_over_the_epoch(tmp_path):
    """At a rate of nearly nothing all batches see the same model, so running and evaluated loss agree."""
    data = builders.classification(samples=25)  # the last batch is smaller
    builders.trainer(tmp_path, data, builders.sgd(lr=1e-300), log_every=2).fit()
    for _, row in _metrics(tmp_path).iterrows():
        assert row["running_loss"] == pytest.approx(row["train_loss"], rel=1e-12)
        assert row["running_accuracy"] == row["train_accuracy"]


def test_lbfgs_takes_the_whole_training_set(tmp_path):
    trainer = builders.trainer(tmp_path, recipe=builders.lbfgs(), epochs=4)
    assert trainer.steps_per_epoch == 1
    sizes = []
    trainer.model.register_forward_hook(
        lambda module, inputs, _: sizes.append((module.training, len(inputs[0])))
    )
    trainer.fit()
    assert {size for training, size in sizes if training} == {30}
    metrics = _metrics(tmp_path)
    assert list(metrics["step"]) == [1, 2, 3, 4]
    assert metrics["train_loss"].is_monotonic_decreasing
    first = metrics.iloc[0]
    assert (
        0 < first["running_loss"] > first["train_loss"]
    )  # of the first evaluation in the step, before it moved


@pytest.mark.parametrize(
    ("limits", "steps", "status", "epoch"),
    [
        ({}, 6, "done", 2),
        ({"max_steps": 4}, 4, "limit", 1.3333),
        ({"max_steps": 3}, 3, "limit", 1),
        ({"max_steps": 100}, 6, "done", 2),
        ({"max_seconds": 1e-9}, 1, "limit", 0.3333),
    ],
)
def test_limits(tmp_path, limits, steps, status, epoch):
    trainer = builders.trainer(tmp_path, **limits)
    outcome = trainer.fit()
    assert (trainer.state.step, outcome.step, outcome.status, outcome.epoch) == (steps, steps, status, epoch)
    last = _metrics(tmp_path).iloc[-1]
    assert (last["step"], last["epoch"]) == (steps, epoch)
    assert load_checkpoint(tmp_path / "checkpoint" / "last.pt")["step"] == steps


@pytest.mark.parametrize(
    ("metric", "value"), [("validation_loss", 0.9), ("train_accuracy", 0.5), ("test_loss", 1.0)]
)
def test_a_target_stops_the_run(tmp_path, metric, value):
    target = Target(metric=metric, value=value)
    recipe = builders.sgd(lr=0.5)
    outcome = builders.trainer(
        tmp_path, recipe=recipe, epochs=200, target=target, checkpoint_every="7 epochs"
    ).fit()
    metrics = _metrics(tmp_path)
    reached = metrics[metric] >= value if metric.endswith("accuracy") else metrics[metric] <= value
    assert outcome.status == "target"
    assert list(reached) == [False] * (len(reached) - 1) + [True]
    last = metrics.iloc[-1]
    assert outcome.target == {
        "metric": metric,
        "value": value,
        "reached": last[metric],
        "epoch": last["epoch"],
        "step": last["step"],
        "train_seconds": last["train_seconds"],
    }
    assert load_checkpoint(tmp_path / "checkpoint" / "last.pt")["step"] == last["step"]


def test_the_first_row_is_that_of_the_initial_weights(tmp_path):
    data = builders.classification()
    model = builders.network(data.task)
    expected = {name: evaluate(model, data.task, getattr(data, name), 8) for name in ("train", "test")}
    trainer = builders.trainer(tmp_path, data, model=model, epochs=1)
    trainer.fit()
    start, end = _all_metrics(tmp_path).to_dict("records")
    assert (start["epoch"], start["step"], start["lr"]) == (0, 0, 0.1)
    assert math.isnan(start["running_loss"])
    assert math.isnan(start["running_accuracy"])
    for name, score in expected.items():
        assert (start[f"{name}_loss"], start[f"{name}_accuracy"]) == (score.loss, score.accuracy)
    assert end["step"] == 3


def test_initial_weights_reach_no_target_and_are_not_the_best(tmp_path):
    target = Target(metric="train_loss", value=100.0)
    outcome = builders.trainer(tmp_path, recipe=builders.sgd(lr=1e-9), epochs=3, target=target).fit()
    assert (outcome.status, outcome.step) == ("target", 3)
    assert load_checkpoint(tmp_path / "checkpoint" / "best.pt")["step"] == 3


def test_an_unreached_target_is_not_reported(tmp_path):
    outcome = builders.trainer(tmp_path, target=Target(metric="test_loss", value=0.0)).fit()
    assert (outcome.status, outcome.target) == ("done", None)


def test_evaluation_every_few_epochs(tmp_path):
    evaluation = Evaluation(every=2, train=False, batch_size=5, max_samples=3)
    builders.trainer(tmp_path, epochs=5, evaluation=evaluation).fit()
    metrics = _metrics(tmp_path)
    assert list(metrics["epoch"]) == [2, 4, 5]  # the last one always
    assert metrics["train_loss"].isna().all()
    assert metrics["validation_loss"].notna().all()


class _FakeTime:
    """A clock that advances only with the work done."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_clocks_are_apart(tmp_path, monkeypatch):
    fake = _FakeTime()
    monkeypatch.setattr(resources.time, "perf_counter", fake)
    trainer = builders.trainer(tmp_path, log_every=1)

    def cost(owner, name, seconds):
        original = getattr(owner, name)

        def slow(*arguments, **options):
            fake.now += seconds
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, slow)

    import gnewton.training.evaluate as evaluation
    import gnewton.training.trainer as module

    cost(trainer.optimizer, "zero_grad", 1.0)
    cost(evaluation, "evaluate_splits", 100.0)
    cost(runlog, "save_checkpoint", 10_000.0)
    cost(module, "summary_line", 0.01)
    trainer.fit()
    metrics = _metrics(tmp_path)
    assert list(metrics["train_seconds"]) == [3, 6]
    assert list(metrics["evaluation_seconds"]) == [200, 300]
    assert list(metrics["samples_per_second"]) == [10, 10]
    assert list(metrics["checkpoint_seconds"]) == [10_000, 30_000]  # at the start; then best and last
    assert trainer.clocks.seconds["train"] == 6
    assert trainer.clocks.seconds["logging"] == pytest.approx(0.03)
    start = _all_metrics(tmp_path).iloc[0]
    assert (start["train_seconds"], start["evaluation_seconds"], start["checkpoint_seconds"]) == (0, 100, 0)
    assert math.isnan(start["samples_per_second"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (StepSchedule(name="step", every=2, factor=0.1), [1, 1, 0.1, 0.1, 0.01]),
        (PlateauSchedule(name="plateau", patience=0, threshold=0.999, factor=0.5), [1, 1, 0.5, 0.25, 0.125]),
    ],
    ids=["step", "plateau"],
)
def test_schedules_act_on_the_rate_of_each_epoch(tmp_path, schedule, expected):
    builders.trainer(tmp_path, recipe=builders.sgd(lr=1e-3, schedule=schedule), epochs=5).fit()
    assert list(_metrics(tmp_path)["lr"]) == pytest.approx([1e-3 * factor for factor in expected], rel=1e-12)


class Watched(torch.optim.SGD):
    """Records the learning rate of every step."""

    def __init__(self, rates: list[float], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rates = rates

    def step(self, closure: Any = None) -> Any:
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


def rates_by_step(
    folder: Path, schedule: ScheduleRecipe, *, resumed: bool = False, **changes: Any
) -> list[float]:
    rates: list[float] = []
    wrap = lambda optimizer: Watched(rates, optimizer.param_groups, lr=1e-3)  # noqa: E731
    recipe = builders.sgd(lr=1e-3, schedule=schedule)
    trainer = builders.trainer(folder, recipe=recipe, wrap=wrap, **changes)
    assert not resumed or trainer.resume(folder)
    trainer.fit()
    return rates


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_cosine_acts_at_every_step(tmp_path, warmup):
    schedule = CosineSchedule(name="cosine", final_fraction=0.2, warmup=warmup)
    rates = rates_by_step(tmp_path, schedule, epochs=5)
    n = len(rates)
    assert n > 10
    expected = [
        (k + 1) / 3 if k < warmup else 0.2 + 0.4 * (1 + math.cos(math.pi * (k - warmup) / (n - warmup)))
        for k in range(n)
    ]
    assert rates == pytest.approx([1e-3 * factor for factor in expected], rel=1e-12)
    assert list(_metrics(tmp_path)["lr"]) == pytest.approx(rates[n // 5 - 1 :: n // 5], rel=1e-12)


def test_a_trapezoid_is_constant_and_then_falls(tmp_path):
    schedule = TrapezoidSchedule(name="trapezoid", final_fraction=0.1, warmup=1, hold=0.6)
    rates = rates_by_step(tmp_path, schedule, epochs=5)
    n = len(rates)
    start = 1 + 0.6 * (n - 1)
    expected = [0.5, *(0.1 + 0.9 * min(1, (n - k) / (n - start)) for k in range(1, n))]
    assert rates == pytest.approx([1e-3 * factor for factor in expected], rel=1e-12)


def test_a_schedule_by_steps_survives_an_interruption(tmp_path):
    schedule = LinearSchedule(name="linear", final_fraction=0.1)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = rates_by_step(tmp_path / "whole", schedule, epochs=3)
    half = rates_by_step(tmp_path / "cut", schedule, epochs=3, max_steps=len(whole) // 2)
    assert half + rates_by_step(tmp_path / "cut", schedule, epochs=3, resumed=True) == whole


def test_a_diverging_step_is_named(tmp_path):
    class Exploding(torch.optim.SGD):
        count = 0

        def step(self, closure):
            loss = super().step(closure)
            type(self).count += 1
            if type(self).count == 5:  # steps 0 … 4 are made; step 5 sees what this one left
                self.param_groups[0]["params"][0].data.fill_(math.nan)
            return loss

    def exploding(optimizer):
        return Exploding(optimizer.param_groups[0]["params"], lr=0.1)

    trainer = builders.trainer(tmp_path, wrap=exploding, epochs=4, log_every=100)
    with pytest.raises(Diverged, match="the training loss is nan at step 5$"):
        trainer.fit()
    metrics = _metrics(tmp_path)
    assert list(metrics["step"]) == [3]
    state = load_checkpoint(tmp_path / "checkpoint" / "last.pt")
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["model"].values())


def test_divergence_in_the_last_step_is_seen(tmp_path):
    """The loss of the step is finite, the weights after it are not: the run has not succeeded."""
    with pytest.raises(Diverged, match="the parameters are not finite after step 1"):
        builders.trainer(tmp_path, builders.regression(), builders.sgd(lr=1e200), max_steps=1).fit()
    state = load_checkpoint(tmp_path / "checkpoint" / "last.pt")
    assert state["step"] == 0
    assert not (tmp_path / "checkpoint" / "best.pt").exists()
    assert len(_metrics(tmp_path)) == 0  # it stops before it evaluates


def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path):
    builders.trainer(tmp_path, builders.regression(samples=30), builders.sgd(lr=0.3), epochs=6).fit()
    metrics = _metrics(tmp_path)
    best = load_checkpoint(tmp_path / "checkpoint" / "best.pt")
    assert best["step"] == metrics.loc[metrics["validation_loss"].idxmin(), "step"]


class _Waits:
    """Counts the operations that make the host wait for the device."""

    NAMES = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero")

    def __init__(self, monkeypatch):
        self.count = 0
        for name in self.NAMES:
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, original):
        def method(tensor, *arguments, **options):
            self.count += 1
            return original(tensor, *arguments, **options)

        return method


def test_a_step_does_not_wait_for_the_device(tmp_path, monkeypatch):
    waits = _Waits(monkeypatch)
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure):
            seen.append(waits.count)
            return super().step(closure)

    trainer = builders.trainer(
        tmp_path,
        builders.classification(samples=200),
        wrap=lambda optimizer: Watched(optimizer.param_groups[0]["params"], lr=0.1),
        epochs=1,
        log_every=5,
    )
    trainer.fit()
    steps = [after - before for before, after in pairwise(seen)]
    assert len(seen) == 20
    assert [index for index, count in enumerate(steps, 1) if count] == [5, 10, 15]  # the logging periods
    assert waits.count > 0


def test_a_step_is_a_straight_line(tmp_path):
    """At most five frames of the package lie between the loop and the step of the optimizer."""
    between = []

    class Watched(torch.optim.SGD):
        def step(self, closure):
            names = [frame.name for frame in traceback.extract_stack() if "/gnewton/" in frame.filename]
            between.append(names[names.index("fit") + 1 :])
            return super().step(closure)

    def watched(optimizer):
        return Watched(optimizer.param_groups, lr=0.1)

    builders.trainer(tmp_path, wrap=watched, epochs=1).fit()
    assert between[0] == ["_train_epoch", "_make_step", "__call__", "step"]
