"""Several processes, each with its own samples, get the summary of the global batch."""

from __future__ import annotations

import pytest
import torch

from gnewton.backend import mean_over_processes
from gnewton.summary import summarize
from tests.processes import FORK, in_processes, process_group

from . import zoo
from .test_zoo import differences
from .ways import by

SHARES = {2: [4, 2], 3: [1, 2, 3]}


def work(rank, world, folder, name, engine, results):
    with process_group(rank, world, folder):
        model, loss_fn, inputs, targets, direction = zoo.make(name)
        lo = sum(SHARES[world][:rank])
        hi = lo + SHARES[world][rank]
        partition = zoo.partitions(model)["per_tensor"]
        summary = summarize(
            model, loss_fn, inputs[lo:hi], targets[lo:hi], partition, direction, engine=engine
        )
        mean = inputs[lo:hi].mean(0)
        mean, count = mean_over_processes([mean, mean.new_ones(())], hi - lo)
        assert count == 1
        parts = [summary.gradient, summary.hessian, summary.third, summary.loss, mean]
        results.put((rank, [part.tolist() for part in parts]))


@pytest.mark.parametrize(("world", "engine"), [(3, "tangent"), (2, "reference")])
def test_ranks_join_their_summaries(world, engine, tmp_path):
    results = FORK.SimpleQueue()
    in_processes(work, world, tmp_path, "mlp", engine, results)
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    whole = summarize(model, loss_fn, inputs, targets, zoo.partitions(model)["per_tensor"], direction)
    for _ in range(world):
        _, (gradient, hessian, third, loss, mean) = results.get()
        torch.testing.assert_close(
            torch.tensor(mean, dtype=inputs.dtype), inputs.mean(0), rtol=1e-13, atol=1e-15
        )
        joined = type(whole)(
            *(torch.tensor(x, dtype=torch.float64) for x in (gradient, hessian, third, loss))
        )
        assert max(differences(joined, whole)) < 1e-12


def work_gauss_newton(rank, world, folder, results):
    with process_group(rank, world, folder):
        summary = rows_of("mlp", sum(SHARES[world][:rank]), SHARES[world][rank])
        entries = (summary.gradient, summary.hessian, summary.gradient_covariance, summary.hessian_error)
        results.put([entry.tolist() for entry in entries])


def rows_of(name, start, count):
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    partition = zoo.partitions(model)["per_tensor"]
    at = slice(start, start + count)
    return by("rows", (model, loss_fn, inputs[at], targets[at], partition, direction))[0]


def test_ranks_join_gauss_newton_matrices_and_their_errors(tmp_path):
    results = FORK.SimpleQueue()
    in_processes(work_gauss_newton, 2, tmp_path, results)
    whole = rows_of("mlp", 0, 6)
    expected = (whole.gradient, whole.hessian, whole.gradient_covariance, whole.hessian_error)
    for _ in range(2):
        for entry, value in zip(results.get(), expected, strict=True):
            torch.testing.assert_close(
                torch.tensor(entry, dtype=torch.float64), value, rtol=1e-10, atol=1e-14
            )
