"""Several directions per group: the stacked summary against oracles, and the steps it leads to."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gnewton import GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.optim.averaging import NoAveraging
from gnewton.optim.grouping import Grouping
from gnewton.optim.measure import Measurer, Objective, Stack
from gnewton.summary import Summarizer
from tests.optim.problems import (
    EXACT,
    NOTHING,
    Quadratic,
    advance,
    classification,
    take_step,
    tanh_net,
    value,
)

SGD = partial(torch.optim.SGD, lr=1.0)
MOMENTUM = partial(torch.optim.SGD, lr=1.0, momentum=0.9)
BARE: dict[str, Any] = {
    **EXACT,
    "period": 1,
    "step_size": 1.0,
    "internal_damping": 0.0,
    "negative_rates": "keep",
    "normalise": False,
    "proximal": 0.0,
    "averaging": NoAveraging(),
    "warmup": 0,
}


class Tied(nn.Module):
    """A tied and a frozen parameter, a buffer, a convolution, a normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm1d(3)
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.full((12,), 1.5), requires_grad=False)
        self.last = nn.Linear(12, 3)
        self.register_buffer("shift", torch.linspace(0, 1, 12))
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.conv(inputs.unsqueeze(1)))).flatten(1)
        hidden = torch.nn.functional.elu(self.first(hidden) + self.shift)
        return self.last(torch.sigmoid(self.second(hidden)) * self.scale)


MODELS = {"tanh": tanh_net, "tied": Tied}


