"""The reference engine against independent float64 answers and the identities every summary obeys."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.errors import InputError
from gnewton.partition import Partition
from gnewton.summary import Summarizer, summarize, summary_tensor

from . import oracles


def direction_of(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for n, p in model.named_parameters()
    }


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    inputs, targets = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 3, (5,))
    return model, F.cross_entropy, inputs, targets, Partition.per_tensor(model), direction_of(model)


def test_agrees_with_finite_differences(case):
    summary = summarize(*case[:4], *case[4:], engine="reference")
    gradient, hessian, third = oracles.finite_differences(*case[:4], *case[4:])
    torch.testing.assert_close(summary.gradient, gradient, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(summary.hessian, hessian, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(summary.third, third, rtol=1e-3, atol=1e-3)


def test_agrees_with_the_dense_hessian(case):
    summary = summarize(*case, engine="reference")
    gradient, hessian = oracles.dense(*case)
    torch.testing.assert_close(summary.gradient, gradient, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(summary.hessian, hessian, rtol=1e-12, atol=1e-12)


class Quadratic(nn.Module):
    """½ θᵀAθ − bᵀθ, called with an empty tensor."""

    def __init__(self, n=4):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        root = torch.randn(n, n, generator=generator, dtype=torch.float64)
        self.register_buffer("a", root @ root.T)
        self.register_buffer("b", torch.randn(n, generator=generator, dtype=torch.float64))
        self.theta = nn.ParameterList([torch.ones((), dtype=torch.float64) * i for i in range(n)])

    def forward(self, inputs):
        theta = torch.stack(list(self.theta))
        return 0.5 * theta @ self.a @ theta - self.b @ theta


def test_closed_form_quadratic():
    model = Quadratic()
    u = direction_of(model)
    empty = torch.empty(0)
    summary = summarize(
        model, lambda o, t: o.mean(), empty, empty, Partition.per_tensor(model), u, engine="reference"
    )
    vector = torch.stack([u[n] for n in u])
    theta = torch.stack([p.detach() for p in model.theta])
    torch.testing.assert_close(summary.gradient, (model.a @ theta - model.b) * vector)
    torch.testing.assert_close(summary.hessian, vector[:, None] * model.a * vector)
    assert summary.third.abs().max() == 0


def test_homogeneity(case):
    *head, u = case
    base, scaled = summarize(*head, u), summarize(*head, {n: 3.0 * v for n, v in u.items()})
    torch.testing.assert_close(scaled.gradient, 3 * base.gradient)
    torch.testing.assert_close(scaled.hessian, 9 * base.hessian)
    torch.testing.assert_close(scaled.third, 27 * base.third)


def test_coarsening_sums_entries(case):
    model, loss_fn, inputs, targets, fine, u = case
    coarse = Partition.from_names(model, [["0.weight", "2.bias"], ["0.bias", "2.weight"]])
    merge = torch.zeros(2, 4, dtype=torch.float64)
    for name, s in fine.index.items():
        merge[coarse.index[name], s] = 1
    fine_summary = summarize(model, loss_fn, inputs, targets, fine, u)
    summary = summarize(model, loss_fn, inputs, targets, coarse, u)
    torch.testing.assert_close(summary.gradient, merge @ fine_summary.gradient)
    torch.testing.assert_close(summary.hessian, merge @ fine_summary.hessian @ merge.T)
    cube = summary_tensor(model, loss_fn, inputs, targets, fine, u, order=3)
    merged = torch.einsum("ai,bj,ck,ijk->abc", merge, merge, merge, cube)
    torch.testing.assert_close(summary_tensor(model, loss_fn, inputs, targets, coarse, u, order=3), merged)
    torch.testing.assert_close(summary.third, torch.einsum("aaa->a", merged))


def test_rescaling_multiplies_by_powers_of_the_scale(case):
    model, loss_fn, inputs, targets, partition, u = case
    base = summarize(*case)
    scale = torch.tensor([0.5, 2.0, 3.0, 0.1], dtype=torch.float64)

    class Rescaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ParameterDict(
                {
                    n.replace(".", "_"): p.detach() / scale[partition.index[n]]
                    for n, p in model.named_parameters()
                }
            )

        def forward(self, x):
            theta = {n: self.inner[n.replace(".", "_")] * scale[partition.index[n]] for n in partition.index}
            return torch.func.functional_call(model, theta, (x,))

    rescaled = Rescaled()
    # the gradient direction: ũ_s = a_s u_s
    moved = {"inner." + n.replace(".", "_"): scale[partition.index[n]] * v for n, v in u.items()}
    groups = Partition.from_names(rescaled, [["inner." + n.replace(".", "_")] for n in partition.index])
    summary = summarize(rescaled, loss_fn, inputs, targets, groups, moved)
    square = scale**2
    torch.testing.assert_close(summary.gradient, square * base.gradient)
    torch.testing.assert_close(summary.hessian, square[:, None] * base.hessian * square)
    torch.testing.assert_close(summary.third, square**3 * base.third)


def test_summary_tensor_of_low_orders_is_the_summary(case):
    summary = summarize(*case, engine="reference")
    torch.testing.assert_close(summary_tensor(*case, order=0), summary.loss)
    torch.testing.assert_close(summary_tensor(*case, order=1), summary.gradient)
    torch.testing.assert_close(summary_tensor(*case, order=2), summary.hessian)
    cube = summary_tensor(*case, order=3)
    torch.testing.assert_close(torch.einsum("aaa->a", cube), summary.third)
    assert torch.equal(cube, cube.permute(2, 0, 1))
    with pytest.raises(InputError, match="order=-1"):
        summary_tensor(*case, order=-1)


def test_fourth_order_of_a_scalar_function():
    model = nn.ParameterList([torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)])

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = model

        def forward(self, x):
            return torch.exp(self.p[0]) * self.p[1] ** 2

    net = Product()
    u = {"p.0": torch.tensor(1.0, dtype=torch.float64), "p.1": torch.tensor(1.0, dtype=torch.float64)}
    empty = torch.empty(0)
    tensor = summary_tensor(net, lambda o, t: o, empty, empty, Partition.per_tensor(net), u, order=4)
    e = torch.exp(torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(tensor[0, 0, 1, 1], 2 * e)
    torch.testing.assert_close(tensor[1, 1, 1, 1], 0 * e)
    torch.testing.assert_close(tensor[0, 0, 0, 1], 2 * 0.7 * e)


def test_diagonal_and_third_are_optional(case):
    full = summarize(*case, engine="reference")
    lean = summarize(*case, engine="reference", third=False, diagonal=True)
    assert lean.third is None
    assert lean.hessian.shape == (4,)
    torch.testing.assert_close(lean.hessian, full.curvature)
    torch.testing.assert_close(lean.curvature, full.curvature)


def test_bad_arguments_are_refused(case):
    model, loss_fn, inputs, targets, partition, u = case
    with pytest.raises(InputError, match=r"lacks 2\.bias"):
        summarize(model, loss_fn, inputs, targets, partition, {n: v for n, v in u.items() if n != "2.bias"})
    with pytest.raises(InputError, match=r"'0.bias' has shape \(1,\)"):
        summarize(model, loss_fn, inputs, targets, partition, {**u, "0.bias": torch.ones(1)})
    with pytest.raises(InputError, match="did you mean 'tangent'"):
        Summarizer(model, loss_fn, partition, engine="tangents")
    with pytest.raises(InputError, match="scalar"):
        summarize(model, lambda o, t: o, inputs, targets, partition, u)
    other = nn.Linear(2, 2)
    with pytest.raises(InputError, match="disagree about"):
        Summarizer(other, loss_fn, partition)
