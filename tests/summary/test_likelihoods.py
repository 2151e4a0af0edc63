"""Likelihoods written out in basic operations: values and errors of torch, losses that are none."""

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


LEGACY = [
    {"size_average": False},
    {"reduce": True, "size_average": True},
    {"size_average": False, "reduce": True},
]


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("loss_fn", [F.poisson_nll_loss, F.binary_cross_entropy_with_logits])
@pytest.mark.parametrize("legacy", LEGACY)
@pytest.mark.parametrize("curvature", ["gauss_newton", "fisher"])
def test_former_names_of_the_reduction_count(loss_fn, legacy, curvature):
    def loss(outputs, targets):
        return loss_fn(outputs, targets, **legacy)

    result = summary(loss, curvature=curvature)
    exact = summary(loss, engine="reference")
    assert difference(result.loss, exact.loss) < 1e-12
    assert difference(result.gradient, exact.gradient) < 1e-12


# losses that torch refuses, with its message
REFUSED = {
    "bce_column": (lambda o, t: F.binary_cross_entropy_with_logits(o, t[:, :1]), "Target size"),
    "bce_row": (lambda o, t: F.binary_cross_entropy_with_logits(o, t[0]), "Target size"),
    "gaussian_shape": (lambda o, t: F.gaussian_nll_loss(o, t, torch.ones(1, 1).double()), "incorrect size"),
    "gaussian_axes": (lambda o, t: F.gaussian_nll_loss(o, t, torch.ones(3).double()), "incorrect size"),
    "gaussian_number": (lambda o, t: F.gaussian_nll_loss(o, t, -1.0), "negative entry"),
    "gaussian_sign": (lambda o, t: F.gaussian_nll_loss(o, t, o), "negative entry"),
    "gaussian_reduction": (lambda o, t: F.gaussian_nll_loss(o, t, t + 1, reduction="men"), "not .*valid"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton", "fisher"])
def test_errors_of_torch_are_kept(name, curvature):
    loss_fn, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        loss_fn(torch.linspace(-1, 1, 18).double().view(6, 3), TARGETS)
    with pytest.raises(ValueError, match=match):
        summary(loss_fn, curvature=curvature)


VARIANCES = {
    "number": 0.5,
    "whole": TARGETS + 1,
    "short": torch.full((6,), 0.3).double(),
    "column": TARGETS[:, :1] + 1,
}


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize("curvature", ["gauss_newton", "fisher"])
def test_variances_in_every_shape_of_torch(name, curvature):
    def loss(outputs, targets):
        return F.gaussian_nll_loss(outputs, targets, VARIANCES[name])

    result, exact = summary(loss, curvature=curvature), summary(loss, engine="reference")
    assert difference(result.loss, exact.loss) < 1e-12
    assert difference(result.gradient, exact.gradient) < 1e-12


# losses of outputs o and labels that are computed from y
MOVING = {
    "gaussian": lambda o, y: F.gaussian_nll_loss(o[:, :1], y[:, 1:2], 0.5 * torch.ones(6, 1).double()),
    "poisson": lambda o, y: F.poisson_nll_loss(o[:, :1], y[:, 1:2].exp()),
    "bce": lambda o, y: F.binary_cross_entropy_with_logits(o[:, :1], y[:, 1:2].sigmoid()),
    "mse": lambda o, y: F.mse_loss(o[:, :1], y[:, 1:2]),
}


@pytest.mark.parametrize("name", MOVING)
def test_a_target_that_moves_is_no_label(name):
    with pytest.raises(InputError, match="not the negative log-likelihood"):
        summary(lambda o, t: MOVING[name](o, o), curvature="fisher")

    def cut(outputs, targets):
        return MOVING[name](outputs, outputs.detach())

    result, exact = summary(cut, curvature="fisher"), summary(cut, engine="reference")
    assert difference(result.gradient, exact.gradient) < 1e-10


def per_entry(outputs, targets):
    return F.mse_loss(outputs, targets, reduction="none")


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, t: F.mse_loss(o, t) + F.l1_loss(o, t),
        lambda o, t: F.cross_entropy(o, t) + 0.1 * o.abs().mean(),
        lambda o, t: F.mse_loss(o, t) + F.relu(1 - o * t).mean(),
        lambda o, t: F.mse_loss(o, t) + o.amax(1).mean(),
        lambda o, t: F.mse_loss(o, t) + o.mean(),
        lambda o, t: per_entry(o, t).clamp(max=1.0).mean(),
        lambda o, t: per_entry(o, t).topk(2, 1)[0].mean(),
        lambda o, t: F.binary_cross_entropy_with_logits(o, t) + F.l1_loss(o, t),
        lambda o, t: F.binary_cross_entropy_with_logits(o.tanh(), t) + o.mean(),
    ],
)
def test_a_loss_with_other_terms_is_no_likelihood(loss_fn):
    with pytest.raises(InputError, match="not the negative log-likelihood"):
        summary(loss_fn, curvature="fisher")


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, t: F.binary_cross_entropy_with_logits(2 * o.view(-1), t.view(-1)),
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=1 + t[0], weight=t + 0.5),
        lambda o, t: ((1 - t) * o - F.logsigmoid(o)).mean(),
        lambda o, t: -(t * F.logsigmoid(o) + (1 - t) * F.logsigmoid(-o)).mean(),
        lambda o, t: 0.3 * per_entry(o, t).sum(1).mean() + F.cross_entropy(o, t),
    ],
)
def test_companions_of_a_likelihood_are_allowed(loss_fn):
    result = summary(loss_fn, curvature="fisher", draws=5000)
    exact = summary(loss_fn, curvature="gauss_newton", engine="reference")
    assert difference(result.gradient, exact.gradient) < 1e-10
    assert difference(result.hessian, exact.hessian) < 0.1
