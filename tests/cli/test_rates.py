"""``gnewton rates``: the optimizer trains with exactly the rates that it writes; refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from gnewton.experiment.build import open_point
from tests.conftest import SMALL, SMALL_BASELINE

TINY = ["model.widths=[8,6]", "data.subset=60", "trainer.batch_size=20", "trainer.device=cpu"]
FEW = ["--batches=4", "--batch-size=30", "--warmup=3"]


@pytest.fixture
def suggested(cli, tmp_path):
    """suggested(*arguments) -> the folder that `gnewton rates` wrote, and its output."""

    def ask(*arguments):
        answer = cli(["rates", *arguments, *FEW, "-o", str(tmp_path / "found")])
        assert (answer.code, answer.err) == (0, "")
        return tmp_path / "found", answer.out

    return ask


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_optimizer_trains_with_exactly_these_rates(suggested, run, tmp_path, optimizer):
    folder, _ = suggested(*TINY, f"optimizer={optimizer}", "partition=by_layer")
    rates = yaml.safe_load((folder / "rates.yaml").read_text())
    table = pd.read_csv(folder / "suggestion.csv").set_index("group")
    assert table.index.tolist() == ["hidden1", "hidden2", "output", "(all)"]
    assert set(rates) == {f"{layer}.{kind}" for layer in table.index[:3] for kind in ("weight", "bias")}
    for name, rate in rates.items():
        assert rate == table["rate"][name.rpartition(".")[0]] > 0
    overrides = [*TINY, f"optimizer={optimizer}", f"optimizer.rates={folder / 'rates.yaml'}"]
    report = run([*overrides, "trainer.max_steps=2"], tmp_path / "runs")
    saved = yaml.safe_load((report.folder / "config.yaml").read_text())
    assert saved["optimizer"]["rates"] == rates  # the run does not depend on the file any more
    groups = torch.load(report.folder / "checkpoint" / "last.pt", weights_only=True)["optimizer"][
        "param_groups"
    ]
    in_model_order = dict.fromkeys(rates.values())
    assert [group["lr"] for group in groups] == list(in_model_order)
    assert sum(len(group["params"]) for group in groups) == 6


def test_a_step_of_sgd_uses_them(suggested, run, compose, tmp_path):
    """One step without momentum moves every parameter by its rate times its gradient."""
    plain = [*TINY, "optimizer=sgd", "optimizer.momentum=0", "trainer.dtype=float64"]
    folder, _ = suggested(*plain)
    rates = yaml.safe_load((folder / "rates.yaml").read_text())
    start = open_point(compose(plain), None, trains=True)
    inputs, targets = next(start.data.train.epoch(0, 20))
    start.problem.loss_fn(start.model(inputs), targets).backward()
    overrides = [*plain, f"optimizer.rates={folder / 'rates.yaml'}", "trainer.max_steps=1"]
    report = run(overrides, tmp_path / "runs")
    moved = torch.load(report.folder / "checkpoint" / "last.pt", weights_only=True)["model"]
    for name, p in start.model.named_parameters():
        torch.testing.assert_close(
            moved[name], p.detach() - rates[name] * p.grad, rtol=1e-12, atol=1e-15, msg=name
        )


def test_sgd_is_the_default(suggested):
    folder, out = suggested(*TINY)
    assert "optimizer=sgd" in (folder / "rates.yaml").read_text()
    assert "one rate for all" in out
    with np.load(folder / "summaries.npz") as arrays:
        assert arrays["hessian"].shape == (4, 6, 6)


def test_rates_start_from_the_optimizer_state_of_a_run(cli, run, tmp_path):
    """Adam's averages from the checkpoint give a different step from empty ones."""
    overrides = [*SMALL_BASELINE, "optimizer=adam", "trainer.epochs=3"]
    report = run(overrides, tmp_path / "runs")
    arguments = ["--batches=2", "--batch-size=20", "--warmup=0"]
    assert cli(["rates", str(report.folder), *arguments, "-o", "restored"]).code == 0
    assert cli(["rates", str(report.folder), "optimizer=adam", *arguments, "-o", "empty"]).code == 0
    norms = []
    for name in ("restored", "empty"):
        with np.load(f"{name}/summaries.npz") as arrays:
            norms.append(arrays["norms"][0])
    weights = 64 * 8  # an empty Adam makes a step of size one in every coordinate with a gradient
    assert 0.5 * weights < norms[1][0] ** 2 <= 1.01 * weights
    assert norms[0][0] < 0.9 * norms[1][0]


