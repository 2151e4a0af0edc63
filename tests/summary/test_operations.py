"""Operations that torch knows samples for: both engines and finite differences of the loss, in float64.

An operation that is wrong in one of them fails here, in a future version of torch as well. Every second one
is tried, and all of them with ``GNEWTON_THOROUGH=1``; those with a rule of their own are in the zoo as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import types
import unittest
import warnings
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from gnewton.partition import Partition
from gnewton.summary import Summarizer, SummaryError, summarize
from gnewton.summary.isolation import without_side_effects
from gnewton.summary.problem import Problem, Request
from gnewton.summary.reference import reference_summary
from gnewton.summary.tangent import checks, tracing
from gnewton.summary.tangent.passes import Arguments, run_passes
from gnewton.summary.tangent.plan import make_plan
from gnewton.summary.tangent.rules import general
from tests.thorough import count

from .oracles import along

# read only one half of a matrix that is meant to be symmetric or triangular
SYMMETRIC = (
    "cholesky", "cholesky_ex", "linalg.cholesky", "linalg.cholesky_ex", "linalg.eigh", "linalg.eigvalsh",
    "linalg.matrix_sqrth", "symeig", "linalg.pinv.hermitian",
)  # fmt: skip
TRIANGULAR = ("cholesky_inverse", "triangular_solve", "linalg.solve_triangular", "cholesky_solve")
FIRST_VALUE = ("native_layer_norm", "native_group_norm")  # the others are statistics, which no model reads

# operations that allow no comparison
LEFT_OUT = {
    "bfloat16": "half precision",
    "half": "half precision",
    "float": "single precision",
    "normal": "draws random numbers by its own rule",
    "normal.number_mean": "draws random numbers by its own rule",
    "native_batch_norm": "moves the running statistics that it is given",
    "_native_batch_norm_legit": "moves the running statistics that it is given",
    "bernoulli": "draws random numbers by its own rule",
}
# neither engine has the derivatives: torch has no third, or not even a second backward pass
IMPOSSIBLE = {
    "nn.functional.ctc_loss": "no second backward pass",
    "nn.functional.linear_cross_entropy.chunked_none": "no second backward pass",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu": "no second backward pass",
    "_segment_reduce.lengths": "no second backward pass",
    "_segment_reduce.offsets": "no second backward pass",
    "to_sparse": "sparse tensors",
    "sparse.sampled_addmm": "sparse tensors",
    "sparse.mm.reduce": "sparse tensors",
}


def operations():
    """torch's own table of operations with samples of their arguments; it belongs to torch's tests."""
    if "expecttest" not in sys.modules:
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase  # all that importing the table takes
        sys.modules["expecttest"] = stand_in
    try:
        # the import would forbid every later test in this process to set a flag of a backend
        with mock.patch.object(torch.backends, "disable_global_flags", return_value=None):
            from torch.testing._internal.common_methods_invocations import op_db
    except Exception as error:
        pytest.skip(f"torch's table of operations cannot be imported: {error}")
    return [op for op in op_db if torch.float64 in op.dtypes and op.supports_autograd][:: count(2, 1)]


class Operation(nn.Module):
    """One operation, whose tensors are parameters, bent a little so that they curve along a direction."""

    def __init__(self, op, name, sample):
        super().__init__()
        self.op, self.name = op, name
        self.leaves, self.spec = pytree.tree_flatten(((sample.input, *sample.args), sample.kwargs))
        self.process = sample.output_process_fn_grad
        self.at = [i for i, x in enumerate(self.leaves) if self.moves(x)]
        self.base = [self.leaves[i].detach().clone() for i in self.at]
        self.moving = nn.ParameterList([x.clone() for x in self.base])

    @staticmethod
    def moves(x):
        strided = isinstance(x, torch.Tensor) and x.layout == torch.strided
        return strided and x.dtype == torch.float64 and x.numel() > 0

    def forward(self, _):
        leaves = list(self.leaves)
        for i, p, base in zip(self.at, self.moving, self.base, strict=True):
            x = p + 0.3 * (p - base) ** 2
            if self.name in SYMMETRIC and x.dim() > 1:
                x = (x + x.mT) / 2
            if self.name in TRIANGULAR and x.dim() > 1 and x.shape[-1] == x.shape[-2]:
                upper = self.leaves[-1] is True or self.name == "triangular_solve"
                x = x.triu() if upper else x.tril()
            leaves[i] = x
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        out = self.op.op(*args, **kwargs)
        return out[0] if self.name in FIRST_VALUE else self.process(out)


def smooth(out):
    return [x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor) and x.is_floating_point()]


@functools.cache
def weights(shape):
    """Those of the plane and of the square in :func:`loss`; cached, so that no trace computes them."""
    n = torch.arange(shape.numel(), dtype=torch.float64)
    return (1.3 * n + 0.5).cos().reshape(shape), (2.1 * n).sin().reshape(shape) / max(shape.numel(), 1) ** 0.5


def loss(out, _):
    """A plane and half a square of every output: it reads first and second derivatives of the operation."""
    total = 0.0
    for x in smooth(out):
        plane, ridge = weights(x.shape)
        total = total + (plane * x).sum() + 0.5 * (ridge * x).sum().square()
    return total


def networks():
    """(name, network) of every operation that has something to differentiate; the first small sample."""
    for op in operations():
        name = op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")
        if name in LEFT_OUT:
            continue
        torch.manual_seed(0)
        for sample in op.sample_inputs("cpu", torch.float64, requires_grad=False):
            if isinstance(sample.input, torch.Tensor) and not 1 < sample.input.numel() <= 200:
                continue
            try:
                network = Operation(op, name, sample)
                torch.manual_seed(1)
                value = loss(network(None), None)
            except (RuntimeError, TypeError, ValueError, NotImplementedError):
                continue  # a sample of an error, or sparse
            if isinstance(value, torch.Tensor) and value.requires_grad and value.isfinite():
                yield name, network
                break


ZERO = torch.zeros(1, dtype=torch.float64)


def by_tangents(problem, direction):
    """The passes alone; None where the operation cannot be traced."""
    torch.manual_seed(2)
    program = tracing.trace(problem, ZERO, ZERO)
    plan = make_plan(program, problem.partition, third=True, diagonal=False)
    leaves = pytree.tree_leaves((problem.constants(), ZERO, ZERO))
    with without_side_effects(problem):
        passes = run_passes(plan, Arguments(problem.parameters(), leaves, direction))
    checks.report_disagreement(checks.disagreement(passes, torch.float64), problem.partition.names)
    sums, order = passes.sums, list(plan.order)
    at = [order.index(s) for s in range(len(order))]
    return torch.stack([sums.gradient[at], sums.hessian.diagonal()[at], sums.third[at]], 1), sums.hessian[at][
        :, at
    ]


def by_reverse(problem, direction):
    torch.manual_seed(2)
    summary = reference_summary(problem, Request(ZERO, ZERO, direction))
    return torch.stack([summary.gradient, summary.hessian.diagonal(), summary.third], 1), summary.hessian


def disagreement(numbers, network, direction):
    """The orders in which ``numbers`` differ from finite differences along the parameters by every step."""
    parameters = dict(network.named_parameters())

    def phi(name, e):
        torch.manual_seed(2)
        start = parameters[name].detach().clone()
        with torch.no_grad():
            parameters[name].copy_(start + e * direction[name])
            try:
                return float(loss(network(ZERO), ZERO))
            except RuntimeError:  # out of its domain
                return float("nan")
            finally:
                parameters[name].copy_(start)

    rows, orders = [], []
    for h in (0.01, 0.003, 0.03, 0.001):  # the first is enough for most
        rows.append([along(lambda e, n=name: phi(n, e), h) for name in parameters])
        orders = off(numbers, torch.tensor(rows, dtype=torch.float64).transpose(0, 1))
        if not orders:
            break
    return orders


def far(a, b, tolerance):
    """Whether finite numbers differ; what is not finite is not silently wrong."""
    both = a.isfinite() & b.isfinite()
    scale = torch.where(both, b, 0).norm() + 1e-6
    return bool(torch.where(both, a - b, 0).norm() > tolerance * scale)


def off(exact, differences):
    """The orders in which exact numbers differ from differences (groups, steps, 3) by every step."""
    gap = (differences - exact[:, None]).abs()
    size = exact.abs().amax(1)[:, None, None] + 1e-6  # the largest of the three derivatives along a group
    best = torch.nan_to_num(gap / size, nan=torch.inf).amin(1)
    best[~best.isfinite()] = 0.0  # beyond the domain at every step, or no number at all
    return [order for order, error in enumerate(best.amax(0).tolist(), start=1) if error > 2e-3]


# where finite differences say nothing, or torch's first derivative is not that of the operation
UNEVEN = {
    "as_strided_scatter": "torch's gradient counts overlapping memory once",
    "nn.functional.max_unpool3d": "torch's gradient counts positions written twice",
    "corrcoef": "clipped at one, where its diagonal lies",
    "linalg.norm.subgradients_at_zero": "at a kink",
    "cdist": "many kinks: p = 1",
    "round.decimals_0": "steps",
    "round.decimals_3": "steps",
    "nn.functional.cosine_embedding_loss": "its targets, 1 and -1, are among what moves",
    "nn.functional.hinge_embedding_loss": "its targets, 1 and -1, are among what moves",
}


@pytest.mark.slow
def test_engines_and_finite_differences_agree_on_operations(monkeypatch):
    monkeypatch.setattr(general, "FEW", 0)  # forward mode, after a comparison with reverse mode
    wrong, untraced, impossible, tried = [], [], [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, network in networks():
            tried += 1
            generator = torch.Generator().manual_seed(7)
            direction = {
                n: 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
                for n, p in network.named_parameters()
            }
            problem = Problem(network, loss, Partition.per_tensor(network))
            answers = {}
            for engine in (by_tangents, by_reverse):
                with contextlib.suppress(SummaryError, RuntimeError, NotImplementedError):
                    answers[engine] = engine(problem, direction)
            if not answers:
                impossible.append(name)
                continue
            if by_tangents not in answers:
                untraced.append(name)
            if len(answers) == 2:
                (a, h), (b, k) = answers[by_tangents], answers[by_reverse]
                if far(a, b, 1e-7) or far(h, k, 1e-7):
                    wrong.append(f"{name}: tangents {a.tolist()}, reverse {b.tolist()}")
                    continue
            numbers = next(iter(answers.values()))[0]
            orders = disagreement(numbers, network, direction)
            if orders and name not in UNEVEN:
                wrong.append(f"{name}: finite differences disagree in order {orders}")
    assert tried > count(200, 400)
    assert not wrong, "\n".join(wrong)
    assert set(impossible) <= set(IMPOSSIBLE)
    print(f"{tried} operations; by the reference engine alone: {', '.join(untraced)}")


def test_an_operation_of_wrong_forward_mode_goes_by_reverse_mode(monkeypatch):
    """Detected by comparison, where no table lists it."""
    monkeypatch.setattr(general, "FEW", 0)
    monkeypatch.setattr(general, "WRONG", {})
    monkeypatch.setattr(general, "_verdicts", {})
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False).double()
    inputs = torch.randn(9, 4, dtype=torch.float64)
    direction = {"weight": 0.3 * torch.randn(4, 4, dtype=torch.float64)}
    eye = torch.eye(4, dtype=torch.float64)
    for loss_fn in (
        lambda o, t: torch.logdet(o.T @ o / 9 + eye),
        lambda o, t: torch.det(o.T @ o / 9 + eye),
        lambda o, t: (torch.linalg.solve(o.T @ o / 9 + eye, t.T) * o.T).mean(),
    ):
        partition = Partition.per_tensor(model)
        fast, slow = (Summarizer(model, loss_fn, partition, engine=e) for e in ("tangent", "reference"))
        for k in range(2):
            a, b = (s.summarize(inputs + k, inputs, direction) for s in (fast, slow))
            torch.testing.assert_close(a.third, b.third, rtol=1e-9, atol=1e-12)
    assert not all(general._verdicts.values())


class Products(nn.Module):
    """Products of entries: an operation without a rule of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.cumprod(self.layer(x), 1)


