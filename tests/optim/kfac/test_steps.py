"""Whole trajectories of K-FAC: against a plain version and Newton's method, resumed, in several processes."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import KFAC
from gnewton.errors import InputError
from gnewton.optim.kfac import low_rank
from tests.optim.kfac.cases import CASES, DOUBLE, Chain, dense, fixed, joined, pi
from tests.optim.problems import flat, take_step
from tests.processes import in_processes, process_group

STEPS = 12


class Mixed(nn.Module):
    """Layers that are treated beside a norm, a grouped convolution, an embedding and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.grouped = nn.Conv1d(4, 4, 1, groups=2)
        self.norm = nn.LayerNorm(4)
        self.hidden, self.last = nn.Linear(4, 6), nn.Linear(6, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(3))
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.grouped(self.embedding(tokens).mT).mean(2)
        return self.scale * self.last(torch.tanh(self.hidden(self.norm(x))))


class Plain:
    """K-FAC by its formulas, with dense solves: float64, one sample at a time."""

    def __init__(self, model: nn.Module, layers: list[str], deltas: list[Tensor], **options: Any) -> None:
        self.model, self.layers, self.deltas, self.o = model, layers, list(deltas), options
        self.momenta: dict[str, Tensor] = {}
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.frozen: dict[str, tuple[Tensor, Tensor]] = {}
        self.steps = 0

    def step(self, inputs: Tensor) -> None:
        o = self.o
        if self.steps % o["statistics_period"] == 0:
            delta = self.deltas.pop(0)
            for name in self.layers:
                new = dense(self.model, [name], inputs, delta, self._bias(name) is not None)
                square = new.positions**2 if o["scaling"] == "reference" else 1
                a, g = new.a / square, new.g * square
                if name in self.factors or o["start"] == "identity":
                    eyes = torch.eye(len(a), dtype=DOUBLE), torch.eye(len(g), dtype=DOUBLE)
                    old_a, old_g = self.factors.get(name, eyes)
                    a, g = 0.95 * old_a + 0.05 * a, 0.95 * old_g + 0.05 * g
                self.factors[name] = a, g
        if self.steps % o["inverse_period"] == 0:
            self.frozen = dict(self.factors)
        with torch.no_grad():
            self._move()
        self.steps += 1

    def _move(self) -> None:
        o = self.o
        named = {n: p for n, p in self.model.named_parameters() if p.grad is not None}
        v: dict[str, Tensor] = {}
        for name in self.layers:
            a, g = self.frozen[name]
            weight, bias = named[f"{name}.weight"], self._bias(name)
            gradient = joined(weight.grad, bias.grad if bias is not None else None)  # type: ignore[arg-type]
            solved = self._solve(a, g, gradient)
            if bias is not None:
                v[f"{name}.bias"] = solved[:, -1]
                solved = solved[:, :-1]
            v[f"{name}.weight"] = solved.reshape(weight.shape)
        size = o["lr"] ** 2 * sum(float((v[n] * named[n].grad).sum()) for n in v)
        nu = min(1.0, math.sqrt(o["kl_clip"] / size))
        self.clipped = nu < 1
        for n, p in named.items():
            step = nu * v[n] if n in v else p.grad
            assert step is not None
            self.momenta[n] = o["momentum"] * self.momenta.get(n, 0) + step
            p.mul_(1 - o["lr"] * o["weight_decay"])
            p.sub_(o["lr"] * self.momenta[n])

    def _solve(self, a: Tensor, g: Tensor, gradient: Tensor) -> Tensor:
        damping = self.o["damping"]
        if self.o["preconditioner"] == "inverse":
            split = pi(a, g)
            left = g + math.sqrt(damping) / split * torch.eye(len(g), dtype=DOUBLE)
            right = a + split * math.sqrt(damping) * torch.eye(len(a), dtype=DOUBLE)
            return torch.linalg.solve(left, torch.linalg.solve(right, gradient.T).T)
        matrix = torch.kron(g, a) + damping * torch.eye(gradient.numel(), dtype=DOUBLE)
        return torch.linalg.solve(matrix, gradient.flatten()).view_as(gradient)

    def _bias(self, name: str) -> Tensor | None:
        return self.model.get_submodule(name).bias  # type: ignore[return-value]