def test_a_run_of_grouped_newton_needs_another_optimizer(cli, run, tmp_path):
    report = run([*SMALL, "trainer.max_steps=2"], tmp_path / "runs")
    answer = cli(["rates", str(report.folder)])
    assert answer.code == 2
    assert "optimizer=grouped_newton takes no learning rates of groups; choose optimizer=sgd" in answer.err
    answer = cli(["rates", str(report.folder), "optimizer=sgd", "--batches=2", "--batch-size=20"])
    assert answer.code == 0
    assert (report.folder / "rates_sgd_step2" / "rates.yaml").is_file()


def test_check_runs_measure_the_suggested_rates(suggested, tmp_path):
    folder, out = suggested(*TINY, "--check", "--check-steps=7", "--check-seeds=2")
    table = pd.read_csv(folder / "check.csv")
    assert table["learning_rate"].unique().tolist() == ["configured", "one for all", "one for each group"]
    assert table.columns.tolist() == ["learning_rate", "metric", "seed0", "seed1"]
    losses = table[table["metric"] == "train_loss"]
    assert losses[["seed0", "seed1"]].to_numpy().min() > 0
    assert losses["seed0"].nunique() == 3  # three different runs
    assert "after 7 steps from the initial weights, median over 2 seeds" in out
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer=lbfgs"], "rates: optimizer=lbfgs takes no learning rates of groups"),
        (["optimizer=sgd", "optimizer.lr=0.1"], "optimizer.lr=0.1: has no effect on gnewton rates"),
        (["trainer.epochs=2"], "trainer.epochs=2: has no effect on gnewton rates"),
        (["--step-size=0"], "argument --step-size: 0: must be a finite number > 0"),
        (["--damping=0.3"], "argument --damping: has been renamed; write --step-size=0.3"),
        (["--warmup=-1"], "argument --warmup: -1: must be a whole number >= 0"),
        (["--batch-size=5000"], "--batch-size=5000: must be <= 1200"),
        (["nowhere"], "nowhere: there is no such file or folder"),
    ],
)
def test_bad_arguments_are_refused(cli, arguments, message):
    answer = cli(["rates", *arguments])
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ("nowhere.yaml", "optimizer.rates=nowhere.yaml: the file cannot be read (No such file or directory)"),
        ("{hiden1.weight: 0.1}", "optimizer.rates: 'hiden1.weight' names no parameter"),
        (
            "{hidden1.weight: -0.1}",
            "optimizer.rates={hidden1.weight:-0.1}: 'hidden1.weight: -0.1': each rate",
        ),
        ("[0.1]", "optimizer.rates=[0.1]: must be a mapping {NAME: RATE, …} or a YAML file of one"),
    ],
)
def test_bad_rates_are_refused(cli, rates, message):
    answer = cli(["train", "optimizer=sgd", f"optimizer.rates={rates}"])
    assert answer.code == 2
    assert message in answer.err


def test_a_resumed_run_keeps_its_rates(run, tmp_path):
    """Byte for byte like one that was never interrupted, but for the clocks."""
    from gnewton.cli.composer import Composer
    from gnewton.experiment.overrides import parse_overrides
    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    overrides = [*TINY, "optimizer=adam", "optimizer.rates={weight: 0.01, hidden1.bias: 0.1}"]
    whole = run([*overrides, "trainer.epochs=2"], tmp_path / "whole").folder
    folder = run([*overrides, "trainer.epochs=1"], tmp_path / "parts").folder
    again = [f"resume={folder}", "trainer.epochs=2"]
    run_experiment(prepare(Composer().compose(parse_overrides(again)), again))
    columns = ["epoch", "step", "running_loss", "train_loss", "test_loss", "lr"]
    tables = [(pd.read_csv(place / "metrics.csv", dtype=str)[columns]) for place in (whole, folder)]
    assert tables[0].equals(tables[1])
    state = torch.load(folder / "checkpoint" / "last.pt", weights_only=True)
    # in the order of the model: the rest, then hidden1.weight's rate, then hidden1.bias's
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == [0.001, 0.01, 0.1]
