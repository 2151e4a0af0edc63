"""GroupedNewton against the methods it becomes in its limits, and against its own invariances."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from gnewton import GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.optim.averaging import (
    ExponentialAveraging,
    NoAveraging,
    StaticAveraging,
    UniformAveraging,
)
from gnewton.optim.controllers import Constant, Progress
from gnewton.optim.grouped_newton import ANNEALED
from gnewton.optim.kfac import KFAC
from gnewton.optim.options import OPTIMIZERS
from gnewton.optim.options.components import TrapezoidSchedule
from gnewton.optim.rate_rule import RateUpdate
from gnewton.optim.rate_updater import annealed
from tests.optim.problems import (
    EXACT,
    NOTHING,
    Quadratic,
    Stream,
    advance,
    classification,
    flat,
    take_step,
    tanh_net,
    value,
)
from tests.recipes import recipe

GRADIENT = partial(torch.optim.SGD, lr=1.0)
CONFIGS = Path(__file__).parents[2] / "configs" / "optimizer"
BARE: dict[str, Any] = {
    **EXACT,
    "direction": GRADIENT,
    "period": 1,
    "step_size": 1.0,
    "internal_damping": 0.0,
    "negative_rates": "keep",
    "normalise": False,
    "proximal": 0.0,
    "averaging": NoAveraging(),
    "warmup": 0,
}
PLAIN: dict[str, Any] = {"shrinkage": 0.0, "proximal": 0.0, "averaging": NoAveraging(), "warmup": 0}
MOMENTUM = partial(torch.optim.SGD, lr=1.0, momentum=0.9)


# --- limits in which the method becomes a known one -------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
def test_one_group_without_the_cubic_term_is_the_exact_line_search(normalise: bool) -> None:
    model = Quadratic(5)
    gradient = torch.stack(torch.autograd.grad(model(NOTHING[0]), list(model.x)))
    rate = gradient @ gradient / (gradient @ model.a @ gradient)
    expected = flat(model) - rate * gradient
    optimizer = GroupedNewton(model, value, Partition.single(model), **BARE | {"normalise": normalise})
    take_step(model, optimizer, NOTHING, value)
    torch.testing.assert_close(flat(model), expected, rtol=1e-12, atol=1e-12)


def test_one_group_per_scalar_is_newtons_method() -> None:
    model = Quadratic(6)
    optimizer = GroupedNewton(model, value, Partition.per_tensor(model), **BARE)
    take_step(model, optimizer, NOTHING, value)
    torch.testing.assert_close(flat(model), model.solution(), rtol=1e-9, atol=1e-9)


def test_a_quadratic_has_no_third_derivative_so_the_cubic_term_changes_nothing() -> None:
    model = Quadratic(4)
    optimizer = GroupedNewton(model, value, Partition.per_tensor(model), **BARE | {"internal_damping": 5.0})
    take_step(model, optimizer, NOTHING, value)
    torch.testing.assert_close(flat(model), model.solution(), rtol=1e-6, atol=1e-6)


def test_infinite_internal_damping_stops_every_step() -> None:
    model, batch = tanh_net(), classification(20)
    before = flat(model).clone()
    optimizer = GroupedNewton(model, F.cross_entropy, **BARE | {"internal_damping": 1e30})
    take_step(model, optimizer, batch)
    assert (flat(model) - before).abs().max() < 1e-8


def test_constant_rates_are_the_inner_optimizer() -> None:
    model, batch = tanh_net(), classification(20)
    twin = copy.deepcopy(model)
    optimizer = GroupedNewton(model, F.cross_entropy, direction=MOMENTUM, period=1000, warmup=1, **EXACT)
    reference = torch.optim.SGD(twin.parameters(), lr=0.07, momentum=0.9)
    take_step(model, optimizer, batch)  # the warm-up step: the direction advances, nothing moves
    optimizer.hold(0.07)
    loss = F.cross_entropy(twin(batch[0]), batch[1])
    loss.backward()
    for p in twin.parameters():
        reference.state[p]["momentum_buffer"] = p.grad.clone()
    for _ in range(10):
        take_step(model, optimizer, batch)
        take_step(twin, reference, batch)
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-12, atol=1e-12)


def test_held_rates_stay_until_they_are_released() -> None:
    model, batch, updates = tanh_net(), classification(20), []
    options: dict[str, Any] = {"direction": "adam", "period": 1}
    optimizer = GroupedNewton(model, F.cross_entropy, on_update=updates.append, **options)
    take_step(model, optimizer, batch)
    held = [0.01 * (s + 1) for s in range(len(optimizer.partition))]
    optimizer.hold(held)
    step_size = [group["lr"] * optimizer._updater.controller.step_size for group in optimizer.param_groups]
    for _ in range(3):
        take_step(model, optimizer, batch)
    twin = GroupedNewton(copy.deepcopy(model), F.cross_entropy, **options)
    twin.load_state_dict(optimizer.state_dict())
    expected = [lr * eta for lr, eta in zip(step_size, held, strict=True)]
    assert list(optimizer.rates.values()) == pytest.approx(expected)
    assert twin.rates == optimizer.rates
    twin.step()  # no batch is needed: the state says that the rates are held
    assert len(updates) == 1
    optimizer.release()
    take_step(model, optimizer, batch)
    assert len(updates) == 2
    with pytest.raises(InputError, match="hold: rates must be one number, or 6 of them; got 2"):
        optimizer.hold([0.1, 0.1])


# --- invariance -------------------------------------------------------------------------------------


class Rescaled(nn.Module):
    """A network whose parameters are θ_s = a_s θ̃_s, with θ̃ trained in place of θ."""

    def __init__(self, model: nn.Module, factors: dict[str, float]) -> None:
        super().__init__()
        self.inner = [copy.deepcopy(model)]  # in a list: its own parameters are not ours
        self.factors = factors
        for name, p in model.named_parameters():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(p.detach() / factors[name]))

    def actual(self) -> dict[str, Tensor]:
        return {name: a * getattr(self, name.replace(".", "_")) for name, a in self.factors.items()}

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.func.functional_call(self.inner[0], self.actual(), (inputs,))


SETTINGS: dict[str, dict[str, Any]] = {
    "bare": {"internal_damping": 0.0, "negative_rates": "clip", "step_size": 0.05},
    "cubic": {"internal_damping": 1.0},
    "averaged": {"averaging": lambda: UniformAveraging(3), "normalise": False},
    "default": {"averaging": lambda: ExponentialAveraging(0.9), "proximal": 1.0, "warmup": 2},
    "constrained": {"negative_rates": "constrain", "internal_damping": 1.0},
    "diagonal": {"solver": "cubic_diagonal"},
    "ridge": {"solver": "ridge", "internal_damping": 0.3, "negative_rates": "constrain"},
    "newton": {"solver": "newton", "step_size": 0.05, "cap": 0.3},
    "static": {"averaging": lambda: StaticAveraging(3), "curvature": Stream},
    "capped": {"cap": 0.05, "step_size": 1.0},
    "progress": {"controller": lambda: Progress(window=4)},
    "annealed": {"total_steps": 9, "step_size": 1.5},
}


def built(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with new instances of the parts that have a state."""
    return {name: value() if callable(value) else value for name, value in settings.items()}


