"""Pruning: the median rule against Optuna's, and a search in which trials end themselves."""

from __future__ import annotations

import random

import pandas as pd
import pytest

from gnewton.errors import InputError
from gnewton.runfiles import DONE
from gnewton.sweep.manifest import Entry, Job, JobEnd, Manifest
from gnewton.training.ending import Patience
from gnewton.training.settings import EarlyStop
from gnewton.tuning.trials import STARTUP, Course, MedianPruner, NoPruner, Trial, read_results
from tests.report.builders import falling, write_run

EVALUATIONS = 6


@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy"])
def test_the_median_rule_is_that_of_optuna(metric):
    """Trials in sequence; at each evaluation both rules say whether the trial continues."""
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


def test_no_trial_is_pruned_before_enough_have_finished():
    courses = [Course((1.0, 0.5), whole=True)] * (STARTUP - 1) + [Course((9.0,), whole=False)] * 5
    assert MedianPruner().overrides(courses, "validation_loss") == []
    courses.append(Course((2.0, float("nan")), whole=True))
    assert MedianPruner().overrides(courses, "validation_loss") == [
        "trainer.early_stop.metric=validation_loss",
        "trainer.early_stop.bounds=[1.0,0.5]",
    ]
    assert NoPruner().bounds(courses) == []


def test_a_trial_that_ties_with_the_median_goes_on():
    tied = Course((2.302583092994046,), whole=True)
    settings = EarlyStop(bounds=MedianPruner().bounds([tied] * STARTUP))
    patience = Patience()
    patience.record(settings, {settings.metric: tied.values[0]})
    assert not patience.is_over(settings)


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
    assert "pruned at epoch 1" in answer.out


def _final(trials):
    """The last value that a stand-in would have reached."""
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


def test_early_stopping_in_a_user_file_is_refused(cli, sweeps, tmp_path):
    (tmp_path / "mine" / "trainer").mkdir(parents=True)
    text = "defaults: [default, _self_]\nname: patient\nearly_stop: {patience: 2}\n"
    (tmp_path / "mine" / "trainer" / "patient.yaml").write_text(text)
    answer = cli([*ARGUMENTS[:-2], "--config-dir", "mine", "trainer=patient", "tune.pruner=median"])
    assert answer.code == 2
    assert "trainer.early_stop.patience=2: must be null with tune.pruner=median" in answer.err


def test_a_metric_that_no_run_measures_chooses_no_winner(tmp_path):
    run = write_run(tmp_path, "runs/a", rows=falling([1.0, 0.5]))
    job = Job("digest", ())
    manifest = Manifest(tmp_path, [Entry(1, job, JobEnd("digest", DONE, folder=run))])
    trials = [Trial("sgd", 1, {}, job, 0)]
    assert read_results(trials, manifest, "validation_loss", 1)[0].score == 0.5
    message = r"^tune.metric=validation_accuracy: .*a has not measured it; measured: validation_loss$"
    with pytest.raises(InputError, match=message):
        read_results(trials, manifest, "validation_accuracy", -1)
