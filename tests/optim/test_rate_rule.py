"""Rates from given summaries: solvers against closed forms, bounds, and proposals that leave no trace."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.optim.averaging import NoAveraging
from gnewton.optim.rate_bounds import MedianBound
from gnewton.optim.rate_rule import RateRule
from gnewton.optim.solvers import SOLVERS

SIZE = 5
PLAIN: dict[str, Any] = {"averaging": NoAveraging(), "negative_rates": "keep", "normalise": False}


def summary(seed: int, *, definite: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    hessian = root @ root.T + 0.1 * torch.eye(SIZE) if definite else (root + root.T) / 2
    gradient = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    return gradient, hessian.double(), torch.randn(SIZE, generator=generator, dtype=torch.float64)


def rates(rule: RateRule, parts: tuple[Tensor, Tensor, Tensor], **how: Any) -> Tensor:
    ones = torch.ones(SIZE, dtype=torch.float64)
    return rule.commit(rule.propose(rule.observe(*parts, ones), ones, **how)).rates


@pytest.mark.parametrize("definite", [True, False])
def test_newton_solves_the_linear_system_whatever_its_signs(definite: bool) -> None:
    gradient, hessian, third = summary(0, definite=definite)
    rule = RateRule(SIZE, solver="newton", **PLAIN)
    found = rule.propose(rule.observe(gradient, hessian, third, torch.ones(SIZE).double()), torch.ones(SIZE))
    expected = np.linalg.solve(hessian.numpy(), gradient.numpy())
    np.testing.assert_allclose(found.solved.rates.numpy(), expected, rtol=1e-10)
    assert found.solved.solution.status == "stationary"
    assert found.solved.solution.residual < 1e-14
    assert (found.solved.solution.curvature_margin > 0) == definite


def test_newton_on_a_singular_system_takes_the_shortest_rates() -> None:
    gradient, _, third = summary(1)
    hessian = torch.ones(SIZE, SIZE, dtype=torch.float64)
    found = rates(RateRule(SIZE, solver="newton", **PLAIN), (torch.ones_like(gradient), hessian, third))
    np.testing.assert_allclose(found.numpy(), np.full(SIZE, 1 / SIZE), rtol=1e-12)


def test_ridge_adds_its_share_of_the_diagonal() -> None:
    gradient, hessian, third = summary(2)
    found = rates(RateRule(SIZE, solver="ridge", internal_damping=0.7, **PLAIN), (gradient, hessian, third))
    matrix = hessian.numpy() + 0.7 * np.diag(np.abs(np.diag(hessian.numpy())))
    np.testing.assert_allclose(found.numpy(), np.linalg.solve(matrix, gradient.numpy()), rtol=1e-10)


def test_the_diagonal_solver_sees_nothing_else() -> None:
    gradient, hessian, third = summary(3)
    alone = RateRule(SIZE, solver="cubic_diagonal", internal_damping=0.4, **PLAIN)
    full = RateRule(SIZE, internal_damping=0.4, **PLAIN)
    expected = rates(full, (gradient, torch.diag(hessian.diagonal()), third))
    torch.testing.assert_close(rates(alone, (gradient, hessian.diagonal(), third)), expected)
    # without cubic term the groups are independent
    bare = RateRule(SIZE, solver="cubic_diagonal", internal_damping=0.0, **PLAIN)
    torch.testing.assert_close(
        rates(bare, (gradient, hessian.diagonal(), third)), gradient / hessian.diagonal(), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("normalise", [False, True])
def test_rates_do_not_depend_on_the_scale_of_the_groups(solver: str, normalise: bool) -> None:
    """ḡ → a²ḡ, H̄_st → a_s²a_t² H̄_st, D3 → a⁶D3 gives η → η/a² (u → a u with θ → θ/a)."""
    a2 = torch.tensor([1e-4, 1e-1, 1.0, 30.0, 1e4], dtype=torch.float64)
    found = []
    for scale in (torch.ones_like(a2), a2):
        rule = RateRule(SIZE, solver=solver, proximal=0.5, **PLAIN | {"normalise": normalise})
        for seed in range(3):
            gradient, hessian, third = summary(seed)
            parts = [gradient * scale, hessian * torch.outer(scale, scale), third * scale**3]
            if rule.solver.diagonal:
                parts[1] = parts[1].diagonal()
            norms = scale * (1.0 + seed)
            solved = rule.commit(rule.propose(rule.observe(*parts, norms), norms)).rates
        found.append(solved * scale)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_proposal_leaves_no_trace_until_it_is_committed(solver: str) -> None:
    rule = RateRule(SIZE, solver=solver, proximal=1.0, rate_momentum=0.3, rate_median=3, **PLAIN)
    ones = torch.ones(SIZE, dtype=torch.float64)
    for seed in range(4):
        gradient, hessian, third = summary(seed)
        average = rule.observe(gradient, hessian.diagonal() if rule.solver.diagonal else hessian, third, ones)
        before = copy.deepcopy(rule.state_dict())
        first = rule.propose(average, ones)
        again = rule.propose(average, ones, factor=10.0)
        assert str(rule.state_dict()) == str(before)
        assert torch.equal(first.solved.rates, rule.propose(average, ones).solved.rates)
        if rule.solver.uses_damping:
            assert not torch.equal(first.solved.rates, again.solved.rates)
        rule.commit(first)


def test_the_median_cuts_what_is_unusual_and_follows_what_lasts() -> None:
    bound = MedianBound(3)
    found = []
    for value in (1.0, 2.0, 100.0, 3.0, 50.0, 60.0, -80.0):
        given = torch.tensor([value], dtype=torch.float64)
        found.append(float(bound.bound(given)))
        bound.record(given)
    # medians of |η| over the last three, the lower middle one of two
    assert found == [1.0, 1.0, 2.0, 3.0, 50.0, 50.0, -60.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "cubik"}, "solver=cubik: must be one of cubic, .*did you mean 'cubic'"),
        ({"solver": "newton", "negative_rates": "constrain"}, "negative_rates=constrain: solver=newton"),
        ({"rate_median": 1}, "rate_median=1: must be an integer >= 2"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RateRule(SIZE, **settings)