def trajectory(
    model: nn.Module, settings: dict[str, Any], rescale: Callable[[dict[str, Tensor]], Any]
) -> list[Tensor]:
    """50 steps on minibatches. ``rescale`` gives the direction the units of the model's parameters."""
    settings = built(PLAIN | settings)
    optimizer = GroupedNewton(
        model, F.cross_entropy, **{**EXACT, "direction": rescale, "period": 3, "step_size": 0.1, **settings}
    )
    states = []
    for step in range(50):
        take_step(model, optimizer, classification(30, seed=step))
        states.append(model.actual() if isinstance(model, Rescaled) else dict(model.named_parameters()))
        states[-1] = torch.cat([p.detach().clone().flatten() for p in states[-1].values()])
    return states


class Scaled(torch.optim.Optimizer):
    """SGD with momentum whose step on parameter i is a_i² times its own: ũ = u / a in rescaled units.

    In units θ̃ = θ/a the gradient is a·g; the direction that corresponds to u = g is g/a = (a·g)/a².
    """

    def __init__(self, parameters: list[Tensor], factors: list[float]) -> None:
        super().__init__(parameters, {})
        self.inner = torch.optim.SGD(parameters, lr=1.0, momentum=0.9, dampening=0.9)
        self.factors = factors

    def step(self, closure: Any = None) -> None:
        before = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self.inner.step()
        with torch.no_grad():
            ours = [p for group in self.param_groups for p in group["params"]]
            for p, old, a in zip(ours, before, self.factors, strict=True):
                p.copy_(old + (p - old) / a**2)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_trajectory_does_not_depend_on_the_scale_of_the_groups(name: str) -> None:
    model = tanh_net()
    generator = torch.Generator().manual_seed(3)
    decades = 2 if "cap" in SETTINGS[name] else 6  # the floor of the cap is the one thing that has a scale
    factors = {
        key: float(10 ** (decades * (torch.rand((), generator=generator) - 0.5)))
        for key, _ in model.named_parameters()
    }
    rescaled = Rescaled(model, factors)
    settings = SETTINGS[name]
    plain = trajectory(model, settings, partial(torch.optim.SGD, lr=1.0, momentum=0.9, dampening=0.9))
    other = trajectory(rescaled, settings, lambda tensors: Scaled(tensors, list(factors.values())))
    assert (plain[-1] - plain[0]).norm() > 0.1, "the run went somewhere"
    for one, two in zip(plain, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_the_scale_of_the_direction_is_immaterial() -> None:
    runs = [
        trajectory(tanh_net(), {"internal_damping": 1.0}, partial(torch.optim.SGD, lr=lr, momentum=0.9))
        for lr in (1.0, 1e-4)
    ]
    for one, two in zip(*runs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)


# --- behaviour --------------------------------------------------------------------------------------


def test_rates_change_every_period_and_the_direction_at_every_step() -> None:
    model, updates = tanh_net(), []
    optimizer = GroupedNewton(model, F.cross_entropy, period=4, warmup=2, on_update=updates.append)
    before = flat(model).clone()
    for step in range(2):
        take_step(model, optimizer, classification(20, seed=step))
        assert torch.equal(flat(model), before), "warm-up moves nothing"
        assert set(optimizer.rates.values()) == {0.0}
    for step in range(2, 12):
        take_step(model, optimizer, classification(20, seed=step))
    assert [update.step for update in updates] == [0, 1, 2, 6, 10]
    assert [update.warming_up for update in updates] == [True, True, False, False, False]
    assert not torch.equal(flat(model), before)


def test_clipping_removes_negative_rates_and_keeping_does_not() -> None:
    lowest = {}
    for mode in ("keep", "clip", "constrain"):
        model = tanh_net()
        optimizer = GroupedNewton(model, F.cross_entropy, negative_rates=mode, period=1, **PLAIN)
        lows = []
        for step in range(15):
            take_step(model, optimizer, classification(20, seed=step))
            lows.append(min(optimizer.rates.values()))
        lowest[mode] = min(lows)
    assert lowest["keep"] < 0
    assert lowest["clip"] == 0
    assert lowest["constrain"] >= 0


def test_a_known_length_anneals_the_rates_to_zero(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = tanh_net()
    options = {"total_steps": 8, "step_size": 0.5, "period": 3, "controller": Constant(), **PLAIN}
    optimizer = GroupedNewton(model, F.cross_entropy, **options)
    for k in range(8):
        take_step(model, optimizer, classification(20))
        eta = [group["rate"] for group in optimizer.param_groups]
        factor = 0.5 * min(1.0, 2 * (1 - (k + 1) / 8))  # that of the next step
        assert list(optimizer.rates.values()) == pytest.approx([factor * rate for rate in eta], abs=1e-15)
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert not warnings
    before = flat(model)
    for _ in range(4):
        take_step(model, optimizer, classification(20))
    assert torch.equal(flat(model), before)
    (warning,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "training goes on after total_steps=8" in warning


def test_the_default_controller_lowers_the_step_size_only_where_no_end_is_known() -> None:
    for total_steps, lowest in ((None, 0.3), (8, 1.0)):
        optimizer = GroupedNewton(tanh_net(), F.cross_entropy, total_steps=total_steps)
        controller = optimizer._updater.controller
        assert isinstance(controller, Progress)
        assert controller._lowest == lowest


def test_a_known_length_means_the_same_as_the_schedule_of_the_command_line() -> None:
    chosen = yaml.safe_load((CONFIGS / "grouped_newton.yaml").read_text())["defaults"]
    assert {"schedule": "trapezoid"} in chosen
    assert {"controller": "rising"} in chosen
    rising = yaml.safe_load((CONFIGS / "controller" / "rising.yaml").read_text())
    assert rising["lowest"] == ANNEALED
    schedule = TrapezoidSchedule(name="trapezoid")
    assert [annealed(k / 7) for k in range(8)] == pytest.approx([schedule.factor(k, 7) for k in range(8)])


def test_step_size_scales_the_rates_and_schedulers_act_on_it() -> None:
    model = tanh_net()
    optimizer = GroupedNewton(model, F.cross_entropy, step_size=0.5, period=100, **PLAIN)
    take_step(model, optimizer, classification(20))
    before = list(optimizer.rates.values())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    optimizer.step(batch=classification(20))
    scheduler.step()
    assert list(optimizer.rates.values()) == pytest.approx([0.1 * rate for rate in before])


def test_curvature_batches_come_from_their_own_iterable_and_start_over() -> None:
    class Counted:
        def __init__(self) -> None:
            self.starts = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.starts += 1
            yield classification(10, seed=0)
            yield classification(10, seed=1)

    batches = Counted()
    model = tanh_net()
    optimizer = GroupedNewton(model, F.cross_entropy, period=1, curvature=batches, **PLAIN)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(classification(10)[0]), classification(10)[1]).backward()
        optimizer.step()
    assert batches.starts == 3


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned() -> None:
    model, batch = tanh_net(), classification(20)
    optimizer = GroupedNewton(model, F.cross_entropy)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    with torch.no_grad():
        first = float(optimizer.step(closure, batch=batch).detach())
    for _ in range(40):
        last = float(optimizer.step(closure, batch=batch).detach())
    assert last < first


def test_a_group_whose_direction_vanishes_keeps_its_parameters() -> None:
    model = tanh_net()
    model.unused = nn.Linear(3, 3).double()
    before = model.unused.weight.detach().clone()
    model.forward = lambda inputs: nn.Sequential.forward(model, inputs) if False else _forward(model, inputs)  # type: ignore[method-assign]
    optimizer = GroupedNewton(model, F.cross_entropy, period=1)
    for step in range(4):
        take_step(model, optimizer, classification(20, seed=step))
    assert torch.equal(model.unused.weight, before)
    assert all(math.isfinite(rate) for rate in optimizer.rates.values())


def _forward(model: nn.Module, inputs: Tensor) -> Tensor:
    for layer in list(model.children())[:5]:
        inputs = layer(inputs)
    return inputs


def test_a_direction_of_zero_everywhere_is_at_rest() -> None:
    model = Quadratic(3)
    with torch.no_grad():
        for p, x in zip(model.x, model.solution(), strict=True):
            p.copy_(x)
    model.b.copy_(model.a @ flat(model))
    updates: list[RateUpdate] = []
    optimizer = GroupedNewton(model, value, **BARE, on_update=updates.append)
    for p in model.x:
        p.grad = torch.zeros_like(p)
    optimizer.step(batch=NOTHING)
    assert updates[0].solved.solution.status == "at_rest"
    assert set(optimizer.rates.values()) == {0.0}


def test_a_summary_that_is_not_finite_leaves_rates_and_parameters_alone() -> None:
    model, updates = tanh_net(), []
    optimizer = GroupedNewton(
        model, F.cross_entropy, period=2, averaging=ExponentialAveraging(0.9), on_update=updates.append
    )
    good = classification(20)
    take_step(model, optimizer, good)
    take_step(model, optimizer, good)
    rates = optimizer.rates
    optimizer.zero_grad()
    F.cross_entropy(model(good[0]), good[1]).backward()
    optimizer.step(batch=(good[0] * float("nan"), good[1]))
    assert updates[-1].solved.solution.status == "invalid_input"
    assert optimizer.rates == rates
    assert flat(model).isfinite().all()
    take_step(model, optimizer, good)
    take_step(model, optimizer, good)
    assert updates[-1].solved.solution.status != "invalid_input", "the average was not poisoned"


def test_an_unbounded_model_is_answered_by_a_finite_fallback() -> None:
    class Saddle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor([1.0, 0.5], dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.x[0] ** 2 - 3 * self.x[1] ** 2

    model, updates = Saddle(), []
    optimizer = GroupedNewton(model, value, **BARE, on_update=updates.append)
    take_step(model, optimizer, NOTHING, value)
    assert updates[0].solved.solution.fell_back
    assert optimizer.fallbacks == 1
    assert flat(model).isfinite().all()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("direction", ["sgd", "adam"])
def test_a_restored_state_continues_bit_for_bit(name: str, direction: str) -> None:
    factory = {
        "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
        "adam": partial(torch.optim.Adam, lr=1.0),
    }

    def build(model: nn.Module) -> GroupedNewton:
        settings = built(SETTINGS[name])
        return GroupedNewton(model, F.cross_entropy, direction=factory[direction], period=3, **settings)

    straight = tanh_net()
    advance(straight, build(straight), 0, 14)
    model = tanh_net()
    optimizer = build(model)
    advance(model, optimizer, 0, 7)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    resumed = tanh_net(seed=99)
    resumed.load_state_dict(saved[0])
    other = build(resumed)
    other.load_state_dict(saved[1])
    advance(resumed, other, 7, 14)
    assert torch.equal(flat(resumed), flat(straight))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_parameter_without_gradient_has_no_direction(set_to_none: bool) -> None:
    """zero_grad(set_to_none) decides between no gradient and one of zero; neither moves a parameter."""
    model = tanh_net()
    optimizer = GroupedNewton(model, F.cross_entropy, direction=GRADIENT, period=1, **PLAIN)
    batch = classification(20)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    before = flat(model).clone()
    optimizer.step(batch=batch)
    assert torch.equal(flat(model), before)
    head = model[4]
    loss = F.cross_entropy(head(model[:4](batch[0]).detach()), batch[1])
    loss.backward()
    optimizer.step(batch=batch)
    assert torch.equal(flat(model[:4]), before[: len(flat(model[:4]))])
    assert not torch.equal(flat(model), before)


def test_parameters_on_several_devices_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, device="meta"))
    with pytest.raises(InputError, match=r"must be on one device; found \['cpu', 'meta'\]"):
        GroupedNewton(model, F.cross_entropy)


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    optimizer = GroupedNewton(model, F.cross_entropy)
    inputs, targets = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 2])
    F.cross_entropy(model(inputs), targets).backward()
    with pytest.raises(InputError, match="sparse gradients are not supported"):
        optimizer.step(batch=(inputs, targets))


