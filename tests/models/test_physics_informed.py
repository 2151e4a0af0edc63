"""The physics-informed network against autograd, its known solution, and the engines in float64."""

from __future__ import annotations

import math

import pytest
import torch

from gnewton import Partition, summarize
from gnewton.data.dataset_options import DATA
from gnewton.errors import InputError
from gnewton.models.analytic import PoissonNetwork
from gnewton.tasks import Regression
from tests.recipes import recipe


def network(size=2, activation="tanh", seed=0):
    torch.manual_seed(seed)
    model = PoissonNetwork([size, 5, 4, 1], activation).double()
    with torch.no_grad():
        for layer in model.layers:
            layer.bias.normal_()
    return model


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("activation", ["tanh", "sin"])
def test_the_output_is_the_laplacian_of_the_solution(size, activation):
    model = network(size, activation)
    points = torch.rand(4, size, dtype=torch.float64)
    hessians = [
        torch.autograd.functional.hessian(lambda x: model.solution(x[None]).sum(), point) for point in points
    ]
    wanted = torch.stack([-hessian.trace() for hessian in hessians])[:, None]
    torch.testing.assert_close(model(points), wanted, rtol=1e-11, atol=1e-11)


def test_the_solution_is_zero_on_the_boundary():
    points = torch.rand(6, 2, dtype=torch.float64)
    points[:3, 0], points[3:, 1] = 0.0, 1.0
    assert torch.equal(network().solution(points), torch.zeros(6, 1, dtype=torch.float64))


def test_the_source_belongs_to_the_known_solution():
    built = recipe(DATA, "digits", "poisson", "data.dimensions=3", "data.frequency=2", "data.train=5")
    data = built.build(torch.device("cpu"), torch.float64, 0)
    points, source = next(iter(data.train.in_order(5)))
    assert data.task == Regression((3,), 1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [5, 1000, 1000]

    def solution(x):
        return torch.sin(2 * math.pi * x).prod() / (3 * 4 * math.pi**2)

    wanted = [-torch.autograd.functional.hessian(solution, x).trace() for x in points]
    torch.testing.assert_close(source[:, 0], torch.stack(wanted), rtol=1e-11, atol=1e-12)
    assert not set(points[:, 0].tolist()) & set(next(iter(data.test.in_order(9)))[0][:, 0].tolist())


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_the_engines_agree(curvature):
    model = network()
    points, source = torch.rand(6, 2, dtype=torch.float64), torch.rand(6, 1, dtype=torch.float64)
    task = Regression((2,), 1)
    task.loss(model(points), source).backward()
    direction = {name: p.grad.clone() for name, p in model.named_parameters()}
    one, other = (
        summarize(
            *(model, task.loss, points, source, Partition.per_tensor(model), direction),
            engine=engine,
            curvature=curvature,
        )
        for engine in ("reference", "tangent")
    )
    torch.testing.assert_close(other.gradient, one.gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.hessian, one.hessian, rtol=1e-9, atol=1e-9)
    if curvature == "hessian":
        torch.testing.assert_close(other.third, one.third, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("data", ["digits", "teacher"])
def test_other_data_are_refused(run, data):
    with pytest.raises(InputError, match="model=pinn: needs points .* as in data=poisson; data gives"):
        run(["model=pinn", f"data={data}"])


@pytest.mark.parametrize("optimizer", ["grouped_newton", "adam", "kfac"])
def test_training_lowers_the_residual(run, optimizer):
    few = ["data.train=300", "data.validation=50", "data.test=50", "trainer.epochs=10"]
    report = run(["experiment=poisson", f"optimizer={optimizer}", "model.widths=[16]", *few])
    assert report.outcome.metrics["train_loss"] < 0.2  # that of u = 0 is 0.25
