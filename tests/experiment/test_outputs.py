"""The files of a run: exactly the documented columns, and the same rows from the same seed."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from omegaconf import OmegaConf

import gnewton
from gnewton.cubic import CubicStatus
from gnewton.experiment.folder import config_hash
from gnewton.optim.rate_rule import AT_REST
from gnewton.optim.solvers import STATIONARY
from gnewton.runfiles import METRICS_COLUMNS, RATES_COLUMNS, STEPS_COLUMNS
from gnewton.training.checkpoint import load_checkpoint
from tests.conftest import SMALL, SMALL_BASELINE

DOCUMENT = Path(__file__).parents[2] / "docs" / "csv.md"
CLOCKED = {"s", "samples/s", "MiB"}
"""Units of the columns that no seed decides."""


def _section(title: str) -> str:
    return DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _documented(title: str) -> dict[str, tuple[str, str]]:
    """Column → (type, unit) as the document has it."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \|", _section(title), re.M)
    return {name: (kind, unit.strip()) for name, kind, unit in rows}


METRICS, STEPS, RATES = (_documented(f"{name}.csv") for name in ("metrics", "steps", "rates"))

OPTIMIZERS = {
    "grouped_newton": SMALL,
    "grouped_newton_paper": SMALL,
    "grouped_newton_noiseless": [each for each in SMALL if "curvature" not in each],
    "grouped_newton_full_batch": [*SMALL_BASELINE[:2]],
    "sgd": SMALL_BASELINE,
    "adam": SMALL_BASELINE,
    "adamw": SMALL_BASELINE,
    "lbfgs": SMALL_BASELINE[:2],
}