PRESETS: dict[str, dict[str, Any]] = {
    "strong": {"preconditioner": "inverse", "start": "first", "scaling": "standard", "weight_decay": 0.0},
    "reference": {
        "preconditioner": "eigen",
        "start": "identity",
        "scaling": "reference",
        "weight_decay": 0.003,
    },
}


@pytest.mark.parametrize("kl_clip", [1e-6, 10.0], ids=["clipped", "free"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["mlp", "wide", "conv", "conv-no-bias", "mixed"])
def test_a_trajectory_is_that_of_the_plain_algorithm(name: str, preset: str, kl_clip: float) -> None:
    torch.manual_seed(0)
    model = Mixed() if name == "mixed" else CASES[name].build()
    batches = [
        torch.randint(0, 5, (6, 2)) if name == "mixed" else torch.randn(6, *CASES[name].shape, dtype=DOUBLE)
        for _ in range(STEPS)
    ]
    targets = [torch.randint(0, 3, (6,)) for _ in range(STEPS)]
    deltas = [torch.randn(6, 3, dtype=DOUBLE) for _ in range(STEPS)]
    options = {"lr": 0.05, "momentum": 0.9, "damping": 0.03, "kl_clip": kl_clip, **PRESETS[preset]}
    options |= {"statistics_period": 2, "inverse_period": 5}
    twin = copy.deepcopy(model)
    optimizer = KFAC(model, likelihood=fixed(*deltas), **options)
    plain = Plain(twin, optimizer.layers, deltas, **options)
    start = flat(model)
    for x, y in zip(batches, targets, strict=True):
        for net in (model, twin):
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
        optimizer.step()
        plain.step(x)
        assert plain.clipped == (kl_clip < 1)
    ours, theirs = flat(model), flat(twin)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    assert (ours - start).abs().max() > 1e-4


def test_layers_and_others_are_told_apart() -> None:
    optimizer = KFAC(Mixed())
    assert optimizer.layers == ["hidden", "last"]


def test_a_linear_gaussian_problem_is_solved_by_one_newton_step() -> None:
    """2/K I ⊗ A is exact there: at damping 0 the step of lr 1 ends in the least squares solution."""
    torch.manual_seed(0)
    model = Chain(nn.Linear(4, 3))
    inputs, targets = torch.randn(12, 4, dtype=DOUBLE), torch.randn(12, 3, dtype=DOUBLE)
    deltas = torch.eye(3, dtype=DOUBLE).repeat(4, 1) * 2**0.5  # their covariance is 2/3 I
    optimizer = KFAC(model, lr=1.0, momentum=0.0, damping=1e-16, kl_clip=None, likelihood=fixed(deltas))
    F.mse_loss(model(inputs), targets).backward()
    optimizer.step()
    extended = torch.cat([inputs, torch.ones(12, 1, dtype=DOUBLE)], 1)
    solution = torch.linalg.lstsq(extended, targets).solution.T
    layer = model[0]
    weight = torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1)  # type: ignore[arg-type,operator]
    torch.testing.assert_close(weight, solution, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("preconditioner", ["inverse", "eigen", "ekfac"])
def test_with_drawn_targets_the_step_is_newtons_up_to_the_noise_of_the_draw(preconditioner: str) -> None:
    torch.manual_seed(0)
    model = Chain(nn.Linear(4, 1))
    inputs, targets = torch.randn(20_000, 4, dtype=DOUBLE), torch.randn(20_000, 1, dtype=DOUBLE)
    optimizer = KFAC(
        model,
        lr=1.0,
        momentum=0.0,
        damping=1e-12,
        kl_clip=None,
        likelihood="gaussian",
        preconditioner=preconditioner,
    )
    F.mse_loss(model(inputs), targets).backward()
    optimizer.step()
    (((a, g)),) = optimizer.factors.values()
    assert len(a) == 5
    assert float(g) == pytest.approx(2.0, rel=0.04)
    model.zero_grad()
    F.mse_loss(model(inputs), targets).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float(gradient.norm()) < 0.05


def training(
    preconditioner: str = "inverse", fisher: str = "true", seed: int | None = 7
) -> tuple[nn.Module, KFAC]:
    torch.manual_seed(0)
    model = Mixed()
    optimizer = KFAC(
        model,
        lr=0.02,
        weight_decay=0.01,
        preconditioner=preconditioner,
        fisher=fisher,
        statistics_period=3,
        inverse_period=4,
        seed=seed,
    )
    return model, optimizer


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> Tensor:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randint(0, 5, (8, 2), generator=generator)
        targets = torch.randint(0, 3, (8,), generator=generator)
        take_step(model, optimizer, (inputs, targets))
    return flat(model)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("preconditioner", ["inverse", "eigen", "ekfac"])  # low_rank: test_low_rank.py
@pytest.mark.parametrize("stop", [0, 1, 5, 6, 8])
def test_a_restored_optimizer_continues_bit_for_bit(
    preconditioner: str, fisher: str, stop: int, tmp_path: Path
) -> None:
    straight = advance(*training(preconditioner, fisher), 0, 14)
    model, optimizer = training(preconditioner, fisher)
    advance(model, optimizer, 0, stop)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    torch.manual_seed(99)
    resumed, other = training(preconditioner, fisher, seed=None)
    advance(resumed, other, 20, 23)
    saved = torch.load(tmp_path / "state.pt")
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert torch.equal(advance(resumed, other, stop, 14), straight)


def test_a_seed_decides_the_draws() -> None:
    one, same, other = (advance(*training(seed=seed), 0, 8) for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_scheduler_acts_on_the_learning_rate() -> None:
    model, optimizer = training()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    moved = advance(model, optimizer, 0, 2)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0
    assert torch.equal(advance(model, optimizer, 2, 5), moved)


def test_a_closure_is_evaluated_with_gradients() -> None:
    model, optimizer = training()
    inputs, targets = torch.randint(0, 5, (8, 2)), torch.randint(0, 3, (8,))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < losses[0]


def test_a_parameter_without_gradient_stays() -> None:
    model = Chain(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    for p in model[0].parameters():
        p.requires_grad_(False)
    optimizer = KFAC(model, weight_decay=0.1)
    assert optimizer.layers == ["2"]
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(6, 4, dtype=DOUBLE)).square().mean().backward()
    optimizer.step()
    changed = [not torch.equal(p.detach(), old) for p, old in zip(model.parameters(), before, strict=True)]
    assert changed == [False, False, True, True]


def test_a_step_without_any_gradient_moves_nothing() -> None:
    model, optimizer = training()
    before = advance(model, optimizer, 0, 3)
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(flat(model), before)


def test_zero_gradients_move_nothing_and_are_not_divided_by() -> None:
    model, optimizer = training()
    model(torch.randint(0, 5, (8, 2))).sum().mul(0).backward()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = flat(model)
    optimizer.step()
    assert torch.equal(flat(model), before)


Job = tuple[str, str, str]
JOBS: dict[int, list[Job]] = {
    2: [("true", "inverse", "hidden"), ("empirical", "ekfac", "in place"), ("true", "low_rank", "hidden")],
    3: [("true", "ekfac", "replaced"), ("empirical", "eigen", "hidden")],
}
"""By the number of processes: Fisher, preconditioner, and how the gradients are joined."""


def spawned(rank: int, size: int, folder: str) -> None:
    with process_group(rank, size, folder):
        torch.save([run(rank, size, *job) for job in JOBS[size]], f"{folder}/{rank}.pt")


def run(rank: int, size: int, fisher: str, preconditioner: str, joint: str) -> tuple[Tensor, dict[str, Any]]:
    """Three steps of a batch, of which this process has its own rows, weighted by their number.

    Where a factor is singular its eigenvectors are a matter of rounding, and with them EKFAC's scale: it gets
    more samples than the factors have rows.
    """
    torch.manual_seed(0)
    name, count = ("mlp", 24) if preconditioner == "ekfac" else ("wide", 6)
    model = CASES[name].build()
    batches = torch.randn(3, count, *CASES[name].shape, dtype=DOUBLE)
    targets = torch.randint(0, 3, (3, count))
    deltas = torch.randn(3, count, 3, dtype=DOUBLE)
    shares = {1: [0, 6], 2: [0, 2, 6], 3: [0, 1, 3, 6]}[size]
    rows = slice(*(share * count // 6 for share in shares[rank : rank + 2]))
    likelihood = fixed(*deltas[:, rows])
    optimizer = KFAC(
        model,
        lr=0.05,
        statistics_period=1,
        inverse_period=2,
        damping=3.0 if preconditioner == "low_rank" else 0.03,
        fisher=fisher,
        preconditioner=preconditioner,
        likelihood=likelihood,
    )
    with mock.patch.object(low_rank, "SMALLEST", 0):
        train(model, optimizer, batches[:, rows], targets[:, rows], count, joint if size > 1 else None)
    return flat(model), optimizer.factors


def train(
    model: nn.Module, optimizer: KFAC, inputs: Tensor, targets: Tensor, count: int, joint: str | None
) -> None:
    for x, y in zip(inputs, targets, strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for p in model.parameters() if joint is not None else ():
            assert p.grad is not None
            if joint == "in place":
                p.grad.mul_(len(x) / count)
                dist.all_reduce(p.grad)
            elif joint == "hidden":  # what torch does not count as a write
                p.grad.data.mul_(len(x) / count)
                dist.all_reduce(p.grad)
            else:
                whole = p.grad * len(x) / count
                dist.all_reduce(whole)
                p.grad = whole
        optimizer.step()


@pytest.mark.parametrize("size", JOBS)
def test_processes_make_the_step_of_one(size: int, tmp_path: Path) -> None:
    in_processes(spawned, size, str(tmp_path))
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for number, job in enumerate(JOBS[size]):
        parameters, factors = run(0, 1, *job)
        for ours, theirs in (result[number] for result in results):
            torch.testing.assert_close(ours, parameters, rtol=1e-9, atol=1e-11)
            for name, (a, g) in theirs.items():
                torch.testing.assert_close(a, factors[name][0], rtol=1e-11, atol=1e-13)
                torch.testing.assert_close(g, factors[name][1], rtol=1e-11, atol=1e-13)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "lr": ({"lr": 0.0}, "lr=0.0: must be a finite number > 0"),
    "lr nan": ({"lr": math.nan}, "lr=nan: must be a finite number > 0"),
    "momentum": ({"momentum": 1.0}, "momentum=1.0: must be a finite number >= 0 and < 1"),
    "weight_decay": ({"weight_decay": -0.1}, "weight_decay=-0.1: must be a finite number >= 0"),
    "damping": ({"damping": 0.0}, "damping=0.0: must be a finite number > 0"),
    "kl_clip": ({"kl_clip": 0.0}, "kl_clip=0.0: must be a finite number > 0"),
    "decay": ({"decay": 1.0}, "decay=1.0: must be a finite number >= 0 and < 1"),
    "statistics_period": ({"statistics_period": 0}, "statistics_period=0: must be an integer >= 1"),
    "inverse_period": ({"inverse_period": 1.5}, "inverse_period=1.5: must be an integer >= 1"),
    "fisher": ({"fisher": "exact"}, "fisher=exact: must be one of true, empirical"),
    "likelihood": (
        {"likelihood": "poisson"},
        "likelihood=poisson: must be one of categorical, categorical_last, gaussian",
    ),
    "preconditioner": (
        {"preconditioner": "lu"},
        "preconditioner=lu: must be one of inverse, low_rank, eigen, ekfac",
    ),
    "start": ({"start": "zero"}, "start=zero: must be one of first, identity"),
    "scaling": ({"scaling": "none"}, "scaling=none: must be one of standard, reference"),
    "params": (
        {"params": [("x", torch.zeros(2))]},
        r"params: the model has no parameter 'x' of shape \(2,\)",
    ),
    "params shape": (
        {"params": [("0.weight", torch.zeros(2))]},
        r"params: the model has no parameter '0.weight' of shape \(2,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(InputError, match=f"^{message}"):
        KFAC(Chain(nn.Linear(4, 3)), **options)


class Pair(nn.Linear):
    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs), inputs


def nothing_to_train() -> nn.Module:
    model = Chain(nn.Linear(2, 2))
    return model.requires_grad_(False)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no layer": (lambda: Chain(nn.LayerNorm(4)), "no trainable Linear or Conv layer that K-FAC can treat"),
    "another forward": (lambda: Pair(4, 3), "no trainable Linear or Conv layer that K-FAC can treat"),
    "grouped": (lambda: Chain(nn.Conv2d(2, 2, 1, groups=2)), "no trainable Linear or Conv layer"),
    "frozen": (nothing_to_train, "it has no trainable parameters"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(3)),
        "'0.weight' has no shape yet; call the model with a batch first",
    ),
    "normed": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), "no trainable Linear or Conv"),
}


@pytest.mark.parametrize("name", MODELS)
def test_bad_models(name: str) -> None:
    build, message = MODELS[name]
    with pytest.raises(InputError, match=f"^model: .*{message}"):
        KFAC(build())


def test_several_devices_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, device="meta"))
    with pytest.raises(
        InputError, match=r"model: its parameters must be on one device; found \['cpu', 'meta'\]"
    ):
        KFAC(model)


