"""Operations whose higher derivatives torch lacks: exact through basic operations, or refused in one line."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton import GroupedNewton, Partition
from gnewton.summary import SummaryError, smooth, summarize

from . import oracles

COUNT = 6
LABELS = torch.tensor([0, 2, 1, 3, 0, 2])
SEVERAL = torch.tensor(
    [[0, 2, -1, 1], [1, -1, 0, 0], [3, 2, 1, 0], [-1, 0, 0, 0], [2, -1, 0, 0], [0, 1, 2, 3]]
)


class Bags(nn.Module):
    """Bags of embeddings, then two layers."""

    def __init__(self, weighted: bool = False, **options):
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 5, **options)
        self.weights = nn.Parameter(torch.linspace(0.2, 1.4, 14)) if weighted else None
        self.layers = nn.Sequential(nn.Tanh(), nn.Linear(5, 4))

    def forward(self, batch):
        indices, offsets = batch if isinstance(batch, tuple) else (batch, None)
        return self.layers(self.bag(indices, offsets, per_sample_weights=self.weights))


def network():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


INDICES = torch.arange(24).remainder(9).view(COUNT, 4)
FLAT = torch.tensor([1, 0, 5, 2, 2, 8, 7, 0, 3, 4, 6, 1, 0, 5])
STARTS = torch.tensor([0, 3, 3, 7, 8, 12])  # the second bag is empty
ENDED = torch.tensor([0, 3, 3, 7, 8, 12, 14])
INPUTS = torch.linspace(-1.5, 1.3, COUNT * 3, dtype=torch.float64).view(COUNT, 3).sin()
MASK = torch.tensor([True, True, False, False])

CASES = {
    "sum": (lambda: Bags(mode="sum"), F.cross_entropy, INDICES, LABELS),
    "mean": (lambda: Bags(mode="mean"), F.cross_entropy, INDICES, LABELS),
    "max": (lambda: Bags(mode="max"), F.cross_entropy, INDICES, LABELS),
    "offsets": (lambda: Bags(mode="mean"), F.cross_entropy, ((FLAT, STARTS),), LABELS),
    "last offset": (
        lambda: Bags(mode="sum", include_last_offset=True),
        F.cross_entropy,
        ((FLAT, ENDED),),
        LABELS,
    ),
    "32 bits": (
        lambda: Bags(mode="mean", padding_idx=0),
        F.cross_entropy,
        ((FLAT.int(), STARTS.int()),),
        LABELS,
    ),
    "padding": (lambda: Bags(mode="mean", padding_idx=0), F.cross_entropy, ((FLAT, STARTS),), LABELS),
    "largest, padding": (lambda: Bags(mode="max", padding_idx=0), F.cross_entropy, ((FLAT, STARTS),), LABELS),
    "weights": (lambda: Bags(weighted=True, mode="sum"), F.cross_entropy, ((FLAT, STARTS),), LABELS),
    "margin": (network, F.multi_margin_loss, INPUTS, LABELS),
    "squared margin": (network, lambda o, t: F.multi_margin_loss(o, t, p=2, margin=0.7), INPUTS, LABELS),
    "weighted margin": (
        network,
        nn.MultiMarginLoss(p=2, weight=torch.tensor([1.0, 0.5, 2.0, 0.1], dtype=torch.float64)),
        INPUTS,
        LABELS,
    ),
    "several labels": (network, F.multilabel_margin_loss, INPUTS, SEVERAL),
    "pairs": (network, lambda o, t: torch.pdist(o).sum(), INPUTS, LABELS),
    "fourth powers of pairs": (network, lambda o, t: F.pdist(o, p=4.0).mean(), INPUTS, LABELS),
    "cumulative": (network, lambda o, t: torch.logcumsumexp(3 * o, 1).square().mean(), INPUTS, LABELS),
    "cumulative, masked": (
        network,
        lambda o, t: torch.logcumsumexp(o.masked_fill(MASK, -torch.inf), 1)[:, 2:].square().mean(),
        INPUTS,
        LABELS,
    ),
    "cumulative over samples": (network, lambda o, t: o.logcumsumexp(dim=0).cos().mean(), INPUTS, LABELS),
}


def make(name):
    """The arguments of a summary of a case, in double precision."""
    build, loss_fn, inputs, targets = CASES[name]
    torch.manual_seed(3)
    model = build().double()
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    return model, loss_fn, inputs, targets, Partition.per_tensor(model), direction


@pytest.mark.parametrize("name", CASES)
def test_the_summary_is_that_of_finite_differences(name):
    model, loss_fn, inputs, targets, partition, direction = make(name)
    summary = summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")
    argument = inputs[0] if isinstance(inputs, tuple) else inputs
    gradient, hessian, third = oracles.finite_differences(
        model, loss_fn, argument, targets, partition, direction, step=1e-4
    )
    torch.testing.assert_close(summary.gradient, gradient, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(summary.hessian, hessian, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summary.third, third, rtol=1e-3, atol=1e-3)
    outputs = model(argument)
    assert summary.loss.item() == pytest.approx(loss_fn(outputs, targets).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["pairs", "fourth powers of pairs", "cumulative", "cumulative, masked"])
def test_the_reference_engine_has_the_same(name):
    tangent, reference = (summarize(*make(name), engine=engine) for engine in ("tangent", "reference"))
    for part in ("loss", "gradient", "hessian", "third"):
        torch.testing.assert_close(getattr(tangent, part), getattr(reference, part), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mean", "squared margin"])
def test_training_with_them_goes_down(name):
    build, loss_fn, inputs, targets = CASES[name]
    torch.manual_seed(0)
    model = build().double()
    optimizer = GroupedNewton(model, loss_fn)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step(batch=(inputs, targets))
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_what_no_engine_can_differentiate_is_one_line():
    model = nn.Linear(3, 20)
    lengths = torch.full((COUNT,), 5), torch.full((COUNT,), 2)

    def loss_fn(outputs, targets):
        scores = outputs.view(COUNT, 5, 4).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, targets, *lengths)

    targets = torch.tensor([[1, 2]] * COUNT)
    optimizer = GroupedNewton(model, loss_fn)
    inputs = INPUTS.float()
    loss_fn(model(inputs), targets).backward()
    with pytest.raises(SummaryError, match="torch has no second derivatives of ctc_loss, so no engine"):
        optimizer.step(batch=(inputs, targets))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("shapes", [((5, 3), (4, 3)), ((2, 1, 5, 3), (3, 4, 3))], ids=["matrices", "batches"])
def test_distances_written_out_are_those_of_torch(shapes, p):
    """They stand for ``cdist`` where torch has no second derivative of it."""
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(3)).double() for shape in shapes)
    x, y = x.requires_grad_(), (y + 0.3).requires_grad_()
    weights = torch.linspace(-1, 2, 20).double().view(5, 4)
    found, known = (
        torch.autograd.grad((function(x, y, p).tanh() * weights).sum(), [x, y], create_graph=True)
        for function in (smooth._all_distances, torch.cdist)
    )
    torch.testing.assert_close(smooth._all_distances(x, y, p), torch.cdist(x, y, p))
    torch.testing.assert_close(found, known)
    assert torch.autograd.gradcheck(
        lambda x: torch.autograd.grad(smooth._all_distances(x, y, p).tanh().sum(), x, create_graph=True)[0], x
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("rows", [slice(None), 0], ids=["batch", "one sample"])
def test_the_margin_of_several_labels_written_out_is_that_of_torch(rows, reduction):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)).double()[rows].requires_grad_()
    number = ["none", "mean", "sum"].index(reduction)
    found, labels = smooth._multilabel_margin_loss(x, SEVERAL[rows], number)
    known, known_labels = torch.ops.aten.multilabel_margin_loss_forward(x.detach(), SEVERAL[rows], number)
    torch.testing.assert_close(found.detach(), known)
    torch.testing.assert_close(labels, known_labels)
    (slope,) = torch.autograd.grad(found.sum(), x)
    (known_slope,) = torch.autograd.grad(
        F.multilabel_margin_loss(x, SEVERAL[rows], reduction=reduction).sum(), x
    )
    torch.testing.assert_close(slope, known_slope)
