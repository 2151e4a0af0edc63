"""Processes that share a batch make the step that one process makes on the whole batch."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from gnewton.errors import InputError
from gnewton.runfiles import LAST
from gnewton.tasks import Classification
from gnewton.training.checkpoint import load_checkpoint
from gnewton.training.training_step import add_gradient
from gnewton.training.world import World
from tests.conftest import SMALL_BASELINE
from tests.processes import in_processes, process_group


def problem() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return model, (torch.randn(11, 5, dtype=torch.float64), torch.randint(0, 3, (11,)))


def work(rank: int, size: int, folder: str) -> None:
    with process_group(rank, size, folder):
        world = World(rank, size)
        model, batch = problem()
        mine = world.share(batch)
        loss, correct = add_gradient(model, Classification((5,), 3), mine, None)
        loss, correct = world.combine(model, loss, correct, len(mine[0]))
        agreed = world.agree(10 + rank, torch.device("cpu"))
        grads = [p.grad for p in model.parameters()]
        torch.save((grads, loss, correct, agreed), f"{folder}/{rank}.pt")


def test_gradient_loss_and_hits_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    size = 3
    in_processes(work, size, str(tmp_path))
    model, batch = problem()
    loss, correct = add_gradient(model, Classification((5,), 3), batch, None)
    for rank in range(size):
        grads, joint, hits, agreed = torch.load(tmp_path / f"{rank}.pt")
        for p, grad in zip(model.parameters(), grads, strict=True):
            torch.testing.assert_close(grad, p.grad, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(joint, loss, rtol=1e-13, atol=0)
        assert int(hits) == int(correct)
        assert agreed == 10 + size - 1


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_are_disjoint_and_cover_the_batch(size: int) -> None:
    batch = torch.arange(10), torch.arange(10)
    shares = [World(rank, size).share(batch)[0] for rank in range(size)]
    assert torch.equal(torch.cat(shares), batch[0])
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_changes_nothing() -> None:
    model, batch = problem()
    world = World()
    assert world.share(batch) is batch
    loss, correct = add_gradient(model, Classification((5,), 3), batch, None)
    before = copy.deepcopy([p.grad for p in model.parameters()])
    assert world.combine(model, loss, correct, 11) == (loss, correct)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))
    assert world.agree(3, torch.device("cpu")) == 3


@pytest.mark.parametrize(
    ("samples", "batch_size", "fine"), [(10, 5, True), (11, 5, False), (12, 5, True), (1, None, False)]
)
def test_a_batch_with_fewer_rows_than_processes_is_refused(
    samples: int, batch_size: int | None, fine: bool
) -> None:
    if fine:
        World(0, 2).check(samples, batch_size, "trainer.batch_size")
    else:
        with pytest.raises(InputError, match=r"trainer.batch_size=.* 1 samples for 2 processes"):
            World(0, 2).check(samples, batch_size, "trainer.batch_size")


GROUPED = (
    "optimizer=grouped_newton",
    *("optimizer.curvature.source=independent", "optimizer.curvature.batch_size=51"),
)

SHARED: dict[str, tuple[str, ...]] = {
    "grouped_newton": (*GROUPED, "optimizer.direction.fisher=empirical"),  # drawn labels differ by process
    "grouped_newton pair": (
        *(*GROUPED, "optimizer.period=1"),
        *("optimizer/direction=pair", "optimizer.cap=0.1"),
    ),
    "sgd": ("optimizer=sgd",),
    "sgd average": ("optimizer=sgd", "trainer.ema=0.9"),
}
"""Optimizers whose run on two processes must be that on one."""

LENGTH = (
    "model.widths=[12]",
    "trainer.epochs=2",
    "trainer.dtype=float64",
    "data.subset=210",  # the last batch of an epoch is smaller
)

RISING = ("optimizer=sgd", "optimizer.lr=1e3", "model.activation=relu", *SMALL_BASELINE, "trainer.epochs=9")
"""Its loss is some thousands from the first steps on, and finite."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Path]]:
    """Exit code and run folder of each configuration, all trained by one ``torchrun`` with two processes."""
    place = tmp_path_factory.mktemp("torchrun")
    commands = {name: [*overrides, *LENGTH] for name, overrides in SHARED.items()} | {"rising": [*RISING]}
    lines = [
        (free_port(), [*overrides, "trainer.device=cpu", f"output_root={place / str(number)}"])
        for number, overrides in enumerate(commands.values())
    ]
    (place / "commands.json").write_text(json.dumps(lines), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "tests.training.launched", str(place / "commands.json"), str(place / "codes.json")]
    ended = subprocess.run(
        [sys.executable, *launcher, *program], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    codes = json.loads((place / "codes.json").read_text(encoding="utf-8"))
    runs = {}
    for number, (name, code) in enumerate(zip(commands, codes, strict=True)):
        (folder,) = (place / str(number)).glob("*/*")  # one run folder: only the first process writes
        runs[name] = (code, folder)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_torchrun_trains_as_one_process_does(
    name: str, launched: dict[str, tuple[int, Path]], run: Callable[..., Any]
) -> None:
    code, folder = launched[name]
    assert code == 0
    alone = run([*SHARED[name], *LENGTH]).folder
    logs = [{path.name: pd.read_csv(path) for path in sorted(f.glob("*.csv"))} for f in (alone, folder)]
    assert logs[0].keys() == logs[1].keys()
    for title, one in logs[0].items():
        columns = [c for c in one if "seconds" not in c and "per_second" not in c and c != "peak_memory_mib"]
        pd.testing.assert_frame_equal(one[columns], logs[1][title][columns], rtol=1e-7, atol=1e-10)


@pytest.mark.slow
def test_two_processes_decide_alike_that_a_loss_has_diverged(launched: dict[str, tuple[int, Path]]) -> None:
    code, folder = launched["rising"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert (code, result["status"]) == (3, "diverged")
    assert "the training loss has diverged" in result["message"]
    assert load_checkpoint(folder / "checkpoint" / LAST)["step"] == 0