def directions(grouping: Grouping, count: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in grouping.parameters]
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("engine", ["tangent", "reference"])
def test_the_stacked_summary_is_that_of_the_dense_derivatives(name: str, count: int, engine: Any) -> None:
    """φ(ε) = L(θ + Σ_s Σ_j ε_sj P_s u_j): ∇φ, ∇²φ and ∂³φ/∂ε³ by differentiation over ε alone."""
    torch.manual_seed(1)
    model = MODELS[name]()
    partition = Partition.by_layer(model) if name == "tanh" else Partition.per_tensor(model)
    grouping = Grouping(model, partition)
    several = directions(grouping, count)
    labels = tuple(f"d{j}" for j in range(count))
    inputs, targets = classification(7)
    measurer = Measurer(Objective(model, F.cross_entropy, engine=engine), grouping, labels=labels)
    buffers = {key: b.clone() for key, b in model.named_buffers()}
    summary = measurer.measure(inputs, targets, several, [0.0] * len(grouping.names))
    assert all(torch.equal(buffers[key], b) for key, b in model.named_buffers())
    values = {key: p.detach() for key, p in model.named_parameters()}

    def phi(epsilon: Tensor) -> Tensor:
        moved = dict(values)
        for i, key in enumerate(grouping.names):
            row = grouping.owner[i] * count
            moved[key] = values[key] + sum(epsilon[row + j] * several[j][i] for j in range(count))
        state = {key: b.clone() for key, b in buffers.items()}
        return F.cross_entropy(functional_call(model, {**moved, **state}, (inputs,)), targets)

    zero = torch.zeros(len(partition) * count, dtype=torch.float64)
    # not by torch.func: batch_norm has wrong second derivatives in its transforms (torch 2.14)
    gradient = torch.autograd.functional.jacobian(phi, zero)
    torch.testing.assert_close(summary.gradient, gradient, rtol=1e-10, atol=1e-12)
    hessian = torch.autograd.functional.hessian(phi, zero)
    torch.testing.assert_close(summary.hessian, hessian, rtol=1e-9, atol=1e-10)
    step = 1e-4
    third = []
    for row in torch.eye(len(zero), dtype=torch.float64):  # batch_norm has no third derivatives in torch
        bends = []
        for at in (-2 * step, -step, step, 2 * step):
            t = torch.tensor(at, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(phi(t * row), t, create_graph=True)
            bends.append(torch.autograd.grad(slope, t)[0])
        third.append((bends[0] - 8 * bends[1] + 8 * bends[2] - bends[3]) / (12 * step))
    torch.testing.assert_close(summary.third, torch.stack(third), rtol=1e-7, atol=1e-7)
    assert summary.loss == pytest.approx(float(phi(zero)), rel=1e-13)
    assert tuple(measurer.places)[:count] == tuple(f"{partition.names[0]}:{label}" for label in labels)
    norms = [
        torch.cat([u.flatten() for u, o in zip(several[j], grouping.owner, strict=True) if o == s]).norm()
        for s in range(len(partition))
        for j in range(count)
    ]
    torch.testing.assert_close(summary.norms, torch.stack(norms))


def test_the_stacked_gradient_and_hessian_are_the_differences_of_the_loss() -> None:
    model = tanh_net()
    grouping = Grouping(model, Partition.weights_biases(model))
    several = directions(grouping, 2)
    inputs, targets = classification(9)
    measurer = Measurer(Objective(model, F.cross_entropy), grouping, labels=("a", "b"))
    summary = measurer.measure(inputs, targets, several, [0.0] * len(grouping.names))
    start = [p.detach().clone() for p in grouping.parameters]

    def loss(epsilon: dict[int, float]) -> float:
        with torch.no_grad():
            for i, p in enumerate(grouping.parameters):
                p.copy_(start[i])
                for row, e in epsilon.items():
                    if row // 2 == grouping.owner[i]:
                        p.add_(several[row % 2][i], alpha=e)
            return float(F.cross_entropy(model(inputs), targets))

    h = 1e-4
    for a in range(4):
        slope = (loss({a: h}) - loss({a: -h})) / (2 * h)
        assert float(summary.gradient[a]) == pytest.approx(slope, rel=1e-5, abs=1e-7)
        for b in range(4):
            if a != b:
                pairs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
                bend = sum(i * j * loss({a: i * h, b: j * h}) for i, j in pairs) / (4 * h * h)
                assert float(summary.hessian[a, b]) == pytest.approx(bend, rel=1e-4, abs=1e-5)


def test_both_engines_agree_on_a_diagonal_without_third() -> None:
    model = Tied()
    grouping = Grouping(model, Partition.per_tensor(model))
    several = directions(grouping, 2)
    batch = classification(6)
    none = [0.0] * len(grouping.names)
    summaries = [
        Measurer(
            Objective(model, F.cross_entropy, engine=engine),
            grouping,
            labels=("a", "b"),
            diagonal=diagonal,
            third=False,
        ).measure(*batch, several, none)
        for engine in ("tangent", "reference")
        for diagonal in (True, False)
    ]
    for summary in summaries[1:]:
        diagonal = summary.hessian if summary.hessian.dim() == 1 else summary.hessian.diagonal()
        torch.testing.assert_close(diagonal, summaries[0].hessian, rtol=1e-10, atol=1e-12)
        assert not summary.third.any()


def test_coupled_weight_decay_enters_every_entry() -> None:
    model = tanh_net()
    grouping = Grouping(model, Partition.weights_biases(model))
    several = directions(grouping, 2)
    decay = [0.1 * (i + 1) for i in range(len(grouping.names))]
    batch = classification(6)
    measurer = Measurer(Objective(model, F.cross_entropy), grouping, labels=("a", "b"))
    plain = measurer.measure(*batch, several, [0.0] * len(decay))
    summary = measurer.measure(*batch, several, decay)

    def regular(epsilon: Tensor) -> Tensor:
        total = epsilon.new_zeros(())
        for i, p in enumerate(grouping.parameters):
            row = 2 * grouping.owner[i]
            moved = p.detach() + epsilon[row] * several[0][i] + epsilon[row + 1] * several[1][i]
            total = total + decay[i] / 2 * moved.square().sum()
        return total

    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(summary.gradient - plain.gradient, torch.func.grad(regular)(zero))
    torch.testing.assert_close(summary.hessian - plain.hessian, torch.func.hessian(regular)(zero))


def test_gradient_and_last_step_with_one_group_are_conjugate_gradients() -> None:
    """On a quadratic the best step in the plane of gradient and last step ends in n steps, as CG does."""
    model = Quadratic(6)

    class Last(torch.optim.Optimizer):
        """Proposes the previous step; the gradient at the first one."""

        def __init__(self, named: Any) -> None:
            super().__init__(named, {})
            self.before = [p.detach().clone() for p in model.x]

        def step(self, closure: Any = None) -> None:
            now = [p.detach().clone() for p in model.x]
            moved = any(not torch.equal(a, b) for a, b in zip(now, self.before, strict=True))
            shadows = self.param_groups[0]["params"]
            with torch.no_grad():
                for shadow, a, b in zip(shadows, now, self.before, strict=True):
                    shadow.copy_(a - b if moved else torch.zeros_like(a))
            self.before = now

    optimizer = GroupedNewton(
        model, value, Partition.single(model), direction={"gradient": SGD, "last": Last}, **BARE
    )
    errors = []
    for _ in range(6):
        take_step(model, optimizer, NOTHING, value)
        x = torch.stack([p.detach() for p in model.x])
        errors.append(float((model.a @ x - model.b).norm()))
    assert errors[4] > 1e-6
    assert errors[5] < 1e-8
    assert len(optimizer.rates) == 2


def test_one_named_direction_is_the_same_as_one() -> None:
    ends = []
    for direction in (MOMENTUM, {"momentum": MOMENTUM}):
        model = tanh_net()
        optimizer = GroupedNewton(model, F.cross_entropy, direction=direction, period=2)
        ends.append(advance(model, optimizer, 0, 10))
    assert torch.equal(*ends)


def test_a_direction_twice_changes_no_step_but_shares_the_rate() -> None:
    ends = []
    for direction in (SGD, {"one": SGD, "two": partial(torch.optim.SGD, lr=2.0)}):
        model = tanh_net()
        settings = BARE | {"solver": "newton", "averaging": NoAveraging()}
        optimizer = GroupedNewton(model, F.cross_entropy, direction=direction, **settings)
        ends.append(advance(model, optimizer, 0, 6))
    # only to the accuracy to which a singular system can be solved
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"solver": "ridge", "cap": 0.1}])
def test_a_restored_state_continues_bit_for_bit(settings: dict[str, Any]) -> None:
    def build(model: nn.Module) -> GroupedNewton:
        both = {"gradient": SGD, "adam": partial(torch.optim.Adam, lr=1.0)}
        return GroupedNewton(model, F.cross_entropy, direction=both, period=3, **settings)

    straight, model, resumed = tanh_net(), tanh_net(), tanh_net(seed=9)
    advance(straight, build(straight), 0, 14)
    optimizer = build(model)
    advance(model, optimizer, 0, 7)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    resumed.load_state_dict(saved[0])
    other = build(resumed)
    other.load_state_dict(saved[1])
    assert other.rates == optimizer.rates
    advance(resumed, other, 7, 14)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_stack_leaves_its_base_alone() -> None:
    model = Tied()
    names = [name for name, _ in model.named_parameters()]
    stack = Stack(model, 3)
    batch = classification(5)
    model.eval()
    assert torch.equal(stack(lambda base: base(batch[0])), model(batch[0]))
    assert [name for name, _ in model.named_parameters()] == names
    summarizer = Summarizer(stack, F.cross_entropy, stack.partition(Partition.single(model), ("a", "b", "c")))
    assert len(summarizer.problem.partition) == 3


def test_misuse_is_refused() -> None:
    model = tanh_net()
    with pytest.raises(InputError, match="direction: the mapping is empty"):
        GroupedNewton(model, F.cross_entropy, direction={})
    decayed = partial(torch.optim.SGD, lr=1.0, weight_decay=0.1)
    with pytest.raises(InputError, match="all of them must have the same weight_decay, coupled in all"):
        GroupedNewton(model, F.cross_entropy, direction={"a": SGD, "b": decayed})
