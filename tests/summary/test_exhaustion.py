"""Out of memory in the summary: the batch is split further, and the result stays the same."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton import Partition
from gnewton.errors import OutOfMemory
from gnewton.summary import Summarizer
from gnewton.summary.tangent import engine
from gnewton.summary.tangent.engine import TangentEngine
from gnewton.summary.tangent.rules import general

SAMPLES = 12


def _problem(model=None):
    torch.manual_seed(0)
    model = (model or nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))).double()
    inputs, targets = torch.randn(SAMPLES, 5, dtype=torch.float64), torch.arange(SAMPLES) % 3
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    return model, inputs, targets, direction


def _narrow(monkeypatch, largest, error):
    """Passes over more than ``largest`` samples run out of memory; returns the sizes that were tried."""
    tried = []
    original = TangentEngine._passes

    def run(self, trace, request, draws=None):
        tried.append(request.batch_size)
        if tried[-1] > largest:
            raise error
        return original(self, trace, request, draws)

    monkeypatch.setattr(TangentEngine, "_passes", run)
    return tried


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("largest", [1, 2, 3, 6])
def test_the_batch_is_split_until_it_fits(error, largest, monkeypatch, caplog):
    model, inputs, targets, direction = _problem()
    partition = Partition.per_tensor(model)
    whole = Summarizer(model, F.cross_entropy, partition).summarize(inputs, targets, direction)
    tried = _narrow(monkeypatch, largest, error)
    summarizer = Summarizer(model, F.cross_entropy, partition)
    with caplog.at_level(logging.WARNING, logger=engine.__name__):
        summary = summarizer.summarize(inputs, targets, direction)
    for name in ("gradient", "hessian", "third", "loss"):
        torch.testing.assert_close(getattr(summary, name), getattr(whole, name), rtol=1e-12, atol=1e-14)
    lines = [record.message for record in caplog.records if "out of memory" in record.message]
    assert len(lines) == {6: 1, 3: 2, 2: 3, 1: 4}[largest]
    caplog.clear()
    tried.clear()
    summarizer.summarize(inputs, targets, direction)
    assert max(tried) <= largest, "what was learned is kept"
    assert not caplog.records


class Cumulative(nn.Module):
    """A network with an operation that only the general rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        return torch.cumprod(self.layer(x), dim=1)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_rule_that_runs_out_of_memory_splits_the_batch(error, monkeypatch, caplog):
    monkeypatch.setattr(general, "FEW", 0)
    model, inputs, targets, direction = _problem(Cumulative())
    partition = Partition.per_tensor(model)
    whole = Summarizer(model, F.cross_entropy, partition, engine="tangent").summarize(
        inputs, targets, direction
    )
    original = general._by_forward_mode
    refused = []

    def narrow(site):
        if len(site.value) > 6:
            refused.append(len(site.value))
            raise error
        return original(site)

    monkeypatch.setattr(general, "_by_forward_mode", narrow)
    monkeypatch.setattr(general, "reverse_parts", None)  # not the answer to a lack of memory
    monkeypatch.setattr(general, "_verdicts", dict.fromkeys(general._verdicts, True))
    summarizer = Summarizer(model, F.cross_entropy, partition, engine="tangent")
    summary = summarizer.summarize(inputs, targets, direction)
    assert refused == [12]
    assert [record.message for record in caplog.records if "split into 2 parts" in record.message]
    for name in ("gradient", "hessian", "third", "loss"):
        torch.testing.assert_close(getattr(summary, name), getattr(whole, name), rtol=1e-12, atol=1e-14)


def test_nothing_is_touched(monkeypatch):
    model, inputs, targets, direction = _problem()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    _narrow(monkeypatch, 4, ERRORS["cuda"])
    Summarizer(model, F.cross_entropy, Partition.per_tensor(model)).summarize(inputs, targets, direction)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_single_samples_that_do_not_fit_are_an_error(monkeypatch):
    model, inputs, targets, direction = _problem()
    _narrow(monkeypatch, 0, ERRORS["cuda"])
    with pytest.raises(
        OutOfMemory, match="a batch of 12 samples, taken one by one; lower .*curvature.batch_size"
    ):
        Summarizer(model, F.cross_entropy, Partition.per_tensor(model)).summarize(inputs, targets, direction)


def test_samples_that_mix_are_not_split(monkeypatch):
    mixing = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))
    model, inputs, targets, direction = _problem(mixing)
    _narrow(monkeypatch, 6, ERRORS["cuda"])
    with pytest.raises(OutOfMemory, match="which cannot be split"):
        Summarizer(model, F.cross_entropy, Partition.per_tensor(model)).summarize(inputs, targets, direction)


def test_other_errors_are_not_taken_for_exhausted_memory(monkeypatch):
    model, inputs, targets, direction = _problem()
    _narrow(monkeypatch, 0, RuntimeError("sizes do not match"))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        Summarizer(model, F.cross_entropy, Partition.per_tensor(model), engine="tangent").summarize(
            inputs, targets, direction
        )