@pytest.mark.parametrize("name", ["default", "progress"])
def test_maximising_is_minimising_the_negative(name: str) -> None:
    ends = []
    for maximize in (False, True):

        def loss_fn(outputs: Tensor, targets: Tensor, sign: int = 1 - 2 * maximize) -> Tensor:
            return sign * F.cross_entropy(outputs, targets)

        model = tanh_net()
        settings = built(SETTINGS[name])
        optimizer = GroupedNewton(
            model, loss_fn, direction=MOMENTUM, period=2, maximize=maximize, **PLAIN | settings
        )
        for step in range(12):
            take_step(model, optimizer, classification(20, seed=step), loss_fn)
        ends.append(flat(model))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


def test_frozen_parameters_stay() -> None:
    model = tanh_net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = GroupedNewton(model, F.cross_entropy)
    for step in range(5):
        take_step(model, optimizer, classification(20, seed=step))
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("form", ["all", "pairs"])
def test_it_minimises_rosenbrock_functions(form: str) -> None:
    class Rosenbrock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
            columns = start.repeat(4, 1)
            if form == "all":
                self.odd, self.even = nn.Parameter(columns[:, 0].clone()), nn.Parameter(columns[:, 1].clone())
            else:
                self.pairs = nn.ParameterList([nn.Parameter(start.clone()) for _ in range(4)])

        def forward(self, inputs: Tensor) -> Tensor:
            pairs = (
                torch.stack(list(self.pairs)) if form == "pairs" else torch.stack([self.odd, self.even], 1)
            )
            return ((pairs[:, 0] - 1) ** 2 + 100 * (pairs[:, 0] ** 2 - pairs[:, 1]) ** 2).sum()

    model = Rosenbrock()
    optimizer = GroupedNewton(model, value, **BARE | {"internal_damping": 1.0})
    losses = [take_step(model, optimizer, NOTHING, value) for _ in range(250)]
    assert losses[0] > 10
    assert losses[-1] < 1e-12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"period": 0}, "period=0: must be an integer >= 1"),
        ({"step_size": 0.0}, "step_size=0.0: must be a finite number > 0"),
        ({"total_steps": 0}, "total_steps=0: must be an integer >= 1"),
        ({"warmup": -1}, "warmup=-1: must be an integer >= 0"),
        ({"internal_damping": -1.0}, "internal_damping=-1.0: must be a finite number >= 0"),
        ({"shrinkage": -1.0}, "shrinkage=-1.0: must be a finite number >= 0"),
        ({"proximal": -0.5}, "proximal=-0.5: must be a finite number >= 0"),
        ({"negative_rates": "drop"}, "negative_rates=drop: must be one of keep, clip, constrain"),
        ({"period": float("nan")}, "period=nan: must be an integer"),
        ({"step_size": float("inf")}, "step_size=inf: must be a finite number"),
        ({"cap": -1.0}, "cap=-1.0: must be a finite number > 0"),
        ({"averaging": StaticAveraging(2)}, "several batches at each update: needs curvature="),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GroupedNewton(tanh_net(), F.cross_entropy, **settings)