def test_a_step_before_any_pass_is_an_error() -> None:
    with pytest.raises(
        InputError, match="step: no statistics yet; before the first step the model itself must be called"
    ):
        KFAC(Chain(nn.Linear(4, 3))).step()


def test_an_output_that_is_no_batch_is_an_error() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs).sum()

    model = Sum()
    _optimizer = KFAC(model)
    with pytest.raises(
        InputError, match="model: KFAC with fisher=true needs a model that returns one tensor"
    ):
        model(torch.randn(2, 4))


def test_sparse_gradients_are_refused() -> None:
    model = Mixed()
    model.embedding.sparse = True
    optimizer = KFAC(model)
    model(torch.randint(0, 5, (8, 2))).sum().backward()
    with pytest.raises(InputError, match="sparse gradients are not supported"):
        optimizer.step()


def test_copies_of_the_optimizer_are_refused_and_copies_of_the_model_are_free() -> None:
    model, optimizer = training()
    advance(model, optimizer, 0, 2)
    for attempt in (copy.deepcopy, pickle.dumps):
        with pytest.raises(InputError, match="KFAC: it is bound to its model and cannot be copied"):
            attempt(optimizer)  # type: ignore[operator]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(torch.randint(0, 5, (8, 2))).sum().backward()
    assert optimizer._capture.samples == 0


def test_a_dropped_optimizer_no_longer_watches() -> None:
    model, optimizer = training()
    capture = optimizer._capture
    optimizer.close()
    model(torch.randint(0, 5, (8, 2))).sum().backward()
    assert not capture.sums


def test_parameters_are_those_of_the_model() -> None:
    _, optimizer = training()
    with pytest.raises(InputError, match="add_param_group: the parameters are those of the model"):
        optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})


def test_states_of_others_are_refused() -> None:
    model, optimizer = training()
    advance(model, optimizer, 0, 1)
    with pytest.raises(InputError, match="state_dict: it was not written by KFAC"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters()).state_dict())
    with pytest.raises(InputError, match="state_dict: its preconditioner is inverse, not eigen"):
        training("eigen")[1].load_state_dict(optimizer.state_dict())
    wider = Chain(nn.Linear(9, 3))
    with pytest.raises(InputError, match="state_dict: the model has no layer 'hidden' with factors of sizes"):
        KFAC(wider).load_state_dict(optimizer.state_dict())
