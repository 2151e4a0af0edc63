"""The common rate of all groups, and the pull of the rates towards it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from gnewton import GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.optim.averaging import NoAveraging
from gnewton.optim.kfac.direction import kfac_direction
from gnewton.optim.rate_rule import RateRule
from gnewton.optim.solvers import RISE, SOLVERS, SPREAD, Common, common_rates, parse_solver


def model(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ḡ, H̄ > 0, D3 and lengths."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    hessian = root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)
    gradient, third = (torch.randn(2, size, generator=generator, dtype=torch.float64)).unbind()
    lengths = 10 ** torch.randn(size, generator=generator, dtype=torch.float64)
    return gradient.abs(), hessian, third, lengths


def shared(
    *parts: Tensor,
    damping: float = 0.7,
    solver: str = "cubic",
    previous: Any = (math.nan,),
    kinds: Tensor | None = None,
) -> Common:
    kinds = torch.zeros(len(parts[0]), dtype=torch.int64) if kinds is None else kinds
    return common_rates(*parts, damping, parse_solver(solver), list(previous), kinds)


@pytest.mark.parametrize("solver", ["cubic", "ridge"])
@pytest.mark.parametrize("seed", range(5))
def test_it_minimises_the_model_along_the_whole_direction(solver: str, seed: int) -> None:
    gradient, hessian, third, n = model(6, seed)

    def value(c: float) -> float:
        flat = -c * gradient @ n + c * c / 2 * n @ hessian @ n
        if solver == "ridge":
            return float(flat + 0.7 * c * c / 2 * abs(n @ hessian @ n))
        return float(flat + 0.7 / 6 * (third.abs() ** (1 / 3) * c * n).norm() ** 3)

    rate = shared(gradient, hessian, third, n, solver=solver).rates[0]
    best = minimize_scalar(value, bounds=(0, 10 * rate), method="bounded", options={"xatol": 1e-12 * rate})
    assert rate == pytest.approx(best.x, rel=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_group_has_the_rate_that_is_solved_for(solver: str) -> None:
    parts = model(1, 0)
    rule = RateRule(1, solver=solver, shrinkage=0.0)
    average = rule.observe(*parts)
    rate = rule.solve(average, parts[3]).rates
    common = shared(*(parts[0] / parts[3], parts[1] / parts[3] ** 2, parts[2] / parts[3] ** 3, parts[3]),
                    damping=1.0, solver=solver)  # fmt: skip
    assert common.rates[0] == pytest.approx(float(rate), rel=1e-9)


def test_without_a_minimiser_the_rate_before_stays() -> None:
    gradient, hessian, _, n = model(4, 1)
    parts = gradient, -hessian, torch.zeros(4, dtype=torch.float64), n
    assert math.isnan(shared(*parts).rates[0])
    assert not shared(*parts).known.any()
    assert shared(*parts, previous=[0.3]).rates == [0.3]
    rates = torch.tensor([1.0, -2.0, 3.0, 0.0], dtype=torch.float64)
    assert torch.equal(shared(*parts).bounded(rates), rates)


def test_it_halves_along_what_does_not_descend() -> None:
    gradient, hessian, third, n = model(4, 2)
    assert shared(-gradient, hessian, third, n, previous=[0.3]).rates == [0.15]


def test_it_rises_slowly_and_falls_at_once() -> None:
    parts = model(4, 3)
    free = shared(*parts).rates[0]
    assert shared(*parts, previous=[free / 100]).rates[0] == pytest.approx(RISE * free / 100)
    assert shared(*parts, previous=[100 * free]).rates[0] == free


@pytest.mark.parametrize("kinds", [[0, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1]])
def test_each_kind_has_its_own(kinds: list[int]) -> None:
    gradient, hessian, third, n = model(6, 4)
    both = shared(gradient, hessian, third, n, previous=[math.nan] * 2, kinds=torch.tensor(kinds))
    for j in range(2):
        members = [i for i, kind in enumerate(kinds) if kind == j]
        alone = shared(gradient[members], hessian[members][:, members], third[members], n[members])
        assert both.rates[j] == pytest.approx(alone.rates[0], rel=1e-12)
        assert torch.allclose(both.target[members], both.rates[j] * n[members])


class Beside(nn.Module):
    """A layer for K-FAC beside an embedding and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 4)
        self.norm = nn.LayerNorm(4)
        self.layer = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.layer(self.norm(self.embedding(tokens).mean(1)))
        return out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 0, 0]),
        ({"partition": "by_layer"}, [1, 1, 0]),
        (
            {"partition": [["embedding.weight", "layer.bias"], ["norm.weight", "norm.bias", "layer.weight"]]},
            [1, 0],
        ),
        ({"direction": "adam"}, [0] * 5),
        ({"direction": "muon"}, [0, 1, 1, 0, 1]),
        ({"direction": "pair"}, [0, 1] * 5),
        ({"direction": {"k": "kfac", "a": "average"}}, [1, 2, 1, 2, 1, 2, 0, 2, 0, 2]),
        ({"partition": Partition.per_channel, "matrix": "gauss_newton", "solver": "ridge"}, None),
    ],
)
def test_the_kind_of_a_group_is_the_method_that_makes_its_step(
    options: dict[str, Any], expected: list[int] | None
) -> None:
    model = Beside()
    if callable(partition := options.get("partition")):
        options = options | {"partition": partition(model)}
    optimizer = GroupedNewton(model, F.cross_entropy, **options)
    kinds = optimizer._updater.rule._kinds.tolist()
    if expected is None:
        names = optimizer.partition.names
        expected = [int(not name.startswith("layer")) for name in names]
    assert kinds == expected


