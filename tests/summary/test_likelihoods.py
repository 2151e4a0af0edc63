"""Likelihoods that are written out anew: the values and the errors of torch, and what is no likelihood."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gnewton.errors import InputError
from gnewton.summary import summarize

from . import zoo
from .test_zoo import difference

TARGETS = F.one_hot(torch.tensor([0, 2, 1, 1, 0, 2]), 3).double()


def summary(loss_fn, targets=TARGETS, **options):
    model, _, inputs, _, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    return summarize(model, loss_fn, inputs, targets, partition, direction, **options)


LEGACY = [{"size_average": False}, {"reduce": True, "size_average": True}, {"size_average": False, "reduce": True}]


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("loss_fn", [F.poisson_nll_loss, F.binary_cross_entropy_with_logits])
@pytest.mark.parametrize("legacy", LEGACY)
@pytest.mark.parametrize("curvature", ["gauss_newton", "fisher"])
def test_former_names_of_the_reduction_count(loss_fn, legacy, curvature):
    def loss(outputs, targets):
        return loss_fn(outputs, targets, **legacy)

    made = summary(loss, curvature=curvature)
    exact = summary(loss, engine="reference")
    assert difference(made.loss, exact.loss) < 1e-12
    assert difference(made.gradient, exact.gradient) < 1e-12
