"""Both engines give the same summary of every network that can be chosen by name."""

from __future__ import annotations

import pytest
import torch

from gnewton.partition import Partition
from gnewton.summary import summarize
from tests.models.cases import SMALL, Case

HEAVY = ("vgg11", "resnet18")  # one group per tensor takes the reference engine too long


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_engines_agree_on_the_networks_of_the_project(case: Case, training: bool) -> None:
    if case.choice == "vgg11" and training:
        pytest.skip("it computes the same in both modes")
    if case.choice == "resnet18" and not training:
        pytest.skip("batch normalisation in evaluation is in the zoo")
    model = case.build().train(training)
    inputs, targets = case.batch(samples=2 if case.choice in HEAVY else 3)
    partition = Partition.blocks(model, 2) if case.choice in HEAVY else Partition.per_tensor(model)
    generator = torch.Generator().manual_seed(5)
    direction = {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype) / p.numel() ** 0.5
        for name, p in model.named_parameters()
    }
    actual, expected = (
        summarize(model, case.task.loss, inputs, targets, partition, direction, engine=engine)
        for engine in ("tangent", "reference")
    )
    for name in ("gradient", "hessian", "third"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm(), name
    assert expected.third.abs().max() > 0
