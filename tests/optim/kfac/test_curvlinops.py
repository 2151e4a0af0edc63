"""The factors against those of curvlinops, whose A is a mean over positions where ours is a sum."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import KFAC
from tests.optim.kfac.cases import CASES, fixed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    curvlinops = pytest.importorskip("curvlinops")

NAMES = ["linear", "mlp", "no-bias", "conv", "conv-no-bias", "conv-stride", "conv-padding", "conv-dilation"]
NAMES += ["conv-all"]


def theirs(
    model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor, fisher: str
) -> list[list[Tensor]]:
    parameters = list(model.parameters())
    operator = curvlinops.KFACLinearOperator(
        model,
        loss,
        parameters,
        [(inputs, targets)],
        fisher_type=fisher,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator.compute_kronecker_factors()
    pairs, inward, outward = [], operator._input_covariances, operator._gradient_covariances
    for name in inward:
        positions = 1
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            positions = module(torch.zeros_like(inputs[:1]))[0, 0].numel()
        pairs.append([inward[name] * positions, outward[name] / positions])
    return pairs


def compare(optimizer: KFAC, wanted: list[list[Tensor]]) -> None:
    assert len(wanted) == len(optimizer.factors)
    for (a, g), (other_a, other_g) in zip(optimizer.factors.values(), wanted, strict=True):
        torch.testing.assert_close(a, other_a, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(g, other_g, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_empirical_fisher(name: str) -> None:
    model, inputs = CASES[name].make()
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    wanted = theirs(model, nn.CrossEntropyLoss(), inputs, targets, "empirical")
    optimizer = KFAC(model, fisher="empirical")
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    compare(optimizer, wanted)


def roots(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """Columns of a root of ∂²ℓ_n/∂f_n² for each sample: (columns, N, K)."""
    columns = []
    for row, target in zip(outputs.detach(), targets, strict=True):
        hessian = torch.func.hessian(lambda f: loss(f[None], target[None]))(row)  # noqa: B023
        values, vectors = torch.linalg.eigh(hessian)
        columns.append((vectors * values.clamp_min(0).sqrt()).T)
    return torch.stack(columns, 1)


LOSSES: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
    "categorical": (nn.CrossEntropyLoss(), lambda: torch.tensor([0, 1, 2, 2, 1, 0])),
    "gaussian": (nn.MSELoss(), lambda: torch.zeros(6, 3, dtype=torch.float64)),
    "bernoulli": (nn.BCEWithLogitsLoss(), lambda: torch.ones(6, 3, dtype=torch.float64)),
}


@pytest.mark.parametrize("likelihood", LOSSES)
@pytest.mark.parametrize("name", NAMES)
def test_exact_fisher(name: str, likelihood: str) -> None:
    """Vectors whose covariance is the exact curvature of the loss, one column of its root after the other."""
    model, inputs = CASES[name].make()
    loss, make = LOSSES[likelihood]
    targets = make()
    wanted = theirs(model, loss, inputs, targets, "type-2")
    columns = roots(loss, model(inputs), targets)
    count = len(columns)
    optimizer = KFAC(model, likelihood=fixed(*(columns * count**0.5)))
    for _ in range(count):
        model(inputs).sum().backward()  # pieces of one step: their mean is the sum over the columns
    optimizer.step()
    compare(optimizer, wanted)
