"""Each controller against its formula, on updates made up by hand and in the optimizer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import GroupedNewton, Partition, summarize
from gnewton.errors import InputError
from gnewton.optim.averaging import NoAveraging
from gnewton.optim.controllers import Adaptive, Constant, Controller, Geometric, Overshoot, Plateau, Site
from gnewton.optim.rate_rule import Proposal, Solved
from gnewton.optim.rate_update import RateUpdate
from gnewton.optim.solvers import Solution
from tests.optim.problems import EXACT, Stream, classification, tanh_net


class Update(Site):
    """An update with given measurements, which remembers the factors it was solved with."""

    objective = 0.0

    def __init__(
        self,
        *,
        objective: float = 1.0,
        displacement: tuple[float, float] | None = None,
        predicted: float = 1.0,
        decreases: Callable[[int], list[float]] = lambda trial: [1.0, 1.0],
    ) -> None:
        self.solved: list[tuple[float, float]] = []
        self.trials = 0
        self.objective = objective
        self._displacement, self._predicted, self._decreases = displacement, predicted, decreases

    def propose(self, step_size: float, internal_damping: float) -> Proposal:
        self.solved.append((step_size, internal_damping))
        zeros = torch.zeros(2, dtype=torch.float64)
        return Proposal(Solved(zeros, zeros, zeros, zeros, Solution(zeros, "interior")))

    def predicted(self, proposal: Proposal, step_size: float, internal_damping: float) -> float:
        return self._predicted

    def decreases(self, proposal: Proposal, step_size: float, slices: int) -> Tensor:
        self.trials += 1
        return torch.tensor(self._decreases(self.trials - 1), dtype=torch.float64)

    def displacement(self) -> tuple[float, float] | None:
        return self._displacement


def follow(controller: Controller, updates: list[Update]) -> list[tuple[float, float]]:
    """The dampings of the first solve of each update."""
    for update in updates:
        controller.settle(update)
    return [update.solved[0] for update in updates]


# --- schedules ------------------------------------------------------------------------------------------


def test_constant_solves_once_with_the_dampings_as_they_are() -> None:
    updates = [Update() for _ in range(3)]
    assert follow(Constant(), updates) == [(1.0, 1.0)] * 3
    assert all(len(update.solved) == 1 for update in updates)


@pytest.mark.parametrize("quantity", ["step_size", "internal_damping"])
@pytest.mark.parametrize(("factor", "limit"), [(0.5, 0.2), (0.5, None), (3.0, 20.0), (3.0, None)])
def test_geometric_is_a_power_of_its_factor(quantity: str, factor: float, limit: float | None) -> None:
    found = follow(Geometric(quantity, factor, limit), [Update() for _ in range(5)])
    expected = [factor**k for k in range(5)]
    if limit is not None:
        expected = [max(value, limit) if factor < 1 else min(value, limit) for value in expected]
    position = ("step_size", "internal_damping").index(quantity)
    assert [pair[position] for pair in found] == pytest.approx(expected, rel=1e-14)
    assert {pair[1 - position] for pair in found} == {1.0}


def test_plateau_waits_for_its_patience() -> None:
    controller = Plateau("step_size", 0.5, 0.2, window=2, patience=1, threshold=0.1)
    #          best 4   best 3    not by 10 %  bad 2: halved, count anew    bad 2: halved   limit 0.2
    means = [(5, 3), (3, 3), (2.7, 2.9), (2.8, 2.7), (3, 3), (9, 9), (9, 9), (9, 9)]
    found = follow(controller, [Update(objective=value) for pair in means for value in pair])
    steps = [pair[0] for pair in found][1::2]  # at the update that completes a window
    assert steps == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.2]
    assert [pair[0] for pair in found][6:8] == [1.0, 0.5]


def test_plateau_begins_anew_at_an_improvement() -> None:
    controller = Plateau("internal_damping", 2.0, window=1, patience=1, threshold=0.0)
    values = [3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    found = follow(controller, [Update(objective=value) for value in values])
    assert [pair[1] for pair in found] == [1.0] * 6 + [2.0]


def test_plateau_of_a_negative_objective_takes_a_lower_one_as_better() -> None:
    controller = Plateau("step_size", 0.5, window=1, patience=0, threshold=0.1)
    found = follow(controller, [Update(objective=value) for value in (-1.0, -1.05, -1.2, -1.2)])
    assert [pair[0] for pair in found] == [1.0, 0.5, 0.5, 0.25]


# --- overshoot --------------------------------------------------------------------------------------------


def test_overshoot_moves_by_the_ratio_of_the_running_means() -> None:
    measured = [(1.0, 2.0), (-3.0, 1.0), (0.5, 4.0), (-2.0, 0.5)]
    controller = Overshoot(target=-0.3, gain=0.2, momentum=0.8)
    slope = curvature = log = 0.0
    for n, h in measured:
        slope, curvature = 0.8 * slope + n, 0.8 * curvature + h
        c = min(max(slope / curvature, -1.0), 1.0)
        log += 0.2 * (c + 0.3)
        update = Update(displacement=(n, h))
        controller.settle(update)
        assert update.solved == [(pytest.approx(math.exp(log), rel=1e-13), 1.0)]
        assert controller.readings() == {"overshoot": pytest.approx(c, rel=1e-13)}


@pytest.mark.parametrize(
    ("displacement", "c"),
    [((1.0, -1.0), 1.0), ((-1.0, -1.0), -1.0), ((0.0, 0.0), 0.0), ((9.0, 1.0), 1.0), ((-9.0, 1.0), -1.0)],
)
def test_overshoot_stays_within_its_bounds(displacement: tuple[float, float], c: float) -> None:
    controller = Overshoot(target=0.5, gain=1.0, momentum=0.0, bound=2.0)
    (found,) = follow(controller, [Update(displacement=displacement)])
    assert found[0] == pytest.approx(min(max(math.exp(c - 0.5), 0.5), 2.0))
    assert controller.readings() == {"overshoot": c}


def test_overshoot_leaves_the_damping_alone_while_nothing_moved() -> None:
    controller = Overshoot()
    assert follow(controller, [Update(), Update()]) == [(1.0, 1.0)] * 2
    assert math.isnan(controller.readings()["overshoot"])


def test_overshoot_measures_the_last_displacement_on_the_fresh_batch() -> None:
    """⟨g, w⟩ and wᵀHw by autograd over everything, w from parameters kept here."""
    model, updates, stream = tanh_net(), list[RateUpdate](), Stream(30)
    optimizer = GroupedNewton(
        model,
        F.cross_entropy,
        Partition.weights_biases(model),
        controller=Overshoot(target=-0.4, gain=0.1, momentum=0.5),
        curvature=stream,
        period=3,
        step_size=0.2,
        warmup=1,
        averaging=NoAveraging(),
        on_update=updates.append,
    )
    parameters = list(model.parameters())
    marked: list[Tensor] = []
    slope = curvature = 0.0
    step_size = 0.2
    for step in range(13):
        inputs, targets = classification(20, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        if step > 1 and (step - 1) % 3 == 0:
            w = [a - p.detach() for a, p in zip(marked, parameters, strict=True)]
            fresh = classification(30, seed=1000 + stream.position + 1)
            loss = F.cross_entropy(model(fresh[0]), fresh[1])
            gradient = torch.autograd.grad(loss, parameters, create_graph=True)
            along = sum((g * v).sum() for g, v in zip(gradient, w, strict=True))
            curved = torch.autograd.grad(along, parameters)
            slope = 0.5 * slope + float(along)
            curvature = 0.5 * curvature + float(sum((h * v).sum() for h, v in zip(curved, w, strict=True)))
            c = min(max(slope / curvature, -1.0), 1.0) if curvature > 0 else math.copysign(1.0, slope)
            step_size *= math.exp(0.1 * (c + 0.4))
        if step == 0 or (step - 1) % 3 == 0:
            marked = [p.detach().clone() for p in parameters]
        optimizer.step()
        assert updates[-1].step_size == pytest.approx([step_size] * 2, rel=1e-10)
    assert [update.step for update in updates] == [0, 1, 4, 7, 10]
    rates = [0.2 * group["rate"] * step_size / 0.2 for group in optimizer.param_groups]
    assert list(optimizer.rates.values()) == pytest.approx(rates, rel=1e-10)


# --- adaptive ---------------------------------------------------------------------------------------------


def test_adaptive_solves_again_while_the_decrease_falls_short_and_then_stops() -> None:
    def poor(trial: int) -> list[float]:
        return [-1.0, -1.0]

    update = Update(decreases=poor)
    controller = Adaptive(trials=3, increase=2.0, window=9)
    controller.settle(update)
    assert update.solved == [(1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (1.0, 8.0)]
    readings = controller.readings()
    assert (readings["trials_accepted"], readings["trials_rejected"], readings["decrease"]) == (0, 4, -1.0)
    assert controller.internal_damping == 1.0, "one update decides nothing"


def test_adaptive_stops_at_the_first_trial_that_passes() -> None:
    def second(trial: int) -> list[float]:
        return [-1.0, -1.0] if trial == 0 else [0.5, 0.5]

    update = Update(decreases=second)
    controller = Adaptive(trials=3)
    controller.settle(update)
    assert update.solved == [(1.0, 1.0), (1.0, 2.0)]
    assert (controller.readings()["trials_accepted"], controller.readings()["trials_rejected"]) == (1, 1)


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("mean", [-0.5, 0.05, 0.5, 0.9, 1.6])
def test_adaptive_allows_for_the_standard_error(mean: float, spread: float) -> None:
    values = [mean - spread, mean + spread, mean - spread, mean + spread]
    error = spread * math.sqrt(4 / 3) / 2
    controller = Adaptive(accept=0.1, succeed=0.75, errors=1.5, trials=0, window=1, increase=2.0, pull=0.0)
    controller.settle(Update(decreases=lambda trial: values))
    rejected = mean < 0.1 - 1.5 * error
    successful = mean - 1.5 * error >= 0.75
    assert controller.readings()["trials_rejected"] == int(rejected)
    assert controller.internal_damping == (2.0 if rejected else 0.5 if successful else 1.0)


def test_adaptive_moves_after_a_majority_and_counts_anew() -> None:
    rejected, fine = [-1.0, -1.0], [0.5, 0.5]
    controller = Adaptive(trials=0, window=3, pull=0.0)
    outcomes = [rejected, fine, rejected, rejected, fine, fine, fine, rejected, rejected]
    found = follow(controller, [Update(decreases=lambda trial, o=o: o) for o in outcomes])  # type: ignore[misc]
    assert [pair[1] for pair in found] == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert controller.internal_damping == 4.0


def test_adaptive_returns_to_its_base() -> None:
    controller = Adaptive(trials=0, window=1, pull=0.25)
    follow(controller, [Update(decreases=lambda trial: [-1.0, -1.0])])
    assert controller.internal_damping == 2.0
    found = follow(controller, [Update(decreases=lambda trial: [0.5, 0.5]) for _ in range(3)])
    assert [pair[1] for pair in found] == pytest.approx([2.0, 2**0.75, 2 ** (0.75**2)])


def test_adaptive_cannot_run_away_however_long_every_step_is_rejected() -> None:
    controller = Adaptive(trials=0, window=1, pull=0.1, increase=2.0)
    follow(controller, [Update(decreases=lambda trial: [-1.0, -1.0]) for _ in range(500)])
    assert controller.internal_damping == pytest.approx(2.0**10)  # log f = 0.9 log f + log 2


@pytest.mark.parametrize(("mean", "factor"), [(-0.5, 2.0), (-0.05, 1.0), (5.0, 1.0)])
def test_adaptive_takes_no_step_for_very_successful_that_was_to_go_uphill(mean: float, factor: float) -> None:
    """Clipping and caps can make such a step; the model predicted -1, so -0.1 is what is accepted."""
    controller = Adaptive(accept=0.1, trials=0, window=1, pull=0.0)
    controller.settle(Update(predicted=-1.0, decreases=lambda trial: [mean, mean]))
    assert controller.internal_damping == factor


def test_adaptive_passes_no_verdict_where_nothing_moves() -> None:
    update = Update(predicted=0.0)
    controller = Adaptive(window=1)
    controller.settle(update)
    assert update.trials == 0
    assert update.solved == [(1.0, 1.0)]
    assert controller.readings()["trials_accepted"] == controller.readings()["trials_rejected"] == 0


def test_adaptive_rejects_a_step_to_where_the_loss_is_not_finite() -> None:
    controller = Adaptive(trials=0, window=1, pull=0.0)
    controller.settle(Update(decreases=lambda trial: [math.nan, 1.0]))
    assert controller.internal_damping == 2.0


@pytest.mark.parametrize("solver", ["cubic", "ridge"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("maximize", [False, True])
def test_adaptive_compares_model_and_objective(solver: str, decay: float, maximize: bool) -> None:
    """Both decreases of the first step against their definitions, dampings and weight decay included."""
    model, updates = tanh_net(), list[RateUpdate]()
    sign = -1.0 if maximize else 1.0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return sign * F.cross_entropy(outputs, targets)

    optimizer = GroupedNewton(
        model,
        loss_fn,
        direction=lambda named: torch.optim.SGD(named, lr=1.0, weight_decay=decay),
        solver=solver,
        internal_damping=0.5,
        step_size=0.3,
        negative_rates="keep",
        proximal=0.0,
        averaging=NoAveraging(),
        warmup=0,
        **{**EXACT, "controller": Adaptive(trials=0, slices=7)},
        maximize=maximize,
        on_update=updates.append,
    )
    inputs, targets = classification(21)

    def objective() -> float:
        regular = sum(float(p.detach().square().sum()) for p in model.parameters())
        return float(F.cross_entropy(model(inputs), targets).detach()) + decay / 2 * regular

    before = objective()
    loss_fn(model(inputs), targets).backward()
    u = {name: p.grad * sign + decay * p.detach() for name, p in model.named_parameters()}
    summary = summarize(model, F.cross_entropy, inputs, targets, optimizer.partition, u, engine="reference")
    slopes = [decay * float((p.detach() * u[name]).sum()) for name, p in model.named_parameters()]
    bends = torch.tensor([decay * float(v.square().sum()) for v in u.values()], dtype=torch.float64)
    optimizer.step(batch=(inputs, targets))
    update = updates[0]
    assert update.readings["decrease"] == pytest.approx(before - objective(), rel=1e-10)
    rates = 0.3 * update.solved.rates
    hessian = summary.hessian + torch.diag(bends)
    expected = (
        summary.gradient + torch.tensor(slopes, dtype=torch.float64)
    ) @ rates - rates @ hessian @ rates / 2
    if solver == "cubic":
        expected -= 0.5 / 6 * (summary.third.abs() ** (1 / 3) * rates).norm() ** 3
    else:
        expected -= 0.5 / 2 * (hessian.diagonal().abs() * rates.square()).sum()
    assert update.readings["predicted"] == pytest.approx(float(expected), rel=1e-9)
    assert update.readings["trials_accepted"] + update.readings["trials_rejected"] == 1
    assert update.loss == pytest.approx(sign * float(summary.loss), rel=1e-12)


def test_slices_of_the_decrease_average_to_that_of_the_batch() -> None:
    model = tanh_net()
    optimizer = GroupedNewton(model, F.cross_entropy)
    inputs, targets = classification(20)
    step = [0.1 * torch.randn_like(p) for p in model.parameters()]

    def loss() -> Tensor:
        return F.cross_entropy(model(inputs), targets, reduction="none").detach()

    before = loss()
    with torch.no_grad():
        for p, s in zip(model.parameters(), step, strict=True):
            p.sub_(s)
    change = before - loss()
    with torch.no_grad():
        for p, s in zip(model.parameters(), step, strict=True):
            p.add_(s)
    none = [0.0] * len(step)
    for slices, bounds in ((4, [0, 5, 10, 15, 20]), (3, [0, 7, 13, 20]), (50, list(range(21)))):
        found = optimizer._measurer.decreases(inputs, targets, step, none, slices)
        expected = torch.stack([change[a:b].mean() for a, b in itertools.pairwise(bounds)])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_trials_leave_no_trace() -> None:
    """Buffers and random streams do not move, and both losses of a slice draw the same masks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    optimizer = GroupedNewton(model, F.cross_entropy)
    inputs, targets = classification(20)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    state = torch.get_rng_state()
    zero = [torch.zeros_like(p) for p in model.parameters()]
    found = optimizer._measurer.decreases(inputs, targets, zero, [0.0] * len(zero), 4)
    assert found.tolist() == [0.0] * 4
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())


