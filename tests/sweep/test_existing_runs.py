"""A run in the folder of a job is compared with the job before anything is started."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from gnewton.cli.composer import Composer
from gnewton.errors import InputError
from gnewton.experiment.overrides import parse_overrides
from gnewton.experiment.places import with_absolute_places
from gnewton.experiment.resume import require_same_run
from scripts.study.plan import Trial
from scripts.study.stages import run_stage

BASE = ("model=mlp", "data=mnist", "optimizer=grouped_newton")


def composed(*overrides):
    return Composer().compose(parse_overrides([*BASE, *overrides]))


def write_run(folder, *overrides):
    """The configuration of a run as the run writes it."""
    folder.mkdir()
    config = OmegaConf.to_yaml(with_absolute_places(composed(*overrides)), resolve=True)
    (folder / "config.yaml").write_text(config)
    return folder


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (["trainer.epochs=3"], [], "trainer.epochs=10: {} holds a run with trainer.epochs=3"),
        (
            ["model.widths=[8]"],
            ["model.widths=[9]"],
            "model.widths=[9]: {} holds a run with model.widths=[8]",
        ),
        (["optimizer=adam"], ["optimizer=sgd"], "optimizer=sgd: {} holds a run with optimizer=adam"),
        (
            ["optimizer/schedule=cosine"],
            ["optimizer/schedule=constant"],
            "optimizer/schedule=constant: {} holds a run with optimizer/schedule=cosine",
        ),
        (
            ["optimizer.cap=null"],
            ["optimizer.cap=0.2"],
            "optimizer.cap=0.2: {} holds a run with optimizer.cap=null",
        ),
        (["seed=1"], ["seed=2"], "seed=2: {} holds a run with seed=1"),
        (["data=fashion_mnist"], [], "data=mnist: {} holds a run with data=fashion_mnist"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_another_configuration_is_refused(tmp_path, theirs, ours, message):
    run = write_run(tmp_path / "run", *theirs)
    with pytest.raises(InputError) as refused:
        require_same_run(run, composed(*ours))
    assert str(refused.value).startswith(message.format(run))
    assert len(str(refused.value).splitlines()) == 1


def test_places_outputs_and_labels_do_not_count(tmp_path):
    theirs = ("output_root=here", "data.root=data", "name=old", "logger=tensorboard")
    run = write_run(tmp_path / "run", *theirs, "trainer.epochs=3")
    require_same_run(run, composed("output_root=there", "data.root=/elsewhere", "trainer.epochs=3"))


def test_rates_read_from_a_file_are_compared_by_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates.yaml").write_text("layer: 0.1\n")
    overrides = ("optimizer=sgd", "optimizer.rates=rates.yaml")
    run = write_run(tmp_path / "run", *overrides)
    require_same_run(run, composed(*overrides))
    (tmp_path / "rates.yaml").write_text("layer: 0.2\n")
    with pytest.raises(
        InputError, match=r"optimizer\.rates\.layer=0\.2: .* with optimizer\.rates\.layer=0\.1"
    ):
        require_same_run(run, composed(*overrides))


def test_a_file_that_is_no_configuration_is_refused(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"config\.yaml cannot be used"):
        require_same_run(run, composed())


def test_a_sweep_starts_nothing_where_a_job_holds_another_run(cli, sweeps, behave):
    behave({0: "raise", 1: "raise"})
    cli(["sweep", "seed=0,1"])
    first, second = (sweeps.folder / "jobs" / number for number in ("001", "002"))
    first.rename(sweeps.folder / "aside")
    second.rename(first)
    (sweeps.folder / "aside").rename(second)
    behave()
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert answer.code == 2
    (line,) = answer.err.splitlines()
    assert line.startswith("gnewton: seed=0: ")
    assert "jobs/001/" in line
    assert "holds a run with seed=1" in line
    assert len(sweeps.starts()) == 2
    assert sweeps.statuses() == ["failed", "failed"]


def test_a_stage_of_a_study_does_not_take_over_runs_of_other_settings(tmp_path):
    """The manifest is lost, and the settings that all trials share have changed since."""
    (tmp_path / "jobs" / "001" / "digits").mkdir(parents=True)
    write_run(tmp_path / "jobs" / "001" / "digits" / "run", "trainer.epochs=3")
    trial = Trial("digits", "ours", "", 0, (*BASE, "trainer.epochs=2"))
    with pytest.raises(InputError, match=r"^trainer\.epochs=2: .*jobs/001/.* with trainer\.epochs=3"):
        run_stage(tmp_path, [trial], [])
    assert [path.name for path in (tmp_path / "jobs" / "001").iterdir()] == ["digits"]
