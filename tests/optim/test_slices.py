"""GroupedNewton where groups are slices of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import GroupedNewton, Partition, suggest_rates
from gnewton.errors import InputError
from gnewton.optim.finite_step import Plan, take
from gnewton.optim.grouping import Grouping
from gnewton.partition import Slice
from tests.optim.problems import take_step


def problem(width: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()
    return model, torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,))


def train(
    steps: int, partition: Any, state: Any = None, width: int = 6, **options: Any
) -> tuple[Any, Any, Any]:
    model, inputs, targets = problem(width)
    partition = partition(model) if callable(partition) else partition
    optimizer = GroupedNewton(model, F.cross_entropy, partition, period=2, **options)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for _ in range(steps):
        take_step(model, optimizer, (inputs, targets))
    return model, optimizer, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def layers_as_slices(model: nn.Module) -> Partition:
    """One group per layer, made of slices that hold all of each tensor."""
    named = dict(model.named_parameters())
    return Partition.from_slices(
        model,
        {
            layer: [Slice(name, 0, ((0, len(p)),)) for name, p in named.items() if name[0] == layer]
            for layer in ("0", "2")
        },
    )


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
@pytest.mark.parametrize(
    "options", [{}, {"direction": {"a": "average", "g": "gradient"}}, {"direction": "average"}]
)
def test_slices_that_hold_whole_layers_train_as_the_layers_do(matrix: str, options: dict[str, Any]) -> None:
    ours, optimizer, _ = train(6, layers_as_slices, matrix=matrix, **options)
    theirs, reference, _ = train(6, "by_layer", matrix=matrix, **options)
    assert list(optimizer.rates) == list(reference.rates)
    for name, rate in optimizer.rates.items():
        assert rate == pytest.approx(reference.rates[name], rel=1e-6)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-8, atol=1e-10)


def test_every_channel_moves_at_its_rate_and_within_its_limit() -> None:
    model, _, _ = problem()
    grouping = Grouping(model, Partition.per_channel(model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    u = [torch.randn_like(p) for p in grouping.parameters]
    rates = torch.rand(9, dtype=torch.float64)
    lengths = grouping.norms(u)
    limits = torch.full((9,), 0.5, dtype=torch.float64)
    weights = [[2.0 if name.endswith("bias") else 4.0 for name in grouping.names]]
    plan = Plan(rates, limits, weights)
    assert bool(take([u], plan, grouping))
    step = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    for layer, start, stop in (("0", 0, 6), ("2", 6, 9)):
        for s in range(start, stop):
            i = s - start
            parts = [
                (u[grouping.names.index(f"{layer}.{kind}")][i], w) for kind, w in (("weight", 4), ("bias", 2))
            ]
            moved = torch.cat([(part * rates[s] / w).reshape(-1) for part, w in parts])
            assert lengths[s] == pytest.approx(
                float(torch.cat([part.reshape(-1) for part, _ in parts]).norm())
            )
            moved = moved * min(1.0, float(0.5 / moved.norm()))
            got = torch.cat([step[f"{layer}.weight"][i], step[f"{layer}.bias"][i].reshape(1)])
            assert torch.allclose(got, moved)
    u[0][0, 0] = torch.nan
    assert not bool(take([u], plan, grouping))
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_resumed_run_goes_on_as_it_would_have() -> None:
    options: dict[str, Any] = {"matrix": "gauss_newton", "solver": "ridge", "direction": "adam"}
    whole, _, _ = train(8, "per_channel", **options)
    _, optimizer, state = train(4, "per_channel", **options)
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["rate"]) == 9
    resumed, _, _ = train(4, "per_channel", state, **options)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_wide_layer_trains_without_third_derivatives() -> None:
    model, inputs, targets = problem(300)
    before = float(F.cross_entropy(model(inputs), targets).detach())
    options: dict[str, Any] = {"matrix": "gauss_newton", "solver": "ridge", "controller": None}
    model, optimizer, _ = train(10, "per_channel", width=300, **options)
    assert len(optimizer.rates) == 303
    assert float(F.cross_entropy(model(inputs), targets).detach()) < 0.9 * before
    for wrong in ({}, {"matrix": "gauss_newton"}, {"solver": "ridge"}):
        with pytest.raises(InputError, match="303 groups, some of them slices"):
            train(0, "per_channel", width=300, **wrong)


def test_what_needs_whole_tensors_refuses_slices() -> None:
    model, inputs, targets = problem()
    with pytest.raises(InputError, match="suggest_rates needs groups of whole tensors"):
        suggest_rates(model, F.cross_entropy, [(inputs, targets)], partition="per_channel")
    _, optimizer, _ = train(1, "per_channel")
    with pytest.raises(InputError, match="add_param_group needs groups of whole tensors"):
        optimizer.add_param_group({"params": []})
