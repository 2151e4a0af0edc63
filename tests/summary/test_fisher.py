"""The Fisher matrix by drawn labels, and the statistics of a batch: unbiased, with the right errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.errors import InputError
from gnewton.summary import Summarizer, summarize

from . import zoo
from .operations import Net
from .oracles import phi
from .test_zoo import difference
from .ways import by, summarizer_by

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
    summary = summarize(
        model, loss_fn, inputs, targets, partition, direction, curvature="fisher", draws=20_000
    )
    assert summary.matrix == "fisher"
    assert difference(summary.gradient, exact.gradient) < 1e-12
    assert difference(summary.hessian, exact.hessian) < 0.05
    one = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="fisher")
    again = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="fisher")
    assert torch.equal(one.hessian, again.hessian), "the same labels without a generator"
    assert difference(one.hessian, exact.hessian) > 0.05


def with_head(base, head):
    """A network whose outputs are a function of those of another one."""
    return Net(lambda m, x: head(m.base(x)), base=base)


LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
COUNTS = torch.tensor([[0.0, 2.0, 1.0]] * 6).double()
WEIGHT = torch.tensor([1.0, 3.0, 0.5]).double()


# outputs and loss, and those of the same likelihood whose Gauss–Newton matrix is its Fisher matrix
REPARAMETRISED = {
    "bce_of_probabilities": (
        torch.sigmoid, lambda o, t: F.binary_cross_entropy(o, t, weight=WEIGHT),
        lambda z: z, lambda o, t: F.binary_cross_entropy_with_logits(o, t, weight=WEIGHT), ONE_HOT,
    ),
    "bce_summed": (
        torch.sigmoid, nn.BCELoss(reduction="sum"),
        lambda z: z, nn.BCEWithLogitsLoss(reduction="sum"), ONE_HOT,
    ),
    "log_of_probabilities": (
        lambda z: z.softmax(1), lambda o, t: F.nll_loss(o.log(), t, weight=WEIGHT),
        lambda z: z, lambda o, t: F.cross_entropy(o, t, weight=WEIGHT), LABELS,
    ),
    "log_probabilities_by_token": (
        lambda z: z.unflatten(0, (2, 3)).log_softmax(2), lambda o, t: F.nll_loss(o.view(-1, 3), t.flatten()),
        lambda z: z.unflatten(0, (2, 3)), lambda o, t: F.cross_entropy(o.view(-1, 3), t.flatten()),
        LABELS.view(2, 3),
    ),
    "poisson": (
        torch.exp, lambda o, t: F.poisson_nll_loss(o, t, log_input=False, full=True),
        lambda z: z, F.poisson_nll_loss, COUNTS,
    ),
    "poisson_of_logs": (lambda z: z, nn.PoissonNLLLoss(), lambda z: z, F.poisson_nll_loss, COUNTS),
    "gaussian_of_known_variance": (
        lambda z: z, lambda o, t: F.gaussian_nll_loss(o, t, torch.full_like(t, 0.3)),
        lambda z: z, lambda o, t: F.mse_loss(o, t) / 0.6, ONE_HOT,
    ),
    "several": (
        lambda z: {"class": z, "rest": (z[:, :1], z[:, 1:].exp())},
        lambda o, t: F.cross_entropy(o["class"], t) + 0.5 * F.mse_loss(o["rest"][0].tanh(), 0.1 * t[:, None])
        + F.poisson_nll_loss(o["rest"][1], t[:, None], log_input=False, reduction="none").sum(1).mean(),
        lambda z: (z, z[:, :1].tanh(), z[:, 1:]),
        lambda o, t: F.cross_entropy(o[0], t) + 0.5 * F.mse_loss(o[1], 0.1 * t[:, None])
        + 2 * F.poisson_nll_loss(o[2], t[:, None]),
        LABELS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPARAMETRISED)
def test_other_outputs_of_a_likelihood_leave_its_matrix(name):
    """The Fisher matrix does not depend on the outputs by which the model states its distribution."""
    head, loss_fn, natural, known_loss, targets = REPARAMETRISED[name]
    base, _, inputs, _, direction = zoo.make("mlp")
    direction = {f"base.{key}": u for key, u in direction.items()}
    model, known = with_head(base, head), with_head(base, natural)
    partition = zoo.partitions(model)["per_tensor"]
    exact = summarize(known, known_loss, inputs, targets, partition, direction, curvature="gauss_newton")
    summary = summarize(
        model, loss_fn, inputs, targets, partition, direction, curvature="fisher", draws=20_000
    )
    assert difference(summary.gradient, exact.gradient) < 1e-6
    assert difference(summary.hessian, exact.hessian) < 0.05


def test_gaussian_of_own_variance():
    """Mean and variance are outputs: their Fisher matrix is that of 1/v and 1/(2v²), from the Jacobian."""
    base, _, inputs, _, direction = zoo.make("mlp")
    model = with_head(base, lambda z: (z[:, :2], z[:, 2:]))  # one variance for two means
    direction = {f"base.{key}": u for key, u in direction.items()}
    partition = zoo.partitions(model)["per_tensor"]

    def loss_fn(outputs, targets):
        return F.gaussian_nll_loss(outputs[0], targets, F.softplus(outputs[1]))

    arguments = (model, loss_fn, inputs, ONE_HOT[:, :2], partition, direction)
    summary = summarize(*arguments, curvature="fisher", draws=20_000)

    def moments(steps):
        """Mean and variance at θ + Σ_s ε_s P_s u."""
        given = (model, lambda o, t: (o[0], F.softplus(o[1]).expand(-1, 2)), *arguments[2:])
        return phi(*given, steps)

    zero = torch.zeros(len(partition), dtype=torch.float64)
    (mean, variance), (v, _) = torch.autograd.functional.jacobian(moments, zero), moments(zero)[::-1]
    exact = torch.einsum("nks,nk,nkt->st", mean, 1 / v, mean)
    exact += torch.einsum("nks,nk,nkt->st", variance, 0.5 / v**2, variance)
    assert difference(summary.hessian, exact / mean[..., 0].numel()) < 0.05
    full = summarize(*arguments)
    assert difference(summary.gradient, full.gradient) < 1e-10


def test_coupled_samples_have_an_unbiased_matrix_too():
    model, loss_fn, inputs, targets, direction = zoo.make("batch_norm_tanh")
    partition = zoo.partitions(model)["per_tensor"]
    exact = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="gauss_newton")
    summary = summarize(model, loss_fn, inputs, targets, partition, direction, curvature="fisher", draws=5000)
    assert difference(summary.hessian, exact.hessian) < 0.1
    assert summary.hessian_error is None, "no sample has a share of its own"


def test_standard_errors_over_drawn_batches():
    """The spread over 1,000 batches of independent samples is what each of them reports on average."""
    model, loss_fn, _, _, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["alternate"]
    summarizer = Summarizer(model, loss_fn, partition, curvature="fisher", engine="tangent")
    generator = torch.Generator().manual_seed(3)
    summaries = []
    for _ in range(1000):
        inputs = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        targets = torch.randint(0, 3, (8,), generator=generator)
        summaries.append(summarizer.summarize(inputs, targets, direction, generator))
    for entry, error in (("gradient", "gradient_error"), ("hessian", "hessian_error")):
        spread = torch.stack([getattr(m, entry) for m in summaries]).var(0)
        reported = torch.stack([getattr(m, error).square() for m in summaries]).mean(0)
        torch.testing.assert_close(reported, spread, rtol=0.3, atol=0.0)


def test_statistics_are_those_of_single_samples():
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    summary, _ = by("rows", (model, loss_fn, inputs, targets, partition, direction))
    single = [
        summarize(model, loss_fn, x[None], y[None], partition, direction, curvature="gauss_newton")
        for x, y in zip(inputs, targets, strict=True)
    ]
    gradients = torch.stack([one.gradient for one in single])
    matrices = torch.stack([one.hessian for one in single])
    assert difference(summary.gradient_covariance, gradients.T.cov() / len(inputs)) < 1e-10
    assert difference(summary.hessian_error, matrices.std(0) / len(inputs) ** 0.5) < 1e-10


def test_parts_of_a_batch_join_their_statistics():
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    summaries = []
    for memory in (None, 1500):
        summarizer = summarizer_by("rows", model, loss_fn, partition, max_memory=memory)
        summaries.append(summarizer.summarize(inputs, targets, direction))
    whole, parts = summaries
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
    summary = summarize(
        model, loss_fn, inputs, targets, partition, direction, curvature="gauss_newton", third=True
    )
    assert difference(summary.third, full.third) < 1e-12
    assert full.matrix == "hessian"
    assert full.gradient_error is None


def test_only_likelihoods_have_a_fisher_matrix():
    model, _, inputs, _, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    other_losses = (
        F.huber_loss,
        F.smooth_l1_loss,
        lambda o, t: F.mse_loss(o, t) + o.square().mean(),
        lambda o, t: F.mse_loss(o, t).sqrt(),
        lambda o, t: F.mse_loss(o, o.sigmoid()),
    )
    for loss_fn in other_losses:
        with pytest.raises(InputError, match="likelihood"):
            summarize(model, loss_fn, inputs, ONE_HOT, partition, direction, curvature="fisher")

    def no_logs(outputs, targets):
        return F.nll_loss(outputs.exp(), targets)

    with pytest.raises(InputError, match="no log-probabilities"):
        summarize(model, no_logs, inputs, LABELS, partition, direction, curvature="fisher")
    with pytest.raises(InputError, match="negative weight"):
        summarize(
            model, lambda o, t: -F.mse_loss(o, t), inputs, ONE_HOT, partition, direction, curvature="fisher"
        )
    with pytest.raises(InputError, match="draws"):
        Summarizer(model, F.cross_entropy, partition, curvature="fisher", draws=0)
    with pytest.raises(InputError, match="curvature"):
        Summarizer(model, F.cross_entropy, partition, curvature="kfac")
