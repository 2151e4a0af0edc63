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

RIVALS = ("prodigy", "dadapt_adam", "schedule_free", "soap")


def theirs(name, parameters):
    if name == "muon":
        return muon_with_adamw([(str(i), p) for i, p in enumerate(parameters)], lr=0.02, momentum=0.9)
    if name == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(parameters, weight_decay=0.1, decouple=False)
    if name == "dadapt_adam":
        from dadaptation import DAdaptAdam

        return DAdaptAdam(parameters, weight_decay=0.1, decouple=True)
    if name == "soap":
        from pytorch_optimizer import SOAP

        return SOAP(
            parameters, lr=0.01, betas=(0.9, 0.98), eps=1e-8, precondition_frequency=3, precondition_1d=True
        )
    from schedulefree import AdamWScheduleFree

    made = AdamWScheduleFree(parameters, lr=0.01, warmup_steps=3)
    made.train()
    return made


OPTIONS = {
    "muon": ("optimizer.lr=0.02", "optimizer.momentum=0.9"),
    "prodigy": ("optimizer.weight_decay=0.1", "optimizer.decoupled=false"),
    "dadapt_adam": ("optimizer.weight_decay=0.1", "optimizer.decoupled=true"),
    "schedule_free": ("optimizer.lr=0.01", "optimizer.warmup=3"),
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
    if name == "soap":
        pytest.importorskip("pytorch_optimizer")
    ours, other = tanh_net(), tanh_net()
    chosen = recipe(OPTIMIZERS, "sgd", name, *OPTIONS[name])
    train(ours, chosen.build(problem_for(ours)), 25)
    train(other, theirs(name, list(other.parameters())), 25)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), other.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(ours.parameters(), tanh_net().parameters(), strict=True))


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
