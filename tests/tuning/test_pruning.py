"""Pruning: the median rule against Optuna's, and a search in which trials end themselves."""

from __future__ import annotations

import random

import pandas as pd
import pytest

from gnewton.training.ending import Patience
from gnewton.training.settings import EarlyStop
from gnewton.tuning.pruning import STARTUP, Course, MedianPruner, NoPruner

EVALUATIONS = 6


@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy"])
def test_the_median_rule_is_that_of_optuna(metric):
    """Trials one after the other; at each evaluation both say whether the trial goes on."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    accuracy = metric.endswith("accuracy")
    study = optuna.create_study(
        direction="maximize" if accuracy else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=0),
    )
    draw = random.Random(3)
    courses, pruned = [], 0
    for _ in range(40):
        values = [round(draw.random(), 3) for _ in range(EVALUATIONS)]
        settings = EarlyStop(metric=metric, bounds=MedianPruner().bounds(courses))
        trial, patience = study.ask(), Patience()
        for place, value in enumerate(values, 1):
            patience.record(settings, {metric: value})
            trial.report(value, place)
            assert patience.is_over(settings) == trial.should_prune(), (values, settings.bounds)
            if trial.should_prune():
                break
        whole = not trial.should_prune()
        pruned += not whole
        study.tell(
            trial, values[-1] if whole else None, state=None if whole else optuna.trial.TrialState.PRUNED
        )
        courses.append(Course(tuple(values[:place]), whole))
    assert 10 < pruned < 39


def test_no_trial_is_judged_before_enough_have_come_to_their_end():
    courses = [Course((1.0, 0.5), whole=True)] * (STARTUP - 1) + [Course((9.0,), whole=False)] * 5
    assert MedianPruner().overrides(courses, "validation_loss") == []
    courses.append(Course((2.0, float("nan")), whole=True))
    assert MedianPruner().overrides(courses, "validation_loss") == [
        "trainer.early_stop.metric=validation_loss",
        "trainer.early_stop.bounds=[1.0,0.5]",
    ]
    assert NoPruner().bounds(courses) == []


@pytest.fixture
def search(tmp_path):
    """search() -> the folder of the only search."""

    def found():
        (folder,) = (tmp_path / "outputs" / "tune").iterdir()
        return folder

    return found


ARGUMENTS = [
    "tune",
    "optimizer=sgd",
    "tune.trials=8",
    "tune.repeats=1",
    "trainer.epochs=3",
    "tune.pruner=median",
]


def test_a_search_prunes_its_later_trials(cli, sweeps, search):
    answer = cli([*ARGUMENTS, "launcher.jobs=2"])
    assert (answer.code, answer.err) == (0, "")
    trials = pd.read_csv(search() / "trials.csv").set_index("trial")
    first, later = trials.loc[:4], trials.loc[5:]
    assert first["status"].tolist() == ["done"] * 4
    bound = first["validation_loss"].median()  # the losses of the stand-ins fall in the same proportion
    expected = ["pruned" if loss > bound else "done" for loss in _final(later)]
    assert later["status"].tolist() == expected
    assert "pruned" in expected
    assert not trials.loc[trials["status"] == "pruned", "winner"].any()
    assert (trials.loc[trials["status"] == "pruned", "step"] < 30).all()
    assert "pruned)" in answer.out
    assert "best of sgd so far: validation loss " in answer.out
    assert "pruned after 1 epochs" in answer.out


def _final(trials):
    """What the stand-ins would have come to."""
    import numpy as np

    return ((np.log10(trials["optimizer.lr"]) + 2) ** 2).tolist()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer.early_stop.patience=2", "belongs to tune.pruner=median; leave it out"),
        ("tune.pruner=mean", "must be one of none, median"),
    ],
)
def test_bad_input(cli, sweeps, argument, message):
    answer = cli([*ARGUMENTS, argument])
    assert (answer.code, message in answer.err) == (2, True), answer.err
