"""Muon and the rivals of other packages: each is the optimizer it names, with its options."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.nn.functional import cross_entropy

from gnewton.errors import InputError
from gnewton.optim.directions import muon_with_adamw
from gnewton.optim.options import OPTIMIZERS
from tests.optim.options.test_baselines import problem_for
from tests.optim.problems import classification, tanh_net
from tests.recipes import recipe

RIVALS = ("prodigy", "dadapt_adam", "schedule_free", "soap", "shampoo")
IN_AN_EXTRA = ("soap", "shampoo")


def theirs(name, parameters):
    if name == "muon":
        return muon_with_adamw([(str(i), p) for i, p in enumerate(parameters)], lr=0.02, momentum=0.9)
    if name == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(parameters, weight_decay=0.1, decouple=False)
    if name == "dadapt_adam":
        from dadaptation import DAdaptAdam

        return DAdaptAdam(parameters, weight_decay=0.1, decouple=True)
    if name == "shampoo":
        from pytorch_optimizer import Shampoo

        return Shampoo(
            parameters,
            lr=0.05,
            weight_decay=0.1,
            weight_decouple=True,
            preconditioning_compute_steps=3,
            matrix_eps=1e-4,
        )
    if name == "soap":
        from pytorch_optimizer import SOAP

        return SOAP(
            parameters, lr=0.01, betas=(0.9, 0.98), eps=1e-8, precondition_frequency=3, precondition_1d=True
        )
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(parameters, lr=0.01, warmup_steps=3)
    optimizer.train()
    return optimizer


OPTIONS = {
    "muon": ("optimizer.lr=0.02", "optimizer.momentum=0.9"),
    "prodigy": ("optimizer.weight_decay=0.1", "optimizer.decoupled=false"),
    "dadapt_adam": ("optimizer.weight_decay=0.1", "optimizer.decoupled=true"),
    "schedule_free": ("optimizer.lr=0.01", "optimizer.warmup=3"),
    "shampoo": (
        *("optimizer.lr=0.05", "optimizer.weight_decay=0.1", "optimizer.decoupled=true"),
        *("optimizer.period=3", "optimizer.eps=1e-4"),
    ),
    "soap": (
        *("optimizer.lr=0.01", "optimizer.betas=[0.9,0.98]"),
        *("optimizer.period=3", "optimizer.vectors=true"),
    ),
}


def train(model, optimizer, steps):
    inputs, targets = classification(60)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return float(cross_entropy(model(inputs), targets).detach())


@pytest.mark.parametrize("name", ["muon", *RIVALS])
def test_it_is_the_optimizer_that_it_names(name):
    if name in IN_AN_EXTRA:
        pytest.importorskip("pytorch_optimizer")
    ours, other = tanh_net(), tanh_net()
    chosen = recipe(OPTIMIZERS, "sgd", name, *OPTIONS[name])
    train(ours, chosen.build(problem_for(ours)), 25)
    train(other, theirs(name, list(other.parameters())), 25)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), other.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(ours.parameters(), tanh_net().parameters(), strict=True))


def test_shampoo_is_what_its_paper_says():
    """Also for a filter of four axes, each with a root of its own, and for a bias."""
    pytest.importorskip("pytorch_optimizer")
    model = torch.nn.Conv2d(2, 3, (2, 4)).double()
    sums = {p: [1e-3 * torch.eye(side, dtype=p.dtype) for side in p.shape] for p in model.parameters()}
    places = {p: p.detach().clone() for p in model.parameters()}
    chosen = recipe(OPTIMIZERS, "sgd", "shampoo", "optimizer.eps=1e-3", "optimizer.period=1")
    optimizer = chosen.build(problem_for(model))
    inputs = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    for _ in range(4):
        optimizer.zero_grad()
        model(inputs).tanh().square().sum().backward()
        for p, moments in sums.items():
            step = p.grad.clone()
            for axis, moment in enumerate(moments):
                flat = p.grad.movedim(axis, 0).reshape(p.shape[axis], -1)
                moment += flat @ flat.T
                values, vectors = torch.linalg.eigh(moment)
                root = vectors @ torch.diag(values ** (-1 / (2 * p.ndim))) @ vectors.T
                step = torch.tensordot(root, step, dims=([1], [axis])).movedim(0, axis)
            places[p] -= 0.1 * step
        optimizer.step()
        for p, expected in places.items():
            torch.testing.assert_close(p.detach(), expected, rtol=1e-8, atol=1e-10)


def test_schedule_free_is_evaluated_at_its_average_and_returns_bit_for_bit():
    """Without momentum in y the average x of the iterates z is known: here all weights are equal."""
    model = tanh_net().float()
    chosen = recipe(OPTIMIZERS, "sgd", "schedule_free", "optimizer.lr=0.01", "optimizer.betas=[0.9,0.999]")
    optimizer = chosen.build(problem_for(model))
    inputs, targets = classification(60)
    iterates = []
    for _ in range(4):
        optimizer.zero_grad()
        cross_entropy(model(inputs.float()), targets).backward()
        optimizer.step()
        iterates.append([optimizer.state[p]["z"].clone() for p in model.parameters()])
    before = [p.detach().clone() for p in model.parameters()]
    with chosen.evaluating(optimizer):
        for p, *points in zip(model.parameters(), *iterates, strict=True):
            torch.testing.assert_close(p.detach(), torch.stack(points).mean(0), rtol=1e-4, atol=1e-5)
        assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", RIVALS)
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"needs the package \w+: pip install 'gnewton\[rivals\]'"):
        recipe(OPTIMIZERS, "sgd", name)