def test_misuse_is_refused_with_a_reason() -> None:
    model = tanh_net()
    optimizer = GroupedNewton(model, F.cross_entropy)
    F.cross_entropy(model(classification(5)[0]), classification(5)[1]).backward()
    with pytest.raises(InputError, match="pass batch="):
        optimizer.step()
    with pytest.raises(InputError, match="another model"):
        GroupedNewton(model, F.cross_entropy, Partition.per_tensor(nn.Linear(2, 2)))
    with pytest.raises(InputError, match="not written by GroupedNewton"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=1).state_dict())
    with pytest.raises(InputError, match="its groups are"):
        optimizer.load_state_dict(GroupedNewton(model, F.cross_entropy, Partition.single(model)).state_dict())
    with pytest.raises(InputError, match="holds no batch"):
        GroupedNewton(model, F.cross_entropy, curvature=[]).step()


def test_the_defaults_of_the_library_are_those_of_the_command_line() -> None:
    chosen = recipe(OPTIMIZERS, "grouped_newton", "grouped_newton")
    optimizer = GroupedNewton(tanh_net(), F.cross_entropy)
    rule, inner = optimizer._updater.rule, optimizer._directions.members[0].inner
    assert (chosen.direction.name, chosen.averaging.name) == ("kfac", "exponential")
    assert isinstance(inner, KFAC)
    for name in ("momentum", "weight_decay", "damping", "kl_clip"):
        assert inner.param_groups[0][name] == getattr(chosen.direction, name)
    assert (inner._kind, inner._capture.lenient) == (
        chosen.direction.preconditioner,
        chosen.direction.fisher == "auto",
    )
    assert optimizer.defaults["lr"] == chosen.step_size
    assert (optimizer._schedule.period, optimizer._schedule.warmup) == (chosen.period, chosen.warmup)
    for name in ("internal_damping", "shrinkage", "proximal", "normalise"):
        assert getattr(rule, name) == getattr(chosen, name)
    assert rule.negative_rates.value == chosen.negative_rates
    assert isinstance(rule.averaging, ExponentialAveraging)
    assert rule.averaging._coefficient == chosen.averaging.coefficient
    assert chosen.curvature.source == "training"
    assert optimizer._rates.trust is not None
    assert (optimizer._rates.trust.cap, optimizer._updater.safeguard is not None) == (
        chosen.cap,
        chosen.safeguard,
    )
    assert ("fresh" if optimizer._fresh else "step") == chosen.along
