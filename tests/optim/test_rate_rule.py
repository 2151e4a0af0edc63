"""Rates from given summaries: solvers against closed forms, and invariance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.optim.averaging import NoAveraging
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


def rates(rule: RateRule, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    ones = torch.ones(SIZE, dtype=torch.float64)
    return rule.solve(rule.observe(*parts, ones), ones).rates


@pytest.mark.parametrize("definite", [True, False])
def test_newton_solves_the_linear_system_whatever_its_signs(definite: bool) -> None:
    gradient, hessian, third = summary(0, definite=definite)
    rule = RateRule(SIZE, solver="newton", **PLAIN)
    solved = rule.solve(rule.observe(gradient, hessian, third, torch.ones(SIZE).double()), torch.ones(SIZE))
    expected = np.linalg.solve(hessian.numpy(), gradient.numpy())
    np.testing.assert_allclose(solved.rates.numpy(), expected, rtol=1e-10)
    assert solved.solution.status == "stationary"
    assert solved.solution.residual < 1e-14
    assert (solved.solution.curvature_margin > 0) == definite


def test_newton_on_a_singular_system_takes_the_shortest_rates() -> None:
    gradient, _, third = summary(1)
    hessian = torch.ones(SIZE, SIZE, dtype=torch.float64)
    eta = rates(RateRule(SIZE, solver="newton", **PLAIN), (torch.ones_like(gradient), hessian, third))
    np.testing.assert_allclose(eta.numpy(), np.full(SIZE, 1 / SIZE), rtol=1e-12)


def test_ridge_adds_its_share_of_the_diagonal() -> None:
    gradient, hessian, third = summary(2)
    eta = rates(RateRule(SIZE, solver="ridge", internal_damping=0.7, **PLAIN), (gradient, hessian, third))
    matrix = hessian.numpy() + 0.7 * np.diag(np.abs(np.diag(hessian.numpy())))
    np.testing.assert_allclose(eta.numpy(), np.linalg.solve(matrix, gradient.numpy()), rtol=1e-10)


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
    solutions = []
    for scale in (torch.ones_like(a2), a2):
        rule = RateRule(SIZE, solver=solver, proximal=0.5, **PLAIN | {"normalise": normalise})
        for seed in range(3):
            gradient, hessian, third = summary(seed)
            parts = [gradient * scale, hessian * torch.outer(scale, scale), third * scale**3]
            if rule.solver.diagonal:
                parts[1] = parts[1].diagonal()
            norms = scale * (1.0 + seed)
            solved = rule.solve(rule.observe(*parts, norms), norms).rates
        solutions.append(solved * scale)
    torch.testing.assert_close(solutions[0], solutions[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "cubik"}, "solver=cubik: must be one of cubic, .*did you mean 'cubic'"),
        ({"solver": "newton", "negative_rates": "constrain"}, "negative_rates=constrain: solver=newton"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RateRule(SIZE, **settings)
