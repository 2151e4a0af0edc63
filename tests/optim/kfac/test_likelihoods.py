"""The drawn vectors: what they are for each label, how often each comes, and Σ p δδᵀ, the curvature."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import KFAC
from gnewton.errors import InputError
from gnewton.optim.kfac.likelihoods import SAMPLERS, bernoulli, categorical, gaussian, sampler
from tests.optim.kfac.cases import DOUBLE, Chain, fixed

DRAWS = 40_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def curvature(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """∂²loss/∂f² of one sample, flattened."""
    size = outputs.numel()
    return torch.func.hessian(loss)(outputs).reshape(size, size)


def close_in_mean(draws: Tensor, covariance: Tensor) -> None:
    """Mean 0 and E[δδᵀ] = covariance within five standard errors; rows are independent draws."""
    count = len(draws)
    assert (draws.mean(0).abs() <= 5 * draws.std(0) / count**0.5 + 1e-12).all()
    products = torch.einsum("ni,nj->nij", draws, draws)
    error = (products.mean(0) - covariance).abs()
    assert (error <= 5 * products.std(0) / count**0.5 + 1e-12).all()


def test_categorical_is_the_gradient_for_some_label_as_often_as_it_is_predicted() -> None:
    logits = torch.tensor([1.0, -0.5, 2.0, -30.0], dtype=DOUBLE)
    probability = logits.softmax(0)
    delta = categorical(logits.expand(DRAWS, 4), generator())
    labels = delta.argmin(1)
    assert torch.equal(delta, probability - F.one_hot(labels, 4))
    shares = torch.bincount(labels, minlength=4) / DRAWS
    assert ((shares - probability).abs() <= 4 * (probability * (1 - probability) / DRAWS).sqrt()).all()


def test_categorical_over_all_labels_is_the_curvature_of_cross_entropy() -> None:
    logits = torch.tensor([1.0, -0.5, 2.0], dtype=DOUBLE)
    probability = logits.softmax(0)
    deltas = probability - torch.eye(3, dtype=DOUBLE)
    expected = torch.einsum("y,yi,yj->ij", probability, deltas, deltas)
    wanted = curvature(lambda f: F.cross_entropy(f[None], torch.tensor([1])), logits)
    torch.testing.assert_close(expected, wanted, rtol=1e-13, atol=1e-15)
    close_in_mean(categorical(logits.expand(DRAWS, 3), generator()), wanted)


def test_categorical_at_several_positions() -> None:
    logits = torch.tensor([[1.0, 0.0], [-0.5, 0.3], [2.0, 0.1]], dtype=DOUBLE)  # classes, positions
    wanted = curvature(lambda f: F.cross_entropy(f[None], torch.tensor([[1, 2]])), logits)
    close_in_mean(categorical(logits.expand(DRAWS, 3, 2), generator()).flatten(1), wanted)


def test_gaussian_has_the_curvature_of_the_mean_squared_error() -> None:
    outputs = torch.tensor([0.3, -1.0, 5.0], dtype=DOUBLE)
    wanted = curvature(lambda f: F.mse_loss(f, torch.zeros(3, dtype=DOUBLE)), outputs)
    close_in_mean(gaussian(outputs.expand(DRAWS, 3), generator()), wanted)


def test_bernoulli_is_the_gradient_for_some_bits_and_has_the_curvature_of_their_loss() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=DOUBLE)
    delta = bernoulli(logits.expand(DRAWS, 3), generator())
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=DOUBLE)
    allowed = (logits.sigmoid() - bits) / 3**0.5
    assert (delta[:, None] - allowed).abs().amax(2).amin(1).max() < 1e-15
    target = torch.zeros(3, dtype=DOUBLE)
    wanted = curvature(lambda f: F.binary_cross_entropy_with_logits(f, target), logits)
    close_in_mean(delta, wanted)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_follow_the_generator_alone(name: str) -> None:
    outputs = torch.randn(5, 3)
    draw = SAMPLERS[name]
    kept = outputs.clone()
    assert torch.equal(draw(outputs, generator(1)), draw(outputs, generator(1)))
    assert not torch.equal(draw(outputs, generator(1)), draw(outputs, generator(2)))
    assert torch.equal(outputs, kept)


def test_extreme_logits_are_drawn_too() -> None:
    delta = categorical(torch.tensor([[1e30, 0.0], [-torch.inf, 0.0]]), generator())
    assert delta.tolist() == [[0, 0], [0, 0]]


def test_outputs_without_classes_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"likelihood=categorical: the outputs must be \(N, C, …\), not \(5,\)"
    ):
        categorical(torch.zeros(5), generator())


def test_names() -> None:
    assert sampler("gaussian") is gaussian
    with pytest.raises(InputError, match="likelihood=gausian: must be one of .*; did you mean 'gaussian'"):
        sampler("gausian")


def test_all_labels_of_one_sample_give_the_exact_fisher_of_a_linear_model() -> None:
    """G ⊗ A is then the Hessian of the loss itself: nothing is left out in one layer at one sample."""
    torch.manual_seed(0)
    model = Chain(nn.Linear(4, 3))
    inputs = torch.randn(1, 4, dtype=DOUBLE)
    probability = model(inputs).detach().softmax(1)[0]
    deltas = (probability - torch.eye(3, dtype=DOUBLE)) * (3 * probability).sqrt()[:, None]
    optimizer = KFAC(model, likelihood=fixed(*deltas[:, None]))
    for _ in range(3):  # pieces of one step, which are averaged
        model(inputs).sum().backward()
    layer = model[0]
    theta = torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1)  # type: ignore[arg-type,operator]

    def loss(parameters: Tensor) -> Tensor:
        return F.cross_entropy(inputs @ parameters[:, :-1].T + parameters[:, -1], torch.tensor([2]))

    hessian = torch.func.hessian(loss)(theta).reshape(15, 15)
    optimizer.step()
    ((a, g),) = optimizer.factors.values()
    torch.testing.assert_close(torch.kron(g, a), hessian, rtol=1e-12, atol=1e-14)
