"""The Gauss–Newton and the Fisher matrix in place of the Hessian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import GroupedNewton
from gnewton.errors import InputError
from gnewton.optim.hyperparameters import MATRICES
from gnewton.summary import cut, summarize
from tests.optim.problems import take_step


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,))


def train(
    steps: int, step_size: float = 1.0, state: Any = None, **options: Any
) -> tuple[Any, list[Any], Any]:
    model, inputs, targets = problem()
    updates: list[Any] = []
    optimizer = GroupedNewton(
        model, F.cross_entropy, direction="average", along="step", period=2, step_size=step_size,
        on_update=updates.append, **options,
    )  # fmt: skip
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for _ in range(steps):
        take_step(model, optimizer, (inputs, targets))
    return model, updates, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def test_the_names_are_those_of_the_summary() -> None:
    assert MATRICES == cut.MATRICES


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_the_model_of_the_rates_has_the_chosen_matrix(matrix: str) -> None:
    model, inputs, targets = problem()
    loss = F.cross_entropy(model(inputs), targets)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    along = [0.1 * g for g in gradient]  # the first step of the average
    summary = summarize(model, F.cross_entropy, inputs, targets, None, along, curvature=matrix)
    _, updates, _ = train(1, matrix=matrix)
    solved = updates[0].solved
    scale = (solved.gradient / summary.gradient).mean()  # of the direction
    assert torch.allclose(solved.gradient, scale * summary.gradient)
    assert torch.allclose(solved.curvature, scale**2 * summary.hessian.diagonal())


@pytest.mark.parametrize("matrix", ["gauss_newton", "fisher"])
@pytest.mark.parametrize("solver", ["cubic", "cubic_diagonal", "ridge"])
def test_training_goes_down(matrix: str, solver: str) -> None:
    model, inputs, targets = problem()
    before = float(F.cross_entropy(model(inputs), targets).detach())
    model, _, _ = train(40, matrix=matrix, solver=solver)
    assert float(F.cross_entropy(model(inputs), targets).detach()) < 0.8 * before


def test_every_update_draws_other_labels_and_a_resumed_run_the_same() -> None:
    _, updates, _ = train(4, 1e-9, matrix="fisher", controller=None, shrinkage=0.0)
    first, second = (update.solved.curvature for update in updates)
    assert not torch.allclose(first, second, rtol=1e-3)
    whole, _, _ = train(8, matrix="fisher")
    _, _, state = train(4, matrix="fisher")
    resumed, _, _ = train(4, matrix="fisher", state=state)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"matrix": "gn"}, "matrix=gn: must be one of hessian, gauss_newton, fisher"),
        ({"matrix": "fisher", "maximize": True}, "matrix=fisher: must be hessian where"),
        ({"matrix": "fisher", "engine": "compiled"}, "not compiled"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        train(0, **options)
