"""`gnewton tune`: equal budgets, the right winner, fresh seeds, resumption. The runs are stand-ins."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.sweep.conftest import until

SMALL = ["optimizer=sgd,grouped_newton", "tune.trials=3", "tune.repeats=2", "trainer.max_steps=10"]


def _trials(folder):
    return pd.read_csv(folder / "trials.csv")


@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy"])
def test_the_best_of_equally_many_trials_is_run_again(cli, sweeps, search, metric):
    answer = cli(["tune", *SMALL, f"tune.metric={metric}", "launcher.jobs=2"])
    assert (answer.code, answer.err) == (0, "")
    trials = _trials(search())
    assert trials.groupby("optimizer")["trial"].apply(list).to_dict() == {
        "sgd": [1, 2, 3],
        "grouped_newton": [1, 2, 3],
    }
    assert set(trials["trainer.max_steps"]) == {10}
    assert set(trials["seed"]) == {0}
    assert "test_loss" not in trials
    winners = trials[trials["winner"]].set_index("optimizer")
    for optimizer, option in (("sgd", "optimizer.lr"), ("grouped_newton", "optimizer.step_size")):
        own = trials[(trials["optimizer"] == optimizer) & (trials["status"] == "done")]
        nearest = own.iloc[(own["validation_loss"]).argmin()]
        assert winners.loc[optimizer, option] == nearest[option]
    reruns = pd.read_csv(search() / "winners.csv")
    assert reruns[["optimizer", "seed"]].to_numpy().tolist() == [
        ["sgd", 1],
        ["sgd", 2],
        ["grouped_newton", 1],
        ["grouped_newton", 2],
    ]
    assert reruns["optimizer.lr"][0] == winners.loc["sgd", "optimizer.lr"]
    space = pd.read_csv(search() / "space.csv").set_index("option")
    assert space.loc["optimizer.lr", ["low", "high", "log"]].tolist() == [1e-4, 1.0, True]
    assert f"3 trials each, chosen by {metric.replace('_', ' ')}; 2 reruns with fresh seeds" in answer.out
    assert len(sweeps.starts()) == 10
    from gnewton.report.runs import find_runs

    assert len(find_runs([search() / "winners"])[0]) == 4
    assert len(find_runs([search() / "trials"])[0]) == 6


def test_a_diverged_trial_is_a_bad_trial(cli, sweeps, search, tmp_path):
    _own(tmp_path, "sgd: {optimizer.lr: {values: [0.9, 0.1, 0.01, 0.9]}}")
    answer = cli(["tune", "--config-dir", "mine", "space=own", "optimizer=sgd", "tune.trials=8"])
    assert answer.code == 0
    trials = _trials(search())
    assert set(trials.loc[trials["optimizer.lr"] == 0.9, "status"]) == {"diverged"}
    assert trials.loc[trials["winner"], "optimizer.lr"].tolist() == [0.01]
    assert len(trials) == 8, "two trials at equal settings are two trials"
    assert len(sweeps.starts()) == 3 + 3, "and one run"
    assert " diverged)" in answer.out


def test_every_trial_diverged(cli, sweeps, search, tmp_path):
    _own(tmp_path, "sgd: {optimizer.lr: {low: 0.6, high: 0.9}}")
    answer = cli(["tune", "--config-dir", "mine", "space=own", "optimizer=sgd", "tune.trials=2"])
    assert answer.code == 0
    assert "sgd: every trial diverged" in answer.out
    assert pd.read_csv(search() / "winners.csv")["status"].tolist() == ["diverged"] * 3


def test_a_failed_trial_ends_the_search_which_can_be_resumed(cli, sweeps, behave, search):
    behave({0: "flaky"})
    answer = cli(["tune", "optimizer=sgd", "tune.trials=2", "tune.repeats=1"])
    assert answer.code == 4
    assert "job 2  optimizer.lr=" in answer.err
    assert not (search() / "winners.csv").exists()
    answer = cli(["tune", "--resume", str(search())])
    assert (answer.code, answer.err) == (0, "")
    assert [entry["resumed"] for entry in sweeps.starts()] == [False, False, True, True, False]
    before = (search() / "trials.csv").read_text()
    assert cli(["tune", "--resume", str(search())]).code == 0
    assert len(sweeps.starts()) == 5
    assert (search() / "trials.csv").read_text() == before


def test_a_killed_search_makes_the_same_trials(cli, start, sweeps, behave, search):
    pytest.importorskip("optuna")
    arguments = ["optimizer=sgd", "tune.sampler=optuna", "tune.trials=4", "tune.batch=2", "tune.repeats=1"]
    behave({0: "wait"})
    process = start("tune", *arguments)
    sweeps.wait_for_starts(1)
    process.kill()
    process.communicate()
    sweeps.go()
    until(lambda: list(search().rglob("result.json")))
    assert cli(["tune", "--resume", str(search())]).code == 0
    rates = _trials(search())["optimizer.lr"].tolist()
    assert len(sweeps.starts()) == 5
    assert cli(["tune", *arguments, "output_root=other"]).code == 0
    (other,) = (search().parents[2] / "other" / "tune").iterdir()
    assert _trials(other)["optimizer.lr"].tolist() == rates


def _own(tmp_path, spaces):
    folder = tmp_path / "mine" / "space"
    folder.mkdir(parents=True)
    text = f"defaults:\n  - /schema/space/space@_here_\n  - _self_\nname: own\noptimizers:\n  {spaces}\n"
    (folder / "own.yaml").write_text(text)


def test_dry_run_prints_the_trials(cli, sweeps, tmp_path):
    answer = cli(["tune", *SMALL, "--dry-run"])
    lines = answer.out.splitlines()
    assert (answer.code, len(lines)) == (0, 7)
    assert lines[0].startswith("gnewton train optimizer=sgd trainer.max_steps=10 optimizer.lr=")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer=sgd", "seed=0,1"], "only the optimizer may have several values"),
        (["optimizer=sgd", "optimizer.lr=0.1"], "optimizer.lr=0.1: is tuned for optimizer=sgd"),
        (["optimizer=sgd", "trainer.target.value=0.9"], "has not used its budget"),
        (["optimizer=sgd", "tune.trials=0"], "tune.trials=0: must be a whole number >= 1"),
        (["optimizer=sgd", "tune.trails=3"], "did you mean 'tune.trials'?"),
        (["optimizer=sgd", "tune.metric=test_loss"], "must be one of validation_loss, validation_accuracy"),
        (["optimizer=sgd", "tune.sampler=grid"], "must be one of sobol, random, optuna"),
        (["optimizer=sgd", "space=none"], "space=none: must be one of default"),
        (["optimizer=sgd,foo"], "optimizer=foo: must be one of"),
        (["optimizer=sgd", "trainer.epochs=0"], "trainer.epochs=0: must be a whole number >= 1"),
        (["optimizer=sgd", "tune.batch=2"], "tune.batch=2: has no effect, tune.sampler=sobol"),
        (["--resume", "nowhere"], "no sweep there"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(cli, sweeps, tmp_path, arguments, message):
    answer = cli(["tune", *arguments])
    assert answer.code == 2
    assert message in answer.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ("sgd: {optimizer.rate: {low: 1, high: 2}}", "optimizer.rate=1.0: no such option"),
        ("sgd: {optimizer.lr: {low: -1, high: 2}}", "optimizer.lr=-1.0: must be "),
        (
            "sgd: {optimizer.lr: {low: 1}}",
            "space=own: sgd: optimizer.lr: must have numbers low < high, or values",
        ),
        ("sgd: {seed: {low: 1, high: 3}}", "every trial has the same"),
        ("sgd: {}", "optimizer=sgd: space=own has nothing for it"),
    ],
)
def test_an_impossible_space_is_refused_before_anything_starts(cli, sweeps, tmp_path, spaces, message):
    _own(tmp_path, spaces)
    answer = cli(["tune", "--config-dir", "mine", "space=own", "optimizer=sgd", "tune.trials=2"])
    assert (answer.code, message in answer.err) == (2, True), answer.err
    assert not (tmp_path / "outputs").exists()


def test_a_missing_optuna_is_named_with_its_extra(cli, sweeps, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = cli(["tune", "optimizer=sgd", "tune.sampler=optuna"])
    assert (answer.code, "pip install 'gnewton[optuna]'" in answer.err) == (2, True)


def test_a_sweep_cannot_be_resumed_as_a_search(cli, sweeps):
    cli(["sweep", "seed=0"])
    answer = cli(["tune", "--resume", str(sweeps.folder)])
    assert (answer.code, "continue it with gnewton sweep --resume" in answer.err) == (2, True)


def test_a_search_keeps_its_budget(cli, sweeps, search):
    cli(["tune", "optimizer=sgd", "tune.trials=2", "tune.repeats=1"])
    answer = cli(["tune", "--resume", str(search()), "tune.trials=3"])
    assert (answer.code, "keeps its budget and spaces" in answer.err) == (2, True)


def test_every_space_is_that_of_an_optimizer():
    from gnewton.cli.choices import config_groups
    from gnewton.cli.composer import Composer

    spaces = Composer().options("test", ["space"], [])["space"]
    assert set(spaces.optimizers) <= {choice.name for choice in config_groups()["optimizer"]}
    for optimizer in spaces.optimizers:
        assert spaces.of(optimizer).dimensions
