"""Both engines agree to rounding on every network of the zoo, for every kind of partition."""

from __future__ import annotations

import pytest
import torch

from gnewton.summary import summarize

from . import zoo


def difference(a, b):
    return (a - b).norm().item() / max(b.norm().item(), 1e-12)


def differences(a, b):
    pairs = [(a.loss, b.loss), (a.gradient, b.gradient), (a.hessian, b.hessian), (a.third, b.third)]
    return [difference(x, y) for x, y in pairs if x is not None]


@pytest.mark.parametrize("name", zoo.CASES)
def test_engines_agree_in_double_precision(name):
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    for kind, partition in zoo.partitions(model).items():
        fast = summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")
        slow = summarize(model, loss_fn, inputs, targets, partition, direction, engine="reference")
        assert max(differences(fast, slow)) < 1e-10, kind
        assert torch.equal(fast.hessian, fast.hessian.T)


@pytest.mark.parametrize("name", [n for n in zoo.CASES if not n.startswith("act_")])
def test_engines_agree_in_single_precision(name):
    model, loss_fn, inputs, targets, direction = zoo.make(name, torch.float32)
    partition = zoo.partitions(model)["per_tensor"]
    fast = summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")
    slow = summarize(model, loss_fn, inputs, targets, partition, direction, engine="reference")
    assert max(differences(fast, slow)) < 1e-4
    assert fast.hessian.dtype == torch.float64
