"""What every test shares: one thread per process, fixed seeds, and ways to compose and run configurations."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in every subprocess
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes, each of which would import torch

import gc
import json
import logging
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.quick_hydra import speed_up

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell starts background jobs so, and every subprocess of the tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from gnewton.experiment.run import Draw, Report

SMALL = (
    "model.widths=[8]",
    *("optimizer.curvature.source=independent", "optimizer.curvature.batch_size=20"),
    *("data.subset=60", "trainer.batch_size=20"),
)
"""Overrides that make the default run tiny: 3 steps an epoch, 4 groups."""

SMALL_BASELINE = tuple(override for override in SMALL if "curvature" not in override)
"""The same for optimizers without curvature batches."""


def loaded_by(commands: Sequence[tuple[list[str], list[str]]], folder: Path) -> list[list[str]]:
    """For each command, those of the modules named with it that are loaded after it, in one new process."""
    program = f"""
import json, sys
from gnewton.cli.main import main
for command, modules in {commands!r}:
    try:
        main(command)
    except SystemExit:
        pass
    print("loaded", json.dumps(sorted(set(modules) & set(sys.modules))), file=sys.stderr)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=120
    )
    lines = [line.partition(" ") for line in ended.stderr.splitlines()]
    return [json.loads(rest) for word, _, rest in lines if word == "loaded"]


def pytest_collection_finish() -> None:
    """What has been imported stays: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _forks_may_differentiate() -> None:
    """A backward pass before all others.

    The first decides whether torch starts a thread per accelerator, after which no forked process may make
    any. Fake tensors, on which models are traced, count as an accelerator.
    """
    import torch

    torch.ones((), requires_grad=True).backward()


@pytest.fixture(autouse=True, scope="session")
def _configurations_cost_less() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        speed_up(patch)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_compiled_code(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder of this process alone: one that is killed, as some are here, leaves parts of files behind."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """The same random streams for every test, and one thread once torch is there."""
    random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_own_parts_left() -> Iterator[None]:
    """Choices that a test has imported are unknown to the next one, such as those of scripts/paper."""
    yield
    if "gnewton.experiment.own_parts" in sys.modules:
        from gnewton.experiment.own_parts import forget_all

        forget_all()


@pytest.fixture(scope="session")
def compose() -> Callable[..., DictConfig]:
    """compose(overrides) -> the configuration that `gnewton train OVERRIDES` would run."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from gnewton.experiment.places import config_folder
    from gnewton.experiment.schema import register_schemas

    register_schemas()

    def composed(overrides: Sequence[str] = ()) -> DictConfig:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return hydra_compose("config", overrides=list(overrides))

    return composed


@pytest.fixture
def run(compose: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., Report]:
    """run(overrides, root=tmp_path, draw=None) -> the report of a run in this process, on the CPU."""
    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    def started(overrides: Sequence[str] = (), root: Path = tmp_path, draw: Draw | None = None) -> Report:
        overrides = [f"output_root={root}", "trainer.device=cpu", *overrides]
        return run_experiment(prepare(compose(overrides), overrides), draw=draw)

    return started


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and files written, but nothing is drawn, which takes most of the time of a plot."""
    monkeypatch.setattr("gnewton.report.plots.style.render", lambda canvas, suffix: b"an image")


@dataclass(frozen=True)
class Answer:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Answer]]:
    """cli(arguments) -> the answer of `gnewton ARGUMENTS` run in this process, in an empty folder."""
    from gnewton.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GNEWTON_DATA", str(tmp_path / "no-data"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def ask(arguments: Sequence[str]) -> Answer:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    root = logging.getLogger()
    before = set(root.handlers)
    yield ask
    for handler in set(root.handlers) - before:  # Hydra's: its stream is closed with this test
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
