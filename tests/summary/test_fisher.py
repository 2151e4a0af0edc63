"""The Fisher matrix by drawn labels, and the statistics of a batch: unbiased, with the right errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gnewton.errors import InputError
from gnewton.summary import Summarizer, summarize

from . import zoo
from .test_zoo import difference

ONE_HOT = F.one_hot(torch.tensor([0, 2, 1, 1, 0, 2]), 3).double()
LIKELIHOODS = {
    "cross_entropy": (F.cross_entropy, torch.tensor([0, 2, 1, 1, 0, 2])),
    "weighted": (
        lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 3.0, 0.5]).double()),
        torch.tensor([0, 2, 1, -100, 0, 2]),
    ),
    "smoothed": (lambda o, t: F.cross_entropy(o, t, label_smoothing=0.2), torch.tensor([0, 2, 1, 1, 0, 2])),
    "probabilities": (F.cross_entropy, torch.rand(6, 3, generator=torch.Generator().manual_seed(1)).double()),
    "mse": (F.mse_loss, ONE_HOT),
    "bce": (F.binary_cross_entropy_with_logits, ONE_HOT),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_mean_over_draws_is_the_gauss_newton_matrix(name):
    """For these likelihoods the Fisher matrix of the labels is that of Gauss and Newton."""
    loss_fn, targets = LIKELIHOODS[name]
    model, _, inputs, _, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    exact = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="gauss_newton")
    made = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="fisher", draws=20_000)
    assert made.matrix == "fisher"
    assert difference(made.gradient, exact.gradient) < 1e-12
    assert difference(made.hessian, exact.hessian) < 0.05
    one = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="fisher")
    again = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="fisher")
    assert torch.equal(one.hessian, again.hessian), "the same labels without a generator"
    assert difference(one.hessian, exact.hessian) > 0.05


def test_coupled_samples_have_an_unbiased_matrix_too():
    model, loss_fn, inputs, targets, direction = zoo.make("batch_norm_tanh")
    partition = zoo.partitions(model)["per_tensor"]
    exact = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="gauss_newton")
    made = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="fisher", draws=5000)
    assert difference(made.hessian, exact.hessian) < 0.1
    assert made.hessian_error is None, "no sample has a share of its own"


def test_standard_errors_over_drawn_batches():
    """The spread over 1,000 batches of independent samples is what each of them reports on average."""
    model, loss_fn, _, _, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["alternate"]
    summarizer = Summarizer(model, loss_fn, partition, curvature="fisher", engine="tangent")
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(1000):
        inputs = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        targets = torch.randint(0, 3, (8,), generator=generator)
        made.append(summarizer.summarize(inputs, targets, direction, generator))
    for entry, error in (("gradient", "gradient_error"), ("hessian", "hessian_error")):
        spread = torch.stack([getattr(m, entry) for m in made]).var(0)
        reported = torch.stack([getattr(m, error).square() for m in made]).mean(0)
        torch.testing.assert_close(reported, spread, rtol=0.3, atol=0.0)


def test_statistics_are_those_of_single_samples():
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    summarizer = Summarizer(model, loss_fn, partition, curvature="gauss_newton", engine="tangent")
    summarizer.tangent_engine.way = "rows"
    made = summarizer.summarize(inputs, targets, direction)
    each = [
        summarize(model, loss_fn, x[None], y[None], partition, direction, curvature="gauss_newton")
        for x, y in zip(inputs, targets, strict=True)
    ]
    gradients = torch.stack([one.gradient for one in each])
    matrices = torch.stack([one.hessian for one in each])
    assert difference(made.gradient_covariance, gradients.T.cov() / len(inputs)) < 1e-10
    assert difference(made.hessian_error, matrices.std(0) / len(inputs) ** 0.5) < 1e-10


def test_parts_of_a_batch_join_their_statistics():
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    made = []
    for memory in (None, 1500):
        summarizer = Summarizer(model, loss_fn, partition, curvature="gauss_newton", max_memory=memory)
        summarizer.tangent_engine.way = "rows"
        made.append(summarizer.summarize(inputs, targets, direction))
    whole, parts = made
    assert len(summarizer.tangent_engine.traces) > 1
    for name in ("gradient", "hessian", "gradient_covariance", "hessian_error", "samples"):
        assert difference(getattr(parts, name), getattr(whole, name)) < 1e-10, name


@pytest.mark.parametrize("curvature", ["gauss_newton", "fisher"])
def test_a_rescaled_group_rescales_its_row(curvature):
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    factors = torch.logspace(-3, 3, len(partition), dtype=torch.float64)
    longer = {name: factors[s] * direction[name] for name, s in partition.index.items()}
    one = summarize(model, loss_fn, inputs, targets, partition, direction, curvature=curvature)
    other = summarize(model, loss_fn, inputs, targets, partition, longer, curvature=curvature)
    torch.testing.assert_close(
        other.hessian, one.hessian * torch.outer(factors, factors), rtol=1e-10, atol=1e-12
    )


def test_third_derivatives_come_along():
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    full = summarize(model, loss_fn, inputs, targets, partition, direction)
    made = summarize(
        model, loss_fn, inputs, targets, partition, direction, curvature="gauss_newton", third=True
    )
    assert difference(made.third, full.third) < 1e-12
    assert full.matrix == "hessian"
    assert full.gradient_error is None


def test_only_likelihoods_have_a_fisher_matrix():
    model, _, inputs, _, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    for loss_fn in (F.huber_loss, F.smooth_l1_loss):
        with pytest.raises(InputError, match="likelihood"):
            summarize(model, loss_fn, inputs, ONE_HOT, partition, direction, curvature="fisher")
    with pytest.raises(InputError, match="draws"):
        Summarizer(model, F.cross_entropy, partition, curvature="fisher", draws=0)
    with pytest.raises(InputError, match="curvature"):
        Summarizer(model, F.cross_entropy, partition, curvature="kfac")
