"""Out of memory: in training, one message names the option to lower; in the summary, the run continues."""

from __future__ import annotations

import json

import pytest
import torch

from gnewton.runfiles import LAST
from gnewton.summary.tangent.engine import TangentEngine
from gnewton.training import evaluate as evaluate_module
from gnewton.training import training_step
from gnewton.training.checkpoint import load_checkpoint
from tests.conftest import SMALL, SMALL_BASELINE

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _fail_at(number, original):
    calls = []

    def work(*arguments):
        calls.append(0)
        if len(calls) == number:
            raise FULL
        return original(*arguments)

    return work


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "kfac", "lbfgs", "grouped_newton"])
def test_in_training(optimizer, cli, tmp_path, monkeypatch):
    small = SMALL if optimizer == "grouped_newton" else SMALL_BASELINE[: 2 if optimizer == "lbfgs" else 3]
    monkeypatch.setattr(training_step, "add_gradient", _fail_at(8, training_step.add_gradient))
    answer = cli(["train", f"optimizer={optimizer}", *small, "trainer.device=cpu"])
    size = 100 if optimizer == "lbfgs" else 20
    assert answer.code == 1
    message = answer.err.splitlines()[-1]
    assert message.startswith("gnewton: out of memory on cpu in training step ")
    assert message.endswith(f"; lower trainer.microbatch=null or trainer.batch_size={size}")
    assert "Traceback" not in answer.err
    (folder,) = tmp_path.glob("outputs/*/*")
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    load_checkpoint(folder / "checkpoint" / LAST)


def test_in_an_evaluation(cli, monkeypatch):
    monkeypatch.setattr(evaluate_module, "evaluate", _fail_at(2, evaluate_module.evaluate))
    answer = cli(["train", "optimizer=sgd", *SMALL_BASELINE, "trainer.device=cpu"])
    assert answer.code == 1
    assert answer.err.splitlines()[-1] == (
        "gnewton: out of memory on cpu in an evaluation; lower trainer.evaluation.batch_size=1000"
    )


def test_in_the_summary_the_run_goes_on(cli, tmp_path, monkeypatch):
    original = TangentEngine._passes

    def run(self, trace, request, *others):
        if request.batch_size > 7:
            raise FULL
        return original(self, trace, request, *others)

    monkeypatch.setattr(TangentEngine, "_passes", run)
    answer = cli(["train", *SMALL, "trainer.epochs=1", "trainer.device=cpu"])
    assert answer.code == 0
    (folder,) = tmp_path.glob("outputs/*/*")
    assert json.loads((folder / "result.json").read_text())["status"] == "done"


def test_a_summary_that_does_not_fit_at_all(cli, monkeypatch):
    def run(*_):
        raise FULL

    monkeypatch.setattr(TangentEngine, "_passes", run)
    answer = cli(["train", *SMALL, "trainer.epochs=1", "trainer.device=cpu"])
    assert answer.code == 1
    assert (
        "lower the size of the curvature batch (optimizer.curvature.batch_size)"
        in answer.err.splitlines()[-1]
    )
    assert "Traceback" not in answer.err
