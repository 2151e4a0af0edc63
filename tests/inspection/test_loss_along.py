"""The loss along each group and its Taylor models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from gnewton.inspection.loss_along import FRACTIONS, LossAlong, measure_along, rate_scales
from gnewton.partition import Partition
from tests.optim.problems import classification, tanh_net


def exponential(scale, order=5):
    """φ(η) = exp(−η) on the grid of that scale."""
    rates = scale * FRACTIONS[None]
    return LossAlong(rates, np.exp(-rates), np.array([[(-1.0) ** k for k in range(order + 1)]]))


def test_the_models_of_a_known_function():
    along = exponential(2.0)
    eta = along.rates[0]
    assert along.orders == (2, 3, 5)
    np.testing.assert_allclose(along.model(2)[0], 1 - eta + eta**2 / 2)
    np.testing.assert_allclose(along.model(3)[0], 1 - eta + eta**2 / 2 - eta**3 / 6)
    # the first rates beyond are those at which |remainder| > 10 % of 1 − exp(−η)
    for order in along.orders:
        end = along.holds(order)[0]
        positive = eta[eta > 0]
        remainder = np.abs(along.model(order)[0][eta > 0] - np.exp(-positive))
        bad = positive[remainder > 0.1 * (1 - np.exp(-positive))]
        assert end == positive[positive < bad[0]].max()
    assert list(np.diff([along.holds(order)[0] for order in along.orders]) > 0) == [True, True]


def test_a_model_that_is_exact_holds_to_the_end_and_a_wrong_one_nowhere():
    rates = np.array([3.0, -0.5])[:, None] * FRACTIONS
    derivatives = np.array([[1.0, -2.0, 4.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    along = LossAlong(rates, 1 - 2 * rates + 2 * rates**2, derivatives)
    assert along.holds(2).tolist() == [rates[0, -1], 0.0]
    assert along.holds(2)[0] == 12.0
    still = LossAlong(np.zeros((1, len(FRACTIONS))), np.ones((1, len(FRACTIONS))), derivatives[:1])
    assert math.isnan(still.holds(2)[0])
    assert list(still.curve_rows(("a",))) == []


def test_the_scale_of_the_grid():
    rates = np.array([0.5, np.nan, 0.0, np.nan])
    scales = rate_scales(rates, np.array([1.0, 2.0, -3.0, 1.0]), np.array([1.0, -4.0, 2.0, 0.0]))
    assert scales.tolist() == [0.5, 0.5, 1.5, 0.0]


@pytest.mark.parametrize("wd", [0.0, 0.3])
def test_values_and_derivatives_are_those_of_the_mean_loss_along_each_group(wd):
    """Two batches of unequal sizes, groups by channel, with and without weight decay."""
    model, batches = tanh_net(), [classification(20, 0), classification(10, 1)]
    partition = Partition.per_channel(model)
    names = [name for name, _ in model.named_parameters()]
    generator = torch.Generator().manual_seed(3)
    u = {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in model.named_parameters()
    }
    scales = np.linspace(-0.3, 0.4, len(partition))
    along = measure_along(
        model, cross_entropy, partition, lambda: batches, u, scales, order=4, decay=dict.fromkeys(names, wd)
    )
    x, y = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))

    def decay():
        return sum(0.5 * wd * p.square().sum() for p in model.parameters())

    with torch.no_grad():
        offset = float(decay())
        for s in (0, 2, len(partition) - 1):
            kept = {name: p.clone() for name, p in model.named_parameters()}
            for n in (0, 15, 30):
                for piece in list(partition)[s].slices:
                    at = [slice(None)] * piece.axis
                    for start, stop in piece.ranges:
                        index = (*at, slice(start, stop))
                        dict(model.named_parameters())[piece.parameter][index] -= (
                            along.rates[s, n] * u[piece.parameter][index]
                        )
                loss = float(cross_entropy(model(x), y) + decay()) - offset
                assert along.losses[s, n] == pytest.approx(loss, rel=1e-10)
                for name, p in model.named_parameters():
                    p.copy_(kept[name])
    # near 0 the model of order 4 is the loss, up to the fifth power of the rate
    near = np.abs(along.model(4) - along.losses)[:, 9:12].max(axis=1)
    assert (near < 1e-3 * np.abs(along.losses - along.losses[:, 10:11]).max(axis=1)).all()
