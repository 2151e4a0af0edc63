"""Every configuration file composes, has the name of its choice, sets only what differs, and is used."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass

import pytest
import yaml
from omegaconf import OmegaConf

from gnewton.cli.choices import config_groups
from gnewton.errors import InputError
from gnewton.experiment.places import config_folder
from gnewton.experiment.prepare import settings_from
from gnewton.experiment.schema import REGISTRIES, Settings
from gnewton.options import declaration, default_of
from gnewton.sweep.launchers import LAUNCHERS
from gnewton.training.settings import TrainerSettings
from gnewton.tuning.search import TuneSettings
from gnewton.tuning.space import SpaceSettings
from tests.experiment import fakes

no_downloads = fakes.no_downloads

ROOT = config_folder()
FILES = sorted(ROOT.rglob("*.yaml"))
CHOICES = [(group, choice.name) for group, choices in config_groups().items() for choice in choices]
TUNED = sorted(path.stem for path in (ROOT / "tuned").glob("*.yaml"))
PARTS = [pair for pair in CHOICES if pair[0] != "experiment"]
EXPERIMENTS = [name for group, name in CHOICES if group == "experiment"]

EXTRA = {
    "npz": ["data.path=x.npz"],
    "names": ["partition.groups=[[a]]"],
    "static": ["optimizer.curvature.source=independent", "optimizer.curvature.batch_size=100"],
}
"""The overrides without which a choice does not compose."""

HOST = {
    "optimizer/averaging": "grouped_newton",
    "optimizer/controller": "grouped_newton",
    "optimizer/direction": "grouped_newton",
    "optimizer/schedule": "sgd",
}


def _id(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(("group", "choice"), PARTS)
def test_every_choice_composes(compose, monkeypatch, group, choice):
    if group == "logger" or choice in ("soap", "shampoo"):  # as if its package were there, which is an extra
        monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: re.__spec__)
    host = [f"optimizer={HOST[group]}"] if group in HOST else []
    config = compose([*host, f"{group}={choice}", *EXTRA.get(choice, [])])
    settings = settings_from(config)
    node = settings
    for part in group.split("/"):
        node = getattr(node, part)
    if group == "logger":  # any number of them
        (node,) = node.values()
    assert node.name == choice


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("optimizer", [None, "grouped_newton", "sgd", "adam"])
def test_every_experiment_composes_with_every_kind_of_optimizer(compose, name, optimizer):
    chosen = [f"optimizer={optimizer}"] if optimizer else []
    settings = settings_from(compose([f"experiment={name}", *chosen]))
    assert settings.name == name
    tuned = ROOT / "tuned" / f"{name}-{optimizer}.yaml"
    if tuned.exists():  # flat options of the optimizer suffice to compare
        for key, value in yaml.safe_load(tuned.read_text()).items():
            if not isinstance(value, (dict, list)):
                assert getattr(settings.optimizer, key) == value


@pytest.mark.parametrize("name", TUNED)
def test_every_tuned_file_belongs_to_an_experiment_and_an_optimizer(compose, name):
    experiment, _, optimizer = name.partition("-")
    assert experiment in EXPERIMENTS
    assert optimizer in [choice.name for choice in config_groups()["optimizer"]]
    settings_from(compose([f"experiment={experiment}", f"optimizer={optimizer}"]))


def test_the_command_line_overrides_trainer_quick(compose):
    experiment = ["experiment=vgg11_cifar10", "trainer=quick"]
    trainer = compose(experiment).trainer
    assert (trainer.batch_size, trainer.max_seconds, trainer.max_steps) == (20, 60, 100)
    assert compose([*experiment, "trainer.batch_size=50"]).trainer.batch_size == 50
    assert compose(["experiment=vgg11_cifar10"]).trainer.batch_size == 100
    files = [path.stem.removeprefix("quick-") for path in (ROOT / "tuned" / "quick").glob("*.yaml")]
    assert set(files) < set(EXPERIMENTS)


def test_the_command_line_overrides_a_tuned_option(compose):
    tuned = compose(["experiment=rosenbrock", "optimizer=sgd"])
    plain = compose(["optimizer=sgd"])
    assert tuned.optimizer.lr != plain.optimizer.lr
    assert compose(["experiment=rosenbrock", "optimizer=sgd", "optimizer.lr=0.5"]).optimizer.lr == 0.5


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_the_first_line_says_what_it_is(path):
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")
    ]
    assert re.match(r"# \S.{3,}", lines[0])


def _schema(path):
    """The recipe that a file starts from; None if it starts from another choice."""
    match = re.search(r"- /schema/(\S+)@_here_", path.read_text(encoding="utf-8"))
    if match is None:
        return None
    single = {"settings": Settings, "trainer": TrainerSettings, "tune/tune": TuneSettings}
    if match[1] in single:
        return single[match[1]]
    group, _, name = match[1].rpartition("/")
    registries = {registry.kind: registry for registry in (*REGISTRIES, LAUNCHERS)}
    return registries[group][name] if group in registries else None


@pytest.mark.parametrize("path", [path for path in FILES if _schema(path)], ids=_id)
def test_a_file_gives_only_the_values_that_differ_from_the_defaults(path):
    defaults = OmegaConf.structured(_schema(path))
    content = OmegaConf.load(path)
    for key in {"defaults", "hydra", "name"} & set(content):
        del content[key]

    def repeated(node, default, where):
        for key, value in node.items():
            if OmegaConf.is_dict(value):
                yield from repeated(value, default[key], f"{where}{key}.")
            elif value == default._get_node(key)._value():
                yield f"{where}{key}"

    assert not list(repeated(content, defaults, ""))


def test_every_option_is_explained_in_one_line():
    kinds = [recipe for registry in (*REGISTRIES, LAUNCHERS) for _, recipe in registry.items()]
    kinds += [Settings, TrainerSettings, TuneSettings, SpaceSettings]
    for kind in kinds:
        for entry in fields(kind):
            text = declaration(entry).help
            assert (entry.name == "name" and kind is not Settings) or text, f"{kind.__name__}.{entry.name}"
            assert "\n" not in text
            if is_dataclass(part := default_of(entry)):
                kinds.append(type(part))


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.relative_to(ROOT).parts[0] not in ("hydra", "tuned")], ids=_id
)
def test_the_name_is_that_of_the_file(path):
    if path.stem != "config":
        assert OmegaConf.load(path).name == path.stem


def test_data_root_follows_the_environment(compose, monkeypatch):
    monkeypatch.setenv("GNEWTON_DATA", "/some/where")
    assert compose(["data=mnist"]).data.root == "/some/where"
    monkeypatch.delenv("GNEWTON_DATA")
    assert compose(["data=mnist"]).data.root == "data"


OFTEN = ["optimizer.curvature.source=independent", "optimizer.period=1"]
RUNS = {
    "resnet18_imagenet": ["data.size=32", "data.resize=36", "data.validation=4", "data.workers=0"],
    "resnet18_cifar10": ["data.validation=10", "partition=weights_biases"],  # 62 groups take a minute
    "rosenbrock": [],
    "transformer_text": ["data.validation=10", "data.block=8", *OFTEN],
    "poisson": ["data.validation=10", *OFTEN],
}
FEW = ["data.validation=10"]
SHRUNK = {
    "bigmlp_cifar10": ["model.widths=[20*64]"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_two_steps(name, run, no_downloads, tmp_path):
    import pandas as pd

    overrides = [f"experiment={name}", "trainer.max_steps=2", *RUNS.get(name, FEW), *SHRUNK.get(name, [])]
    if name == "resnet18_imagenet":
        overrides.append(f"data.root={fakes.folder_tree(tmp_path / 'imagenet')}")
    if name != "rosenbrock":
        overrides += [
            "trainer.batch_size=4",
            "optimizer.curvature.batch_size=4",
            "trainer.evaluation.batch_size=20",
        ]
        overrides += ["trainer.evaluation.max_samples=8"]
    report = run(overrides, tmp_path / "runs")
    assert report.folder.parent == tmp_path / "runs" / name
    assert (report.outcome.status, report.outcome.step) == ("limit", 2)
    row = pd.read_csv(report.folder / "metrics.csv").iloc[-1]
    assert row["step"] == 2
    assert row[["running_loss", "validation_loss", "test_loss"]].notna().all()
    rates = pd.read_csv(report.folder / "rates.csv")
    assert set(rates["update"]) == {1, 2}
    assert (rates.groupby("update").size() == rates["group"].nunique()).all()


def test_a_missing_set_is_no_traceback(run, monkeypatch):
    def nothing(name, root):
        raise InputError(f"data={name}: the set could not be obtained.")

    monkeypatch.setattr("gnewton.data.fetch.load", nothing)
    with pytest.raises(InputError, match="data=mnist: the set could not be obtained"):
        run(["data=mnist"])
