"""Peak memory, counted in bytes of live tensors: tangents of a layer or two at once, never of all."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gnewton.partition import Partition
from gnewton.summary import Summarizer
from gnewton.summary.tangent.plan import tangent_bytes

from . import zoo

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
