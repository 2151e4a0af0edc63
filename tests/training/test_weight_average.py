"""The average of the weights: its values against a sum in float64, and no effect on the training."""

from __future__ import annotations

import copy
from itertools import count

import pandas as pd
import pytest
import torch
from torch import nn

from gnewton.errors import InputError
from gnewton.training.checkpoint import load_checkpoint
from gnewton.training.evaluate import WeightAverage, evaluate
from tests.conftest import SMALL, SMALL_BASELINE
from tests.training import builders


def _normalised(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_it_is_the_weighted_mean_of_the_weights_after_each_step(decay):
    model = _normalised()
    average = WeightAverage(model, decay)
    seen = []
    for _ in range(7):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        model(torch.randn(6, 5, dtype=torch.float64))  # moves the running statistics
        average.update()
        seen.append(copy.deepcopy(model.state_dict()))
        weights = [decay ** (len(seen) - 1 - j) for j in range(len(seen))]
        with average.in_force():
            for name, value in model.state_dict().items():
                if name.endswith("num_batches_tracked"):
                    assert value == len(seen)
                    continue
                terms = [weight * state[name] for weight, state in zip(weights, seen, strict=True)]
                torch.testing.assert_close(value, sum(terms) / sum(weights), rtol=1e-12, atol=1e-13)
        assert all(torch.equal(value, seen[-1][name]) for name, value in model.state_dict().items())


def test_before_the_first_step_it_is_not_in_force():
    model = _normalised()
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model[0].weight += 1
    before = model[0].weight.clone()
    with average.in_force():
        assert torch.equal(model[0].weight, before)


@pytest.fixture
def fitted(tmp_path):
    """fitted(**changes) -> (metrics.csv, last.pt, best.pt, trainer) of a run with batch normalisation."""
    numbers = count()

    def fit(resume_at=None, **changes):
        folder = tmp_path / f"{next(numbers)}"
        folder.mkdir()
        options = {"epochs": 3, "recipe": builders.sgd(lr=0.5, momentum=0.9), **changes}
        if resume_at is not None:
            builders.trainer(folder, model=_normalised(), **options, max_steps=resume_at).fit()
        trainer = builders.trainer(folder, model=_normalised(seed=0 if resume_at is None else 1), **options)
        assert resume_at is None or trainer.resume(folder)
        trainer.fit()
        states = [load_checkpoint(folder / "checkpoint" / name) for name in ("last.pt", "best.pt")]
        return pd.read_csv(folder / "metrics.csv"), *states, trainer

    return fit


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_is_the_same_and_evaluation_is_of_the_average(fitted):
    plain, last, _, _ = fitted()
    averaged, last_too, best, trainer = fitted(ema=0.8)
    assert _equal(last["model"], last_too["model"])
    assert plain["running_loss"].equals(averaged["running_loss"])
    assert plain["test_loss"][0] == averaged["test_loss"][0]  # the initial weights
    assert (plain["test_loss"][1:] != averaged["test_loss"][1:]).all()
    assert (last["weights"], last_too["weights"], best["weights"]) == ("training", "training", "average")
    assert (last["average"], last_too["average"]["count"]) == (None, 9)
    model = _normalised(seed=3)
    model.load_state_dict(last_too["average"]["values"])
    score = evaluate(model, trainer.data.task, trainer.data.test, 8)
    assert score.loss == averaged["test_loss"].iloc[-1]
    model.load_state_dict(best["model"])
    score = evaluate(model, trainer.data.task, trainer.data.validation, 8)
    row = averaged[averaged["step"] == best["step"]]
    assert [score.loss] == row["validation_loss"].tolist()


def test_a_resumed_run_goes_on_with_its_average(fitted):
    whole, last, _, _ = fitted(ema=0.9)
    cut, last_too, _, _ = fitted(ema=0.9, resume_at=5)
    assert _equal(last["average"]["values"], last_too["average"]["values"])
    assert last_too["average"]["count"] == 9
    assert whole["test_loss"].iloc[-1] == cut["test_loss"].iloc[-1]


def test_an_optimizer_with_an_average_of_its_own_is_refused(compose):
    from gnewton.experiment.prepare import prepare

    overrides = ["optimizer=schedule_free", "trainer.ema=0.9"]
    message = "trainer.ema=0.9: must be null with optimizer=schedule_free, which is evaluated at an average"
    with pytest.raises(InputError) as caught:
        prepare(compose(overrides), overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "small"),
    [("grouped_newton", SMALL), ("kfac", SMALL_BASELINE), ("lbfgs", SMALL_BASELINE[:2])],
)
def test_evaluations_do_not_change_the_training(optimizer, small, run):
    options = [*small, f"optimizer={optimizer}", "trainer.epochs=2"]
    folders = [run([*options, f"trainer.ema={ema}"]).folder for ema in ("null", "0.7")]
    states = [load_checkpoint(folder / "checkpoint" / "last.pt") for folder in folders]
    assert _equal(states[0]["model"], states[1]["model"])
    tables = [pd.read_csv(folder / "metrics.csv") for folder in folders]
    assert tables[0]["running_loss"].equals(tables[1]["running_loss"])
    assert tables[0]["test_loss"].iloc[-1] != tables[1]["test_loss"].iloc[-1]
