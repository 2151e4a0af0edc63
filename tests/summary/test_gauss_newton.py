"""The Gauss–Newton matrix: every engine against the dense one, on every network and loss of the zoo."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from gnewton.errors import InputError
from gnewton.summary import summarize
from gnewton.summary.tangent.output_engine import OutputEngine, symmetric_product

from . import zoo
from .operations import Net
from .test_zoo import difference
from .ways import by, summarizer_by


def dense(model, loss_fn, inputs, targets, partition, direction):
    """Uᵀ Jᵀ ∇²ℓ J U from the full Jacobian of the outputs and the full Hessian of the loss in them."""
    theta = {name: p.detach() for name, p in model.named_parameters()}
    state = torch.get_rng_state()

    def outputs(*values):
        torch.set_rng_state(state)
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        return functional_call(model, {**dict(zip(theta, values, strict=True)), **buffers}, (inputs,))

    with sdpa_kernel(SDPBackend.MATH):
        z = outputs(*theta.values()).detach()
        rows = torch.autograd.functional.jacobian(outputs, tuple(theta.values()))
    torch.set_rng_state(state)
    jacobian = dict(zip(theta, rows, strict=True))
    curvature = torch.autograd.functional.hessian(lambda z: loss_fn(z, targets), z)
    curvature = curvature.reshape(z.numel(), z.numel())
    columns = torch.zeros(z.numel(), len(partition), dtype=z.dtype)
    for name, s in partition.index.items():
        columns[:, s] += jacobian[name].reshape(z.numel(), -1) @ direction[name].reshape(-1)
    return columns.T @ curvature @ columns


# l1 is linear in the outputs; activations are of one kind here
CASES = [n for n in zoo.CASES if n != "l1" and not n.startswith("act_")]


@pytest.mark.parametrize("name", CASES)
def test_engines_agree_with_the_dense_matrix(name):
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    partitions = zoo.partitions(model)
    for kind in ("per_tensor", "ends") if "ends" in partitions else ("per_tensor",):
        partition = partitions[kind]
        arguments = (model, loss_fn, inputs, targets, partition, direction)
        fast = summarize(*arguments, curvature="gauss_newton", engine="tangent")
        exact = dense(*arguments)
        assert difference(fast.hessian, exact) < 1e-10, kind
        assert fast.matrix == "gauss_newton"
        assert fast.third is None
        if kind == "per_tensor":
            slow = summarize(*arguments, curvature="gauss_newton", engine="reference")
            full = summarize(*arguments, engine="tangent")
            assert difference(slow.hessian, exact) < 1e-10
            for summary in (fast, slow):
                assert difference(summary.gradient, full.gradient) < 1e-10
                assert difference(summary.loss, full.loss) < 1e-12


def concave(outputs, targets):
    return F.cross_entropy(outputs, targets) - outputs.square().mean()


@pytest.mark.parametrize("engine", ["tangent", "reference"])
@pytest.mark.parametrize(
    ("loss_fn", "match"),
    [(concave, "not convex"), (lambda o, t: o.mean(), "linear"), (F.nll_loss, "linear")],
)
def test_losses_without_a_matrix_are_refused(loss_fn, match, engine):
    model, _, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    with pytest.raises(InputError, match=match):
        summarize(
            model, loss_fn, inputs, targets, partition, direction, curvature="gauss_newton", engine=engine
        )


@pytest.mark.parametrize("engine", ["tangent", "reference"])
def test_log_probabilities_of_the_model_count_as_logits(engine):
    model, _, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]
    options = {"curvature": "gauss_newton", "engine": engine}
    logits = summarize(model, F.cross_entropy, inputs, targets, partition, direction, **options)
    model = nn.Sequential(*model, nn.LogSoftmax(1))
    logs = summarize(model, nn.NLLLoss(), inputs, targets, partition, direction, **options)
    assert difference(logs.hessian, logits.hessian) < 1e-12
    assert difference(logs.gradient, logits.gradient) < 1e-12


@pytest.mark.parametrize("engine", ["tangent", "reference"])
def test_a_penalty_of_the_parameters_keeps_its_curvature(engine):
    model, _, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["per_tensor"]

    def penalised(outputs, targets):
        return F.cross_entropy(outputs, targets) + 0.3 * sum(p.square().sum() for p in model.parameters())

    options = {"curvature": "gauss_newton", "engine": engine}
    plain = summarize(model, F.cross_entropy, inputs, targets, partition, direction, **options)
    summary = summarize(model, penalised, inputs, targets, partition, direction, **options)
    squares = torch.stack([direction[group.parameters[0]].square().sum() for group in partition])
    assert difference(summary.hessian, plain.hessian + 0.6 * torch.diag(squares)) < 1e-12


def two_outputs():
    """A network with two outputs, and a loss that couples them within a sample."""
    base, _, inputs, targets, direction = zoo.make("mlp")

    def both(m, x):
        z = m.base(x)
        return {"class": z, "rest": z[:, :2].tanh()}

    def loss_fn(outputs, targets):
        gap = outputs["class"][:, 0] - outputs["rest"].sum(1)
        return F.cross_entropy(outputs["class"], targets) + gap.square().mean()

    model = Net(both, base=base)
    direction = {f"base.{name}": u for name, u in direction.items()}
    return model, loss_fn, inputs, targets, zoo.partitions(model)["per_tensor"], direction


def test_several_outputs_have_rows():
    arguments = two_outputs()
    rows, way = by("rows", arguments)
    model, loss_fn, *rest = arguments
    slow = summarize(model, loss_fn, *rest, curvature="gauss_newton", engine="reference")
    assert way == "rows"
    assert difference(rows.hessian, slow.hessian) < 1e-10
    assert difference(rows.gradient, slow.gradient) < 1e-10


def test_an_output_in_which_the_loss_is_linear_has_no_curvature():
    model, _, inputs, targets, partition, direction = two_outputs()

    def loss_fn(outputs, targets):
        return outputs["class"].square().mean() + outputs["rest"].mean()

    rows, way = by("rows", (model, loss_fn, inputs, targets, partition, direction))
    slow = summarize(
        model, loss_fn, inputs, targets, partition, direction, curvature="gauss_newton", engine="reference"
    )
    assert way == "rows"
    assert difference(rows.hessian, slow.hessian) < 1e-10
    assert difference(rows.gradient, slow.gradient) < 1e-10


def test_few_columns_at_a_time():
    arguments = two_outputs()
    whole, _ = by("rows", arguments)
    summarizer = summarizer_by("rows", arguments[0], arguments[1], arguments[4], max_memory=1)
    summarizer.tangent_engine._parts = lambda size: 1
    parts = summarizer.summarize(arguments[2], arguments[3], arguments[5])
    assert difference(parts.hessian, whole.hessian) < 1e-12
    assert difference(parts.gradient, whole.gradient) < 1e-12


def test_a_loss_that_is_convex_on_average_takes_tangents(monkeypatch):
    """Rows are the cheaper way, but one sample has a negative weight."""
    model, _, inputs, _, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["single"]
    weight = torch.tensor([[-0.1], [1.0], [2.0], [1.0], [1.0], [3.0]], dtype=torch.float64)
    arguments = (model, lambda o, t: (weight * o.square()).mean(), inputs, None, partition, direction)
    monkeypatch.setattr(OutputEngine, "_cheaper", lambda *_: True)
    summary, way = by("auto", arguments)
    assert way == "tangents"
    assert difference(summary.hessian, dense(*arguments)) < 1e-10
    with pytest.raises(InputError, match="not convex"):
        by("rows", arguments)


@pytest.mark.parametrize("size", [1, 511, 1300])
def test_symmetric_products_agree_with_plain_ones(size):
    a = torch.randn(size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    weights = torch.tensor([0.5, 0.0, 2.0]).double()
    product = symmetric_product(a * weights, a)
    assert torch.equal(product, product.T)
    torch.testing.assert_close(product, (a * weights) @ a.T)


# coupled samples, or a loss that reads parameters
WITHOUT_ROWS = {
    "norms_1d", "norms_3d", "batch_norm", "batch_norm_tanh", "batch_norm_plain", "reductions", "views",
    "reuse", "several_losses", "distances",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in CASES if n != "entrywise"])
def test_rows_agree_with_tangents(name):
    """Rows are used where samples are independent; coupled samples are recognised."""
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    partitions = zoo.partitions(model)
    partition = partitions.get("ends", partitions["per_tensor"])
    arguments = (model, loss_fn, inputs, targets, partition, direction)
    rows, way = by("rows", arguments)
    tangents, _ = by("tangents", arguments)
    assert way == ("tangents" if name in WITHOUT_ROWS else "rows")
    assert difference(rows.hessian, tangents.hessian) < 1e-10
    assert difference(rows.gradient, tangents.gradient) < 1e-10
