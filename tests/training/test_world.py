"""Processes that share a batch make the step of one process on the whole batch."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from gnewton.errors import InputError
from gnewton.tasks import Classification
from gnewton.training.training_step import add_gradient
from gnewton.training.world import World
from tests.processes import process_group


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


@pytest.mark.parametrize("size", [2, 3])
def test_gradient_loss_and_hits_are_those_of_the_whole_batch(size: int, tmp_path: Path) -> None:
    mp.spawn(work, (size, str(tmp_path)), nprocs=size)
    model, batch = problem()
    loss, correct = add_gradient(model, Classification((5,), 3), batch, None)
    for rank in range(size):
        grads, found, hits, agreed = torch.load(tmp_path / f"{rank}.pt")
        for p, grad in zip(model.parameters(), grads, strict=True):
            torch.testing.assert_close(grad, p.grad, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(found, loss, rtol=1e-13, atol=0)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        [*GROUPED],
        [
            *(*GROUPED, "optimizer.period=1"),
            *("optimizer/controller=overshoot", "optimizer/direction=pair", "optimizer.cap=0.1"),
        ],
        [
            *(*GROUPED, "optimizer.period=1"),
            *(
                "optimizer/controller=adaptive",
                "optimizer.controller.slices=1",
                "optimizer.controller.errors=0",
            ),
        ],
        ["optimizer=outer_newton", "optimizer.curvature.batch_size=51", "optimizer.period=2"],
        ["optimizer=sgd"],
    ],
    ids=str,
)
def test_torchrun_trains_as_one_process_does(optimizer: list[str], tmp_path: Path) -> None:
    options = [
        *optimizer,
        "model.widths=[12]",
        "trainer.epochs=2",
        "trainer.dtype=float64",
        "trainer.device=cpu",
        "data.subset=210",  # the last batch of an epoch is smaller
    ]
    logs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        subprocess.run(
            [sys.executable, *launcher, "-m", "gnewton", "train", *options, f"output_root={folder}"],
            check=True,
            capture_output=True,
            timeout=300,
        )
        (run,) = folder.glob("*/*")  # one run folder: only the first process writes
        logs.append([pd.read_csv(path) for path in sorted(run.glob("*.csv"))])
    for one, two in zip(*logs, strict=True):
        columns = [c for c in one if "seconds" not in c and "per_second" not in c and c != "peak_memory_mib"]
        pd.testing.assert_frame_equal(one[columns], two[columns], rtol=1e-7, atol=1e-10)
