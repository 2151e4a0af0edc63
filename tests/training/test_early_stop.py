"""Early stopping: when the patience ends, and that an interruption does not change it."""

from __future__ import annotations

import pytest

from gnewton.experiment.prepare import prepare
from gnewton.experiment.run import run as run_experiment
from gnewton.training.ending import Patience
from gnewton.training.settings import EarlyStop
from tests.conftest import SMALL_BASELINE

STILL = (*SMALL_BASELINE, "optimizer=sgd", "optimizer.lr=1e-30", "trainer.epochs=9")
"""A run whose weights do not move: the loss of the first evaluation is the best."""


@pytest.mark.parametrize(
    ("metric", "values", "counts"),
    [
        ("validation_loss", [3.0, 2.0, 2.0, 2.5, 1.0, None, 1.5], [0, 0, 1, 2, 0, 0, 1]),
        ("test_accuracy", [0.5, 0.4, 0.5, 0.6], [0, 1, 2, 0]),
    ],
)
def test_it_counts_the_evaluations_since_the_best_value(metric, values, counts):
    patience, since = Patience(), []
    for value in values:
        patience.record(EarlyStop(metric=metric), {metric: value})
        again = Patience()
        again.load_state_dict(patience.state_dict())
        patience = again
        since.append(patience.since)
    assert since == counts
    assert patience.is_over(EarlyStop(metric=metric, patience=since[-1])) or since[-1] == 0
    assert not patience.is_over(EarlyStop(metric=metric, patience=since[-1] + 1))
    assert not patience.is_over(EarlyStop(metric=metric))


@pytest.fixture
def again(compose):
    """again(folder, *overrides) -> the report of the resumed run."""

    def resumed(folder, *overrides):
        options = [f"resume={folder}", *overrides]
        return run_experiment(prepare(compose(options), options))

    return resumed


def test_a_run_that_stands_still_ends_early_and_goes_on_with_more_patience(run, again):
    first = run([*STILL, "trainer.early_stop.patience=2"])
    assert (first.outcome.status, first.outcome.epoch) == ("stopped", 3)
    same = again(first.folder)
    assert (same.outcome.status, same.outcome.epoch) == ("stopped", 3)
    longer = again(first.folder, "trainer.early_stop.patience=4")
    assert (longer.outcome.status, longer.outcome.epoch) == ("stopped", 5)


def test_patience_counts_across_an_interruption(run, again):
    limited = run([*STILL, "trainer.early_stop.patience=3", "trainer.max_steps=6"])
    assert (limited.outcome.status, limited.outcome.epoch) == ("limit", 2)
    resumed = again(limited.folder, "trainer.max_steps=null")
    assert (resumed.outcome.status, resumed.outcome.epoch) == ("stopped", 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["trainer.early_stop.metric=test_loss"],
            "has no effect without trainer.early_stop.patience",
        ),
        (
            [
                "trainer.early_stop.patience=1",
                "trainer.early_stop.metric=train_loss",
                "trainer.evaluation.train=false",
            ],
            "trainer.early_stop.metric=train_loss: needs trainer.evaluation.train=true",
        ),
        (["trainer.early_stop.patience=0"], "trainer.early_stop.patience=0: must be a whole number >= 1"),
    ],
)
def test_bad_options_are_refused(cli, options, message):
    answer = cli(["train", *options])
    assert answer.code == 2
    assert message in answer.err
