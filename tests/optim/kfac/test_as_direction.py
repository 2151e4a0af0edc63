"""K-FAC by name: as the optimizer of a run and as the direction of GroupedNewton."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import KFAC, GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.experiment.prepare import settings_from
from gnewton.optim.options import TrainingProblem
from gnewton.optim.shadow_direction import ShadowDirection
from tests.optim.kfac.cases import CASES
from tests.optim.problems import classification, flat, tanh_net

RATE = 0.02


def direction(model: nn.Module, **options: Any) -> Any:
    def build(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        return KFAC(
            model,
            lr=1.0,
            params=named,
            kl_clip=None,
            statistics_period=2,
            inverse_period=3,
            seed=5,
            **options,
        )

    return build


def grouped(model: nn.Module, *, constant: bool, engine: Any = "auto", **options: Any) -> GroupedNewton:
    optimizer = GroupedNewton(
        model,
        F.cross_entropy,
        Partition.per_tensor(model),
        direction=direction(model, **options),
        step_size=1.0,
        along="step",
        period=2,
        engine=engine,
    )
    if constant:
        optimizer.hold(RATE)
    return optimizer


def advance(model: nn.Module, optimizer: Any, first: int, last: int, *, summary: bool = False) -> Tensor:
    for step in range(first, last):
        inputs, targets = classification(20, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step(**({"batch": classification(20, seed=step + 100)} if summary else {}))
    return flat(model)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("preconditioner", ["inverse", "eigen", "ekfac"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_constant_rates_are_kfac(preconditioner: str, fisher: str, decay: float) -> None:
    model = tanh_net()
    twin = copy.deepcopy(model)
    options = {"preconditioner": preconditioner, "fisher": fisher, "weight_decay": decay}
    start = flat(model)
    ours = advance(model, grouped(model, constant=True, **options), 0, 12)
    alone = KFAC(twin, lr=RATE, kl_clip=None, statistics_period=2, inverse_period=3, seed=5, **options)
    theirs = advance(twin, alone, 0, 12)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert (ours - start).abs().max() > 1e-2


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("case", ["wide", "conv"])
def test_a_step_that_is_read_off_is_that_of_the_shadows(case: str, momentum: float) -> None:
    """A hook on steps makes the shadows move; both have the same fresh part every third step."""
    runs = []
    for hooked in (False, True):
        model, inputs = CASES[case].make()
        named = list(model.named_parameters())
        shadow = ShadowDirection(named, direction(model, momentum=momentum))
        assert isinstance(shadow.inner, KFAC)
        if hooked:
            shadow.inner.register_step_post_hook(lambda *_: None)
        assert shadow.inner.readable == (not hooked)
        steps = []
        for number in range(5):
            model.zero_grad()
            (model(inputs + number).square().mean()).backward()
            u, v = shadow.advance(fresh=number % 3 == 1)
            steps += [t.clone() for t in (*u, *(v if number % 3 == 1 else ()))]
        assert all(not torch.any(p) for p in shadow._shadows) or hooked
        runs.append(steps)
    for ours, theirs in zip(*runs, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("engine", ["tangent", "reference"])
def test_the_passes_of_the_summary_are_not_watched(engine: str, fisher: str) -> None:
    """A rate of zero leaves the model where it is: the factors are those of the training batches alone."""
    runs = []
    for summary in (True, False):
        model = tanh_net()
        optimizer = grouped(model, constant=not summary, engine=engine, fisher=fisher)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        advance(model, optimizer, 0, 5, summary=summary)
        inner = optimizer._directions.members[0].inner
        assert isinstance(inner, KFAC)
        assert inner._draws.count == (3 if fisher == "true" else 0)
        runs.append(inner.factors)
    for name, (a, g) in runs[0].items():
        torch.testing.assert_close(a, runs[1][name][0], rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(g, runs[1][name][1], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("preconditioner", ["inverse", "low_rank", "ekfac"])
def test_a_restored_direction_continues_bit_for_bit(preconditioner: str) -> None:
    straight = tanh_net()
    whole = advance(
        straight, grouped(straight, constant=False, preconditioner=preconditioner), 0, 11, summary=True
    )
    model = tanh_net()
    optimizer = grouped(model, constant=False, preconditioner=preconditioner)
    advance(model, optimizer, 0, 5, summary=True)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    resumed = tanh_net(seed=99)
    resumed.load_state_dict(saved[0])
    other = grouped(resumed, constant=False, preconditioner=preconditioner)
    other.load_state_dict(saved[1])
    assert torch.equal(advance(resumed, other, 5, 11, summary=True), whole)


def problem(model: nn.Module, likelihood: str | None = "categorical") -> TrainingProblem:
    return TrainingProblem(
        model=model,
        loss_fn=F.cross_entropy,
        partition=None,
        curvature=lambda size: [],
        on_update=lambda update: None,
        likelihood=likelihood,
        seed=3,
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("kfac", {"lr": 0.003, "weight_decay": 0.0, "damping": 0.03, "kl_clip": 0.01, "momentum": 0.9}),
        (
            "kfac_reference",
            {"lr": 0.001, "weight_decay": 0.003, "damping": 0.03, "kl_clip": 0.01, "momentum": 0.9},
        ),
    ],
)
def test_presets(compose: Callable[..., Any], choice: str, expected: dict[str, float]) -> None:
    built = settings_from(compose([f"optimizer={choice}"])).optimizer.build(problem(tanh_net()))
    assert isinstance(built, KFAC)
    assert {key: built.param_groups[0][key] for key in expected} == expected
    reference = choice == "kfac_reference"
    kept = built._curvature
    assert (kept._decay, kept._statistics_period, kept._inverse_period) == (0.95, 10, 100)
    assert built._kind == ("eigen" if reference else "inverse")
    assert kept._identity == kept._reference_scaling == reference
    assert built._capture._sampler is not None
    assert not built._capture.lenient
    assert built._draws.seed == 3


def test_the_defaults_of_the_class_are_the_strong_preset(compose: Callable[..., Any]) -> None:
    by_name: Any = settings_from(compose(["optimizer=kfac"])).optimizer.build(problem(tanh_net()))
    plain = KFAC(tanh_net())
    for key in ("lr", "momentum", "weight_decay", "damping", "kl_clip"):
        assert by_name.param_groups[0][key] == plain.param_groups[0][key]
    for key in (
        "_decay",
        "_statistics_period",
        "_inverse_period",
        "_kind",
        "_identity",
        "_reference_scaling",
    ):
        assert getattr(by_name._curvature, key) == getattr(plain._curvature, key)


def test_a_direction_by_name(compose: Callable[..., Any]) -> None:
    model = tanh_net()
    chosen: Any = settings_from(compose(["optimizer/direction=kfac"])).optimizer
    optimizer = GroupedNewton(model, F.cross_entropy, direction=chosen.direction.build(problem(model)))
    inner = optimizer._directions.members[0].inner
    assert isinstance(inner, KFAC)
    assert inner.param_groups[0]["kl_clip"] == 0.01
    advance(model, optimizer, 0, 3, summary=True)


@pytest.mark.parametrize("where", ["optimizer", "optimizer.direction"])
def test_a_loss_that_is_no_likelihood_needs_the_empirical_fisher(
    compose: Callable[..., Any], where: str
) -> None:
    choice = f"{where.replace('.', '/')}=kfac"

    def build(*overrides: str) -> object:
        optimizer: Any = settings_from(compose([choice, *overrides])).optimizer
        chosen = optimizer if where == "optimizer" else optimizer.direction
        return chosen.build(problem(tanh_net(), likelihood=None))

    message = rf"^{where}.fisher=true: must be empirical, the loss is no likelihood to draw labels from"
    with pytest.raises(InputError, match=message):
        build(f"{where}.fisher='true'")
    build(f"{where}.fisher=auto")
    build(f"{where}.fisher=empirical")