# --- what all have in common --------------------------------------------------------------------------------

EVERY: dict[str, Callable[[], Controller]] = {
    "geometric": lambda: Geometric("step_size", 0.9, 0.5),
    "geometric_internal": lambda: Geometric("internal_damping", 1.5),
    "plateau": lambda: Plateau("step_size", 0.5, window=2, patience=0, threshold=0.5),
    "overshoot": lambda: Overshoot(),
    "adaptive": lambda: Adaptive(window=2, errors=0.1),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_restored_state_continues_exactly(name: str) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw() -> Update:
        values = torch.randn(5, generator=generator, dtype=torch.float64).tolist()
        return Update(
            objective=values[0],
            displacement=(values[1], abs(values[2])),
            decreases=lambda trial: [values[3], values[4]],
        )

    straight, first, second = EVERY[name](), EVERY[name](), EVERY[name]()
    updates = [draw() for _ in range(20)]
    expected = follow(straight, updates)
    for update in updates:
        update.solved.clear()
    found = follow(first, updates[:9])
    second.load_state_dict(first.state_dict())
    first.settle(draw())  # what was saved is not shared
    assert found + follow(second, updates[9:]) == expected
    assert second.readings() == straight.readings()
    assert len(set(expected)) > 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Geometric("lr", 0.5), "quantity=lr: must be one of step_size, internal_damping"),
        (lambda: Geometric("step_size", 0.0), "factor=0.0: must be a finite number > 0"),
        (lambda: Geometric("step_size", 0.5, 2.0), "limit=2.0: must be > 0 and <= 1, the quantity falls"),
        (lambda: Geometric("step_size", 2.0, 0.5), "limit=0.5: must be >= 1, the quantity rises"),
        (lambda: Plateau("step_size", 0.5, window=0), "window=0: must be an integer >= 1"),
        (lambda: Plateau("step_size", 0.5, patience=-1), "patience=-1: must be an integer >= 0"),
        (lambda: Plateau("step_size", 0.5, threshold=-1), "threshold=-1: must be a finite number >= 0"),
        (lambda: Overshoot(target=1.0), "target=1.0: must be a finite number >= -1 and < 1"),
        (lambda: Overshoot(gain=0.0), "gain=0.0: must be a finite number > 0"),
        (lambda: Overshoot(momentum=1.0), "momentum=1.0: must be a finite number >= 0 and < 1"),
        (lambda: Overshoot(bound=1.0), "bound=1.0: must be a finite number > 1"),
        (lambda: Adaptive(accept=0.8), "accept=0.8, succeed=0.75: must be 0 <= accept < succeed <= 1"),
        (lambda: Adaptive(errors=-1.0), "errors=-1.0: must be a finite number >= 0"),
        (lambda: Adaptive(increase=1.0), "increase=1.0: must be a finite number > 1"),
        (lambda: Adaptive(trials=-1), "trials=-1: must be an integer >= 0"),
        (lambda: Adaptive(pull=1.5), "pull=1.5: must be a finite number >= 0 and <= 1"),
    ],
)
def test_bad_settings_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("settings", [{"solver": "newton"}, {"internal_damping": 0.0}])
@pytest.mark.parametrize("name", ["adaptive", "geometric_internal"])
def test_a_controller_needs_something_to_move(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="it moves the internal damping, which needs internal_damping > 0"):
        GroupedNewton(tanh_net(), F.cross_entropy, controller=EVERY[name](), **settings)