def _decided_by_the_seed(path: Path, columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
    return pd.read_csv(path)[[name for name, (_, unit) in columns.items() if unit not in CLOCKED]]


@pytest.fixture(scope="module")
def folder(compose, tmp_path_factory):
    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    root = tmp_path_factory.mktemp("run")
    overrides = [
        f"output_root={root}",
        "trainer.device=cpu",
        *SMALL,
        "trainer.epochs=5",
        "trainer.log_every=4",
        "optimizer.period=2",
    ]
    return run_experiment(prepare(compose(overrides), overrides), ["gnewton", "train", "…"]).folder


def test_the_documented_columns_are_those_written(folder):
    assert tuple(METRICS) == METRICS_COLUMNS == tuple(pd.read_csv(folder / "metrics.csv").columns)
    assert tuple(STEPS) == STEPS_COLUMNS == tuple(pd.read_csv(folder / "steps.csv").columns)
    assert tuple(RATES) == RATES_COLUMNS == tuple(pd.read_csv(folder / "rates.csv").columns)


@pytest.mark.parametrize("title", ["metrics.csv", "steps.csv", "rates.csv"])
def test_types(folder, title):
    table = pd.read_csv(folder / title)
    tests = {
        "int": pd.api.types.is_integer_dtype,
        "float": pd.api.types.is_numeric_dtype,
        "bool": pd.api.types.is_bool_dtype,
        "text": pd.api.types.is_string_dtype,
    }
    for name, (kind, _) in _documented(title).items():
        assert tests[kind](table[name]), f"{name} is {table[name].dtype}, not {kind}"
        later = title == "metrics.csv" and name in ("running_loss", "running_accuracy", "samples_per_second")
        assert table[name][int(later) :].notna().all(), name


def test_the_loss_by_step_is_the_mean_of_the_running_loss(folder, run):
    """Rows at the multiples of the period; with one period an epoch they are the running losses."""
    steps, metrics = pd.read_csv(folder / "steps.csv"), pd.read_csv(folder / "metrics.csv")
    total = int(metrics["step"].iloc[-1])
    assert steps["step"].tolist() == list(range(4, total + 1, 4))
    assert steps["train_seconds"].is_monotonic_increasing
    per_epoch = total // 5
    # a checkpoint in the middle of a period reads the losses as well, and makes no row
    overrides = [*SMALL, "trainer.epochs=2", f"trainer.log_every={per_epoch}"]
    other = run([*overrides, "trainer.checkpoint_every=2 steps"]).folder
    steps, metrics = pd.read_csv(other / "steps.csv"), pd.read_csv(other / "metrics.csv")[1:]
    assert steps["step"].tolist() == metrics["step"].tolist()
    assert steps["loss"].tolist() == pytest.approx(metrics["running_loss"].tolist(), rel=1e-12)
    assert steps["lr"].tolist() == metrics["lr"].tolist()


def test_two_directions_have_a_rate_for_all_groups_or_two_in_every_group(run):
    folder = run([*SMALL, "optimizer/direction=pair", "trainer.epochs=1"]).folder
    rates = pd.read_csv(folder / "rates.csv")
    assert list(rates["group"][:3]) == ["all:gradient", "hidden1.weight:adam", "hidden1.bias:adam"]
    assert (rates.groupby("update").size() == 5).all()
    apart = run(
        [*SMALL, "optimizer/direction=pair", "optimizer.direction.shared=false", "trainer.epochs=1"]
    ).folder
    rates = pd.read_csv(apart / "rates.csv")
    assert list(rates["group"][:3]) == [
        *("hidden1.weight:gradient", "hidden1.weight:adam"),
        "hidden1.bias:gradient",
    ]
    assert (rates.groupby("update").size() == 8).all()


def test_metrics_make_sense(folder):
    table = pd.read_csv(folder / "metrics.csv")
    start, table = table.iloc[0], table[1:]
    assert (start["epoch"], start["step"], start["train_seconds"]) == (0, 0, 0)
    assert start["evaluation_seconds"] > 0
    assert start[["running_loss", "running_accuracy", "samples_per_second"]].isna().all()
    assert list(table["epoch"]) == [1, 2, 3, 4, 5]
    assert list(table["step"]) == [3, 6, 9, 12, 15]
    for name in ("train_seconds", "evaluation_seconds", "logging_seconds", "checkpoint_seconds"):
        assert table[name].is_monotonic_increasing
        assert (table[name] > 0).all()
    accuracies = table[[name for name in table if name.endswith("accuracy")]]
    assert ((accuracies >= 0) & (accuracies <= 1)).all(axis=None)
    samples = table["samples_per_second"] * table["train_seconds"].diff().fillna(table["train_seconds"])
    assert list(samples) == pytest.approx([60] * 5, rel=1e-2)
    assert (table["peak_memory_mib"] > 10).all()


def test_rates_are_updates_times_groups(folder):
    table = pd.read_csv(folder / "rates.csv")
    names = ["hidden1.weight", "hidden1.bias", "output.weight", "output.bias"]
    assert list(table["group"]) == names * len(table["update"].unique())
    assert list(table.groupby("update")["step"].first()) == [
        0,
        2,
        4,
        6,
        8,
        10,
        12,
        14,
    ]
    assert (table.groupby("update").size() == len(names)).all()
    assert not table["warmup"].any()
    assert table["rate"].abs().sum() > 0


def test_result(folder):
    result = json.loads((folder / "result.json").read_text())
    documented = set(re.findall(r"^\| `(\w+)` \|", _section("result.json"), re.M))
    assert set(result) == documented - {"message"}
    assert (result["status"], result["epoch"], result["step"], result["target"]) == ("done", 5, 15, None)
    last = pd.read_csv(folder / "metrics.csv").iloc[-1]
    assert result["metrics"] == pytest.approx(last.to_dict(), rel=1e-15)


def test_configuration_is_complete_and_can_be_read(folder):
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["name"] == "mlp-digits-grouped_newton"
    assert saved["trainer"]["epochs"] == 5
    assert saved["model"]["widths"] == ["8"]
    assert "${" not in (folder / "config.yaml").read_text()
    assert folder.name.endswith("_" + config_hash(OmegaConf.create(saved)))


def test_environment(folder):
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["command"] == ["gnewton", "train", "…"]
    assert "trainer.epochs=5" in environment["overrides"]
    assert environment["gnewton"] == gnewton.__version__
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert environment["device"] == "cpu"
    assert set(environment) == {
        *(
            "time",
            "command",
            "directory",
            "overrides",
            "gnewton",
            "git",
            "python",
            "packages",
            "platform",
            "processor",
        ),
        *("cores", "threads", "device", "device_name", "cuda", "recipes", "processes"),
    }
    git = environment["git"]
    assert git is None or (re.fullmatch("[0-9a-f]{40}", git["commit"]) and isinstance(git["dirty"], bool))


def test_log(folder):
    lines = (folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert "run folder" in lines[0]
    assert any("device cpu, 610 parameters" in line for line in lines)
    assert any("60 training, 300 validation, 297 test samples" in line for line in lines)
    assert sum(" INFO epoch " in line for line in lines) == 6
    assert "done: results in" in lines[-1]


def test_the_log_file_is_closed(folder):
    assert not [h for h in logging.getLogger("gnewton").handlers if isinstance(h, logging.FileHandler)]


def test_checkpoints_hold_what_is_documented(folder):
    keys = set(re.findall(r"`(\w+)`", _section("Checkpoints").partition("Keys:")[2]))
    assert sorted(entry.name for entry in (folder / "checkpoint").iterdir()) == [
        "best.pt",
        "last.pt",
        "previous.pt",
    ]
    state = load_checkpoint(folder / "checkpoint" / "last.pt")
    assert set(state) == keys
    assert (state["epoch"], state["step"]) == (5, 15)
    assert set(state["identity"]) == {"format", "version", "config", "device", "processes"}
    assert state["identity"]["version"] == gnewton.__version__


def test_only_what_is_documented_is_there(folder):
    there = {entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file()}
    table = DOCUMENT.read_text(encoding="utf-8").partition("\n## ")[0]
    assert there == set(re.findall(r"^\| `([\w./]+)` \|", table, re.M))


def test_every_way_a_solve_ends_is_documented():
    (row,) = re.findall(r"^\| `status` \| text .*", _section("rates.csv"), re.M)
    solver = (DOCUMENT.parent / "cubic.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| ", solver, re.M)) >= set(map(str, CubicStatus))
    known = {*map(str, CubicStatus), STATIONARY, AT_REST}
    assert set(re.findall(r"`(\w+)`", row)) - {"status"} <= known
    assert {STATIONARY, AT_REST} <= set(re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_same_seed_same_rows(optimizer, run):
    overrides = [
        f"optimizer={optimizer}",
        *OPTIMIZERS[optimizer],
        "trainer.epochs=2",
        "data.augment.flip=true",
    ]
    first, second, other = (run([*overrides, f"seed={seed}"]).folder for seed in (7, 7, 8))
    for title, columns in (("metrics.csv", METRICS), ("rates.csv", RATES)):
        with_rates = optimizer.startswith("grouped_newton")
        assert (first / title).exists() == (title == "metrics.csv" or with_rates)
        if (first / title).exists():
            tables = [_decided_by_the_seed(folder / title, columns) for folder in (first, second, other)]
            pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
            assert not tables[0].equals(tables[2])
    states = [
        load_checkpoint(folder / "checkpoint" / "last.pt")["model"] for folder in (first, second, other)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_run_does_not_depend_on_those_before_it(run):
    overrides = [*SMALL, "trainer.epochs=1"]
    first = run(overrides).folder
    torch.rand(17)
    run(["optimizer=adam", *SMALL_BASELINE, "seed=3", "trainer.epochs=1"])
    second = run(overrides).folder
    tables = [_decided_by_the_seed(folder / "metrics.csv", METRICS) for folder in (first, second)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_without_data(run):
    folder = run(["experiment=rosenbrock", "trainer.epochs=3"]).folder
    table = pd.read_csv(folder / "metrics.csv")
    assert list(table["step"]) == [0, 10, 20, 30]
    assert (table["train_loss"] == table["test_loss"]).all()
    assert table["validation_accuracy"].isna().all()
    assert len(pd.read_csv(folder / "rates.csv")) == 30 * 2


def test_full_batch_measures_on_the_whole_training_set_at_every_step(run):
    folder = run(["optimizer=grouped_newton_full_batch", *SMALL_BASELINE[:2], "trainer.epochs=3"]).folder
    metrics, rates = pd.read_csv(folder / "metrics.csv")[1:], pd.read_csv(folder / "rates.csv")
    assert list(metrics["step"]) == [1, 2, 3]
    assert list(metrics["train_loss"].diff()[1:] < 0) == [True, True]
    measured = list(rates.groupby("step")["loss"].first())
    assert measured == pytest.approx(list(metrics["running_loss"]), rel=1e-5)
    assert measured[1:] == pytest.approx(list(metrics["train_loss"])[:-1], rel=1e-5)


def test_schedules_act_on_the_step_size(run):
    folder = run(
        [
            *SMALL,
            "trainer.epochs=3",
            "optimizer.period=1",
            "optimizer/schedule=step",
            "optimizer.schedule.every=1",
        ]
    ).folder
    assert list(pd.read_csv(folder / "metrics.csv")["lr"]) == pytest.approx([1.0, 1.0, 0.1, 0.01], rel=1e-12)
    rates = pd.read_csv(folder / "rates.csv").groupby("step")["step_size"].first()
    assert list(rates) == pytest.approx([value for value in (1.0, 0.1, 0.01) for _ in range(3)], rel=1e-12)


def test_a_schedule_by_steps_acts_on_the_step_size(run):
    folder = run([*SMALL, "trainer.epochs=3", "optimizer.period=1", "optimizer/schedule=linear"]).folder
    rates = pd.read_csv(folder / "rates.csv").groupby("step")["step_size"].first()
    assert list(rates) == pytest.approx([1 - k / 9 for k in range(9)], rel=1e-12)