def test_few_groups_go_by_reverse_mode_alone(monkeypatch):
    monkeypatch.setattr(general, "_by_forward_mode", None)
    torch.manual_seed(0)
    model, inputs = Products().double(), torch.randn(5, 4, dtype=torch.float64)
    arguments = (model, lambda o, t: o.square().mean(), inputs, None, "per_tensor")
    direction = [torch.randn_like(p) for p in model.parameters()]
    fast, slow = (summarize(*arguments, direction, engine=e) for e in ("tangent", "reference"))
    torch.testing.assert_close(fast.hessian, slow.hessian, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fast.third, slow.third, rtol=1e-10, atol=1e-12)


def test_forward_mode_answers_where_reverse_mode_has_no_number(monkeypatch):
    """Reverse mode comes first; where one of its derivatives is not finite, forward mode may have it."""
    right = general.reverse_parts

    def without_numbers(site):
        parts = right(site)
        return dataclasses.replace(parts, third=parts.third * torch.nan)

    torch.manual_seed(0)
    model, inputs = Products().double(), torch.randn(5, 4, dtype=torch.float64)
    arguments = (model, lambda o, t: o.square().mean(), inputs, None, "per_tensor")
    direction = [torch.randn_like(p) for p in model.parameters()]
    slow = summarize(*arguments, direction, engine="reference")
    monkeypatch.setattr(general, "_verdicts", {})
    monkeypatch.setattr(general, "reverse_parts", without_numbers)
    fast = summarize(*arguments, direction, engine="tangent")
    torch.testing.assert_close(fast.third, slow.third, rtol=1e-10, atol=1e-12)
