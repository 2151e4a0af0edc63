"""A run whose files have moved is resumed, inspected and repeated at their new places."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from gnewton.report.comparison import compare
from tests.experiment.interruptions import rows

RUN = (
    "data=npz",
    "data.validation=50",
    "data.layout=channels_last",
    "model.widths=[8]",
    "optimizer=sgd",
    "trainer.device=cpu",
    "name=moved",
)


def _save(path, seed=0):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(150, 6)).astype("f4"), random.integers(0, 3, 150)
    np.savez(path, x_train=x, y_train=y, x_test=x[:60], y_test=y[:60])
    return path


@pytest.fixture
def started(cli, tmp_path):
    """The folder of a run of one epoch that was given its data by a relative path."""
    _save(tmp_path / "mine.npz")
    answer = cli(["train", *RUN, "data.path=mine.npz", "trainer.epochs=1"])
    assert answer.code == 0, answer.err
    (folder,) = tmp_path.glob("outputs/moved/*")
    return folder


def _length(folder):
    """The number of rows after step 0."""
    return len(rows(folder / "metrics.csv")) - 2


def test_places_are_kept_absolute(started, tmp_path):
    config = yaml.safe_load((started / "config.yaml").read_text())
    assert config["data"]["path"] == str(tmp_path / "mine.npz")
    assert config["output_root"] == str(tmp_path / "outputs")
    environment = json.loads((started / "environment.json").read_text())
    assert environment["directory"] == str(tmp_path)
    assert len(environment["data_digest"]) == 16


def test_from_another_folder(started, cli, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert cli(["train", f"resume={started}", "trainer.epochs=2"]).code == 0
    assert _length(started) == 2
    assert cli(["rerun", str(started)]).code == 0


@pytest.mark.parametrize("extra", [(), ("data=npz",)], ids=str)
def test_a_new_place_can_be_given(started, cli, tmp_path, extra):
    (tmp_path / "new").mkdir()
    (tmp_path / "mine.npz").rename(tmp_path / "new" / "größe=1.npz")
    answer = cli(["train", f"resume={started}", "trainer.epochs=2"])
    assert answer.code == 2
    assert answer.err == (
        f"gnewton: resume={started}: its data.path={tmp_path}/mine.npz does not exist; give data.path=FILE\n"
    )
    place = "data.path=new/größe=1.npz"
    assert cli(["train", f"resume={started}", *extra, place, "trainer.epochs=2"]).code == 0
    assert _length(started) == 2
    config = yaml.safe_load((started / "config.yaml").read_text())
    assert config["data"]["path"] == str(tmp_path / "new" / "größe=1.npz")
    assert cli(["train", f"resume={started}", "trainer.epochs=3"]).code == 0


def test_inspect_rates_and_rerun_take_it_too(started, cli, tmp_path):
    shutil.move(tmp_path / "mine.npz", tmp_path / "new.npz")
    for command in (["inspect", "--no-plots"], ["rates", "--batches=2", "--warmup=0"], ["rerun"]):
        answer = cli([command[0], str(started), *command[1:]])
        assert answer.code == 2
        assert "does not exist; give data.path=FILE" in answer.err
        answer = cli([command[0], str(started), "data.path=new.npz", *command[1:]])
        assert answer.code == 0, answer.err
    answer = cli(["rerun", str(started), "seed=3"])
    assert (answer.code, "only these can be chosen: data.path" in answer.err) == (2, True)


def test_changed_data_are_reported(started, cli, tmp_path):
    _save(tmp_path / "mine.npz", seed=1)
    answer = cli(["train", f"resume={started}", "trainer.epochs=2"])
    assert (answer.code, "holds other data than when the run was begun" in answer.err) == (2, True)
    answer = cli(["rerun", str(started)])
    assert answer.code == 5
    assert "data_digest: " in answer.out


def test_a_relative_path_is_found_where_the_run_was_started(started, cli, tmp_path, monkeypatch):
    """As in runs of earlier versions, which did not record their folder either."""
    path = started / "config.yaml"
    path.write_text(
        path.read_text()
        .replace(f"path: {tmp_path}/mine.npz", "path: mine.npz")
        .replace(f"output_root: {tmp_path}/outputs", "output_root: outputs")
    )
    environment = json.loads((started / "environment.json").read_text())
    del environment["directory"], environment["data_digest"]
    (started / "environment.json").write_text(json.dumps(environment))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert cli(["train", f"resume={started}", "trainer.epochs=2"]).code == 0
    assert yaml.safe_load(path.read_text())["data"]["path"] == str(tmp_path / "mine.npz")


def test_a_configuration_that_lacks_a_later_option(started, cli, tmp_path):
    path = started / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["trainer"]["divergence"], config["data"]["layout"]
    path.write_text(yaml.safe_dump(config))
    assert cli(["train", f"resume={started}", "trainer.max_steps=1"]).code == 0
    kept = yaml.safe_load(path.read_text())
    assert (kept["trainer"]["divergence"], kept["data"]["layout"]) == (None, "channels_last")


def test_a_folder_of_data_sets_that_is_gone(run, monkeypatch, tmp_path):
    from gnewton.experiment.resume import saved_config

    folder = run([*RUN[3:], "data.subset=60", "trainer.batch_size=20", "trainer.epochs=1"]).folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    environment["recipes"]["data"] = "mnist"
    del config["data"]["test"]
    config["data"] |= {"name": "mnist", "root": "/no/such/folder"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps(environment))
    monkeypatch.delenv("GNEWTON_DATA", raising=False)
    assert saved_config(folder, "").data.root == "/no/such/folder"
    monkeypatch.setenv("GNEWTON_DATA", str(tmp_path))
    assert saved_config(folder, "").data.root == str(tmp_path)


def test_the_same_data_at_two_places_are_one_problem(started, cli, tmp_path):
    shutil.copy(tmp_path / "mine.npz", tmp_path / "copy.npz")
    _save(tmp_path / "else.npz", seed=1)
    for number, name in enumerate(("copy", "else"), start=1):
        cli(["train", *RUN, f"data.path={name}.npz", "trainer.epochs=1", f"seed={number}"])
    setups = compare([tmp_path / "outputs"]).setups
    assert sorted(len(setup.runs) for setup in setups) == [1, 2]