def test_the_scale_of_one_part_does_not_matter() -> None:
    """Adam's step beside K-FAC's may be on any scale: each part has a common rate of its own."""
    ends = []
    tokens = torch.randint(9, (40, 5), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 0] % 3
    for scale in (0.03, 0.3):
        model = Beside().double()
        direction = kfac_direction(model, likelihood="categorical", adam_scale=scale, seed=3)
        optimizer = GroupedNewton(model, F.cross_entropy, direction=direction, period=2)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(tokens), targets).backward()
            optimizer.step(batch=(tokens, targets))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*ends, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("weight", [0.5, 1.0, 1e9])
def test_the_pull(weight: float) -> None:
    """Against (H̄ + τ diag H̄) η = ḡ + τ diag(H̄) c, and no rate leaves its bounds."""
    gradient, hessian, third, n = model(5, 5)
    rule = RateRule(5, internal_damping=0.0, shrinkage=weight, averaging=NoAveraging(), negative_rates="keep")
    solved = rule.solve(rule.observe(gradient, hessian, third, n), n)
    c = float(gradient.sum() / hessian.sum())
    pull = weight * torch.diag(hessian.diagonal())
    free = torch.linalg.solve(hessian + pull, gradient + pull @ torch.full_like(n, c))
    assert torch.allclose(solved.rates, free.clamp(c / SPREAD, c * SPREAD), rtol=1e-7)
    assert rule._common == pytest.approx([c])
    if weight > 1e3:
        assert torch.allclose(solved.rates, torch.full_like(n, c), rtol=1e-3)


def test_groups_that_take_no_part_stay_at_zero() -> None:
    gradient, hessian, third, n = model(5, 6)
    silent = torch.tensor([False, True, False, False, False])
    n[3] = 0.0
    rule = RateRule(5, shrinkage=1.0)
    solved = rule.solve(rule.observe(gradient, hessian, third, n), n, silent=silent)
    assert (solved.rates > 0).tolist() == [True, False, True, False, True]


def test_a_restored_rule_goes_on() -> None:
    rule, other = RateRule(4, shrinkage=1.0), RateRule(4, shrinkage=1.0)
    for seed in range(3):
        parts = model(4, seed)
        rule.solve(rule.observe(*parts), parts[3])
    other.load_state_dict(rule.state_dict())
    parts = model(4, 7)
    ends = [bounded.solve(bounded.observe(*parts), parts[3]).rates for bounded in (rule, other)]
    assert torch.equal(*ends)
    rule.restart([0] * 5)
    assert all(map(math.isnan, rule._common))


def test_bad_weights_are_refused() -> None:
    with pytest.raises(InputError, match="shrinkage=-1.0: must be a finite number >= 0"):
        RateRule(3, shrinkage=-1.0)
