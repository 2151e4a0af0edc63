"""Help, version, Hydra's own flags, sweeps."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml

import gnewton
from gnewton.cli.choices import config_groups
from gnewton.cli.commands import COMMANDS
from gnewton.errors import InputError
from tests.conftest import SMALL, loaded_by

QUICK = ["trainer.max_steps=2", "trainer.device=cpu"]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_commands_and_choices(arguments, cli):
    answer = cli(arguments)
    assert (answer.code, answer.err) == (0, "")
    for command in COMMANDS.values():
        assert f"  {command.name}" in answer.out
        assert command.summary in answer.out
    for group, choices in config_groups().items():
        assert f"  {group} " in answer.out
        for choice in choices:
            assert choice.name in answer.out


def test_the_defaults_are_marked(cli):
    out = cli(["--help"]).out
    for default in ("mlp*", "digits*", "per_tensor*", "grouped_newton*", "default*", "trapezoid*", "rising*"):
        assert default in out
    assert "resnet18*" not in out


def test_train_help_describes_every_choice(cli):
    answer = cli(["train", "--help"])
    assert (answer.code, answer.err) == (0, "")
    for group, choices in config_groups().items():
        assert f"\n{group}=\n" in answer.out
        for choice in choices:
            assert choice.description, f"{group}/{choice.name}.yaml starts without a line of description"
            assert choice.description in answer.out


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag, cli):
    assert cli([flag]).out == f"gnewton {gnewton.__version__}\n"


def test_torch_is_not_loaded_to_answer(tmp_path):
    commands = [
        ["--version"],
        ["--help"],
        ["train", "--help"],
        ["train", "optimizer=sdg"],
        ["train", "seed=-1"],
    ]
    unwanted = ["torch", "pandas", "sklearn", "scipy"]
    assert loaded_by([(command, unwanted) for command in commands], tmp_path) == [[]] * len(commands)


def test_cfg_job_prints_a_configuration_that_can_be_read(cli, tmp_path):
    answer = cli(["train", "--cfg", "job", "optimizer=sgd", "optimizer.lr=0.5"])
    assert answer.code == 0
    composed = yaml.safe_load(answer.out)
    assert composed["optimizer"]["lr"] == 0.5
    assert composed["model"]["name"] == "mlp"
    assert set(composed) == {
        "name",
        "seed",
        "output_root",
        "resume",
        "imports",
        "model",
        "data",
        "partition",
        "optimizer",
        "trainer",
        "logger",
    }
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_resolved(cli):
    composed = yaml.safe_load(cli(["train", "--cfg", "job", "--resolve"]).out)
    assert composed["name"] == "mlp-digits-grouped_newton"


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=3", "--cfg", "job", "name=x"],
        ["--cfg", "job", "seed=3", "name=x"],
        ["seed=3", "name=x", "-c", "job"],
    ],
)
def test_flags_stand_anywhere(arguments, cli):
    composed = yaml.safe_load(cli(["train", *arguments]).out)
    assert (composed["seed"], composed["name"]) == (3, "x")


def test_info(cli, tmp_path):
    answer = cli(["train", "--info", "defaults"])
    assert answer.code == 0
    assert "optimizer/grouped_newton" in answer.out
    assert list(tmp_path.iterdir()) == []


def test_hydra_help(cli):
    with pytest.raises(SystemExit) as ended:  # Hydra leaves by itself
        cli(["train", "--hydra-help"])
    assert ended.value.code == 0


def test_multirun_makes_one_folder_for_each_combination(cli, tmp_path):
    answer = cli(["train", "--multirun", "seed=1,2", "trainer.log_every=1,2", *SMALL, *QUICK])
    assert answer.code == 0, answer.err
    folders = sorted((tmp_path / "outputs" / "mlp-digits-grouped_newton").iterdir())
    assert len(folders) == 4
    configurations = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders]
    assert [(c["seed"], c["trainer"]["log_every"]) for c in configurations] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    environments = [json.loads((folder / "environment.json").read_text()) for folder in folders]
    assert environments[0]["command"][:3] == ["gnewton", "train", "--multirun"]
    assert environments[2]["overrides"][:2] == ["seed=2", "trainer.log_every=1"]


def test_multirun_a_failing_job_keeps_the_others(cli, tmp_path):
    answer = cli(["train", "-m", "trainer.batch_size=5000,20,6000", *SMALL[:4], *QUICK])
    assert answer.code == 2
    assert "trainer.batch_size=5000: must be <= 60" in answer.err
    assert "trainer.batch_size=6000: must be <= 60" in answer.err
    assert "Traceback" not in answer.err
    (folder,) = (tmp_path / "outputs" / "mlp-digits-grouped_newton").iterdir()
    assert len(pd.read_csv(folder / "metrics.csv")) == 2


def test_multirun_refuses_an_unknown_choice_before_any_job(cli, tmp_path):
    answer = cli(["train", "-m", "optimizer=sgd,sdg", *QUICK])
    assert answer.code == 2
    assert "optimizer=sdg: must be one of" in answer.err
    assert not list(tmp_path.glob("outputs/*sgd*"))


def test_own_config_folder(cli, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "tiny.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /optimizer: sgd\n  - _self_\nname: tiny\n"
        "trainer:\n  epochs: 1\n  max_steps: 2\nmodel:\n  widths: [4]\n"
    )
    answer = cli(["train", "--config-dir", "mine", "experiment=tiny", "trainer.device=cpu"])
    assert answer.code == 0, answer.err
    (folder,) = (tmp_path / "outputs" / "tiny").iterdir()
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["widths"] == ["4"]
    wrong = cli(["train", "--config-dir", "mine", "experiment=tinny"])
    assert wrong.code == 2
    assert "did you mean 'tiny'?" in wrong.err


def test_data_list_names_every_set(cli):
    answer = cli(["data", "list"])
    assert answer.code == 0
    listed = dict(line.split(maxsplit=1) for line in answer.out.splitlines()[:-2])
    assert set(listed) == {choice.name for choice in config_groups()["data"]}
    assert listed["mnist"].startswith("not on disk ")
    assert listed["digits"].startswith("on disk ")
    assert re.match(r"on disk +in scikit-learn +CC BY 4\.0; diabetes: none stated ", listed["tabular"])
    (owned,) = (name for name, line in listed.items() if line.startswith("your own"))  # the others are known
    assert owned == "npz"


def test_a_closed_pipe_is_no_error(tmp_path):
    shell = f"{sys.executable} -m gnewton train --help | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "Traceback" not in ended.stderr
    assert ended.stdout.splitlines()[-1] in ("0", "141")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_data_folder_in_the_environment_counts_as_unset(cli, monkeypatch):
    monkeypatch.setenv("GNEWTON_DATA", "")
    answer = cli(["train", "data=mnist", "--cfg", "job", "--resolve"])
    assert answer.code == 0
    assert "  root: data\n" in answer.out


@pytest.mark.parametrize("error", [AttributeError("half a node"), InputError("half a value")])
def test_a_library_that_fails_when_it_is_cut_off_has_been_interrupted(error, cli, monkeypatch):
    """OmegaConf does this: its clean-up meets a half-built object."""

    def cut_off(arguments):
        try:
            raise KeyboardInterrupt
        finally:
            raise error

    monkeypatch.setattr("gnewton.cli.main._dispatch", cut_off)
    answer = cli(["train"])
    assert (answer.code, answer.err) == (130, "gnewton: interrupted\n")


@pytest.fixture
def compositions(monkeypatch):
    """The names of the configurations that are composed, in order, by Hydra or this package."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    names: list[str] = []
    load = ConfigLoaderImpl._load_configuration_impl

    def counted(self, config_name, *arguments, **options):
        names.append(config_name)
        return load(self, config_name, *arguments, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    return names


def test_a_configuration_is_composed_once(cli, tmp_path, compositions, monkeypatch):
    """With any flags; Hydra's own command line composes a second time to learn its mode."""
    monkeypatch.setattr("gnewton.experiment.run.run", lambda *arguments: None)
    (tmp_path / "mine").mkdir()
    for flags in (
        [],
        ["--run"],
        ["--config-dir", "mine"],
        ["--config-name", "config"],
        ["hydra.verbose=false"],
        ["--cfg", "job"],
        ["--help"],
    ):
        compositions.clear()
        answer = cli(["train", *SMALL, *flags])
        assert (answer.code, compositions) == (0, ["config"]), (flags, answer.err)


@pytest.mark.parametrize("choice", [["--multirun"], ["-m"], ["hydra.mode=MULTIRUN"]])
def test_each_of_several_runs_is_composed_once(cli, compositions, monkeypatch, choice):
    runs, composed_before = [], []

    def run(prepared, *rest):
        runs.append(prepared.config.seed)
        composed_before.append(len(compositions))
        prepared.config.seed = 7  # the next run is not affected

    monkeypatch.setattr("gnewton.experiment.run.run", run)
    answer = cli(["train", *choice, *SMALL, "seed=1,2,1"])
    assert (answer.code, runs) == (0, [1, 2, 1]), answer.err
    # one configuration for the sweeper and one for each that differs, all of them before the first run
    assert composed_before == [1 + 2] * 3
