"""Peak memory, counted in bytes of live tensors: tangents of a layer or two at once, never of all."""

from __future__ import annotations

import logging
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gnewton.partition import Partition
from gnewton.summary import Summarizer
from gnewton.summary.tangent import adjoint_rows, engine
from gnewton.summary.tangent.plan import tangent_bytes

from . import zoo
from .ways import summarizer_by

WIDTH, SAMPLES = 64, 128
LAYER = WIDTH * SAMPLES * 8  # bytes of one activation


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that were created within it and are still alive."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage not in self.known:
                    self.known.add(storage)
                    self._change(storage.nbytes())
                    weakref.finalize(storage, self._change, -storage.nbytes())
        return result

    def _change(self, count):
        self.live += count
        self.peak = max(self.peak, self.live)


def peak_bytes(function):
    with LiveBytes() as counter:
        function()
    return counter.peak


def network(depth, activation=nn.Tanh):
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(WIDTH, WIDTH), activation()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10)).double()
    inputs = torch.randn(SAMPLES, WIDTH, dtype=torch.float64)
    targets = torch.randint(0, 10, (SAMPLES,))
    return model, inputs, targets, {n: torch.randn_like(p) for n, p in model.named_parameters()}


def peaks(depth, activation=nn.Tanh, **options):
    """(S, bytes of a training step, bytes of a summary)"""
    model, inputs, targets, direction = network(depth, activation)
    partition = Partition.per_tensor(model)
    summarizer = Summarizer(model, F.cross_entropy, partition, engine="tangent", **options)
    summarizer.summarize(inputs, targets, direction)  # traces
    step = peak_bytes(lambda: F.cross_entropy(model(inputs), targets).backward())
    return len(partition), step, peak_bytes(lambda: summarizer.summarize(inputs, targets, direction))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.ReLU, lambda: nn.LayerNorm(WIDTH)])
@pytest.mark.parametrize("depth", [4, 12])
def test_peak_is_a_few_stacks_of_the_largest_layer_and_a_training_step(depth, activation):
    size, step, summary = peaks(depth, activation)
    # both orders, of the layer that is read and of the one that is written, and a stack to work with
    assert summary < step + 5 * size * LAYER
    assert summary > 2 * size * LAYER * (depth - 1) / (depth + 1)  # a counter that counts


def test_without_third_derivatives_half_of_it_suffices():
    size, step, summary = peaks(12, third=False)
    assert summary < step + 3 * size * LAYER


def test_a_limit_is_kept():
    size, step, whole = peaks(12)
    limit = size * LAYER // 2
    assert whole > step + limit
    assert peaks(12, max_memory=limit)[2] < step + limit


class Attention(nn.Module):
    """Two layers of attention among many tokens, whose scores are the largest values."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.layers(x).mean(1))


@pytest.mark.parametrize(("matrix", "times"), [("hessian", engine.GRADIENTS), ("gauss_newton", 2)])
def test_without_a_limit_attention_takes_a_few_gradients(matrix, times, monkeypatch):
    torch.manual_seed(0)
    model, inputs = Attention().double(), torch.randn(16, 32, 8, dtype=torch.float64)
    targets, partition = torch.randint(0, 3, (16,)), Partition.per_tensor(model)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}

    def measured():
        summarizer = Summarizer(model, F.cross_entropy, partition, curvature=matrix, engine="tangent")
        if matrix == "gauss_newton":
            summarizer.tangent_engine.way = "tangents"
        summarizer.summarize(inputs, targets, direction)  # traces
        found = []
        peak = peak_bytes(lambda: found.append(summarizer.summarize(inputs, targets, direction)))
        return found[0], peak, max(trace.plan.gradient_bytes for trace in summarizer.tangent_engine.traces)

    step = peak_bytes(lambda: F.cross_entropy(model(inputs), targets).backward())
    whole, most, size = measured()  # it is small enough to be left alone
    monkeypatch.setattr(engine, "SMALL", 0)
    monkeypatch.setattr(engine, "GRADIENTS", times)
    parts, least, _ = measured()
    allowed = step + times * size
    assert most > allowed
    assert least < allowed
    torch.testing.assert_close(parts.hessian, whole.hessian, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts.gradient, whole.gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("limit", "warned"), [(None, False), (1000, True)])
def test_a_batch_that_does_not_separate_warns_only_if_memory_is_short(limit, warned, monkeypatch, caplog):
    monkeypatch.setattr(engine, "SMALL", 0)
    monkeypatch.setattr(engine, "GRADIENTS", 0)
    model, loss_fn, inputs, targets, direction = zoo.make("batch_norm")
    partition = Partition.per_tensor(model)
    with caplog.at_level(logging.INFO, logger="gnewton.summary.tangent.splitting"):
        summarizer = Summarizer(model, loss_fn, partition, engine="tangent", max_memory=limit)
        summarizer.summarize(inputs, targets, direction)
    (line,) = [r for r in caplog.records if "cannot be split" in r.message]
    assert (line.levelno >= logging.WARNING) is warned


def test_columns_of_rows_take_a_few_gradients(monkeypatch):
    model, inputs, targets, direction = network(2)
    partition = Partition.per_tensor(model)
    chunks = []
    original = adjoint_rows.send_back

    def send_back(rows, values, stacks, consume):
        chunks.append(len(stacks[0]))
        return original(rows, values, stacks, consume)

    monkeypatch.setattr(adjoint_rows, "send_back", send_back)
    monkeypatch.setattr(engine, "SMALL", 0)
    monkeypatch.setattr(engine, "GRADIENTS", 0)  # one column at a time
    summarizer = summarizer_by("rows", model, F.cross_entropy, partition)
    bounded = summarizer.summarize(inputs, targets, direction)
    assert chunks.count(1) >= 9
    monkeypatch.undo()
    free = summarizer_by("rows", model, F.cross_entropy, partition).summarize(inputs, targets, direction)
    torch.testing.assert_close(bounded.hessian, free.hessian, rtol=1e-10, atol=1e-12)


def test_the_estimate_is_above_what_is_taken():
    model, inputs, targets, direction = network(12)
    partition = Partition.per_tensor(model)
    summarizer = Summarizer(model, F.cross_entropy, partition, engine="tangent")
    summarizer.summarize(inputs, targets, direction)
    (trace,) = summarizer.tangent_engine.traces
    assert tangent_bytes(trace.plan) == trace.bytes
    step = peak_bytes(lambda: F.cross_entropy(model(inputs), targets).backward())
    assert peak_bytes(lambda: summarizer.summarize(inputs, targets, direction)) < step + trace.bytes


@pytest.mark.parametrize("name", ["encoder", "convolutions", "batch_norm", "recurrent"])
def test_no_memory_stays_behind(name):
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    partition = zoo.partitions(model)["per_tensor"]
    summarizer = Summarizer(model, loss_fn, partition, engine="tangent")
    summarizer.summarize(inputs, targets, direction)
    with LiveBytes() as counter:
        summarizer.summarize(inputs, targets, direction)
        after_one = counter.live  # the model's own memory, which was seen through views
        for _ in range(3):
            summarizer.summarize(inputs, targets, direction)
    assert counter.live == after_one
    assert counter.peak > after_one
