"""Which passes feed K-FAC with ``fisher="auto"``, and on what scale their gradients are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gnewton.optim.inner_optimizers import parts as inner_parts
from gnewton.optim.kfac import KFAC, direction
from gnewton.optim.kfac.direction import is_watchable, kfac_direction
from tests.optim.kfac.test_any_loop import BATCH, Net, as_a_whole, assert_same, factors, in_parts

Step = Callable[[Any, KFAC], None]


def after(*steps: Step, build: Callable[[], nn.Module] = Net, **options: Any) -> dict[str, Any]:
    """The factors after some steps, each of which makes its passes and gradients itself."""
    model = build()
    optimizer = KFAC(model, lr=0.01, statistics_period=1, seed=4, **{"fisher": "auto", **options})
    for step in steps:
        optimizer.zero_grad()
        step(model, optimizer)
        optimizer.step()
    return optimizer.factors


def whole(model: Any, _: KFAC) -> None:
    F.cross_entropy(model(BATCH[0]), BATCH[1]).backward()


def parts(model: Any, _: KFAC) -> None:
    F.cross_entropy(in_parts(model, BATCH[0]), BATCH[1]).backward()


def trial(model: Any, optimizer: KFAC) -> None:
    """A pass that is not trained, before one of the parts that is."""
    model(BATCH[0] * 3)
    parts(model, optimizer)


def test_a_trial_of_the_model_does_not_stand_in_for_the_parts_that_are_trained() -> None:
    assert_same(after(trial, parts), after(parts, parts))


def test_passes_that_are_not_trained_do_not_count() -> None:
    def twice(model: Any, optimizer: KFAC) -> None:
        outputs = model(BATCH[0])
        model(BATCH[0] * 3)  # an evaluation with gradients enabled, in training mode
        F.cross_entropy(outputs, BATCH[1]).backward()

    assert_same(after(twice, likelihood=fixed), after(whole, likelihood=fixed))


def fixed(outputs: Tensor, _: Any) -> Tensor:
    """The same vectors at every draw."""
    return torch.randn(outputs.shape, generator=torch.Generator().manual_seed(7), dtype=outputs.dtype)


def test_training_in_evaluation_mode_after_one_in_training_mode_is_seen_again() -> None:
    def evaluating(model: Any, optimizer: KFAC) -> None:
        model.eval()
        F.cross_entropy(model(BATCH[0] * 2), BATCH[1]).backward()

    model = Net()
    optimizer = KFAC(model, fisher="auto", statistics_period=1)
    whole(model, optimizer)
    optimizer.step()
    before = optimizer.factors["encode"][0].clone()
    for _ in range(2):  # the first step finds that no pass in training mode is trained any more
        evaluating(model, optimizer)
        optimizer.step()
    assert not torch.equal(before, optimizer.factors["encode"][0])


class Recursive(nn.Module):
    """Calls itself for the second half of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode = nn.Linear(4, 5).double()
        self.decode = nn.Linear(5, 3).double()

    def forward(self, inputs: Tensor, depth: int = 1) -> Tensor:
        if depth == 0:
            return torch.tanh(self.encode(inputs))
        halves = inputs.chunk(2)
        return self.decode(torch.cat([self(half, depth - 1) for half in halves]))


def test_a_model_that_calls_itself_has_one_pass() -> None:
    expected = factors(Net(), as_a_whole, [BATCH], fisher="true", seed=4)
    assert_same(factors(Recursive(), as_a_whole, [BATCH], fisher="auto", seed=4), expected)


def test_a_pass_that_fails_leaves_no_trace() -> None:
    def failing(model: Any, optimizer: KFAC) -> None:
        with pytest.raises(RuntimeError):
            model(torch.zeros(2, 3).double())
        whole(model, optimizer)

    assert_same(after(failing), after(whole))


def test_a_checkpoint_around_the_whole_model() -> None:
    def outside(model: Any, _: KFAC) -> None:
        F.cross_entropy(checkpoint(model, BATCH[0], use_reentrant=False), BATCH[1]).backward()

    assert_same(after(outside, outside), after(whole, whole))


def test_a_gradient_inside_the_loss_is_not_the_gradient_of_the_loss() -> None:
    """A penalty on the derivative by the inputs, as of a network that solves a differential equation."""

    def penalised(model: Any, _: KFAC) -> None:
        inputs = BATCH[0].clone().requires_grad_()
        outputs = model(inputs)
        (by_input,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        (F.cross_entropy(outputs, BATCH[1]) + 0 * by_input.square().sum()).backward()

    options: dict[str, Any] = {"likelihood": None}
    assert_same(after(penalised, **options), after(whole, **options))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [2.0**10, 2.0**16])
def test_gradients_that_a_scaler_scales_back(bias: bool, scale: float) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias)).double()

    def scaled(model: Any, _: KFAC) -> None:
        (scale * F.cross_entropy(model(BATCH[0]), BATCH[1])).backward()
        for p in model.parameters():
            p.grad /= scale

    options: dict[str, Any] = {"likelihood": None, "build": build}
    assert_same(after(scaled, scaled, **options), after(whole, whole, **options))


def test_clipped_gradients_leave_the_factors_as_they_are() -> None:
    def clipped(model: Any, _: KFAC) -> None:
        whole(model, _)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    assert_same(after(clipped, fisher="empirical"), after(whole, fisher="empirical"))


def test_a_layer_without_entries_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3))
    assert not is_watchable(model)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 0))
    assert is_watchable(model)
    assert KFAC(model).layers == ["0"]


@pytest.mark.parametrize(
    ("allowed", "share", "treated"),
    [
        (40, 1, ["wide", "square"]),  # 6² + 2² numbers of "wide" with 12 in its weight
        (39, 1, ["square"]),  # 2 · 4² numbers, fewer than the 34 of the model
        (1, 3, ["square"]),
        (1, 4, ["wide", "square"]),
    ],
)
def test_layers_with_factors_out_of_proportion_are_left_to_adam(
    monkeypatch: pytest.MonkeyPatch, allowed: int, share: int, treated: list[str]
) -> None:
    monkeypatch.setattr(direction, "FACTOR_NUMBERS", allowed)
    monkeypatch.setattr(direction, "WEIGHT_SHARE", share)
    model = nn.Module()
    model.wide, model.square = nn.Linear(2, 6), nn.Linear(4, 4, bias=False)
    named: list[tuple[str, Tensor]] = [
        (name, p) for name, p in model.named_parameters() if "square" in name or "weight" in name
    ]
    model.wide.bias.requires_grad_(False)
    optimizer = kfac_direction(model)(named)
    kfac: Any = next((part for part in inner_parts(optimizer) if isinstance(part, KFAC)), None)
    assert (kfac.layers if kfac else []) == treated


@pytest.mark.parametrize(
    ("early", "expected"), [(True, [0, 10, 20, 40, 80, 160, 260]), (False, [0, 100, 200])]
)
def test_inverses_are_renewed_often_at_the_start(
    monkeypatch: pytest.MonkeyPatch, early: bool, expected: list[int]
) -> None:
    model = Net()
    optimizer = KFAC(model, lr=0.01, early_inverses=early, fisher="auto", seed=4)
    curvature, renewed = optimizer._curvature, []
    refresh = curvature._kind.refresh

    def watched(*arguments: Any) -> None:
        renewed.append(curvature._steps)
        refresh(*arguments)

    monkeypatch.setattr(curvature._kind, "refresh", watched)
    for _ in range(300):
        optimizer.zero_grad()
        whole(model, optimizer)
        optimizer.step()
    assert renewed == expected
