"""Mixed precision and torch.compile: first-order optimizers only, the loss never rounded, exact resuming."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton.backend import compiler_failure
from gnewton.experiment.prepare import prepare
from gnewton.experiment.run import run as run_experiment
from gnewton.tasks import Classification
from gnewton.training.training_step import Precision, TrainingStep, add_gradient
from gnewton.training.world import World
from tests.conftest import SMALL_BASELINE, Answer
from tests.training.builders import sgd

TASK = Classification((20,), 3)
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3))


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 20, generator=generator), torch.randint(0, 3, (12,), generator=generator)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", HALVES)
def test_the_passes_are_those_of_autocast_with_the_loss_in_float32(kind: str) -> None:
    model, (inputs, targets) = network(), batch()
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", HALVES[kind]):
        outputs = twin(inputs)
    assert outputs.dtype == HALVES[kind]
    wanted = F.cross_entropy(outputs.float(), targets)
    (wanted * (65536 if kind == "float16" else 1)).backward()
    loss, correct = add_gradient(model, TASK, (inputs, targets), None, Precision(kind))
    assert torch.equal(loss, wanted.detach())
    assert correct is not None
    for actual, expected in zip(gradients(model), gradients(twin), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", HALVES)
def test_steps_stay_near_those_in_full_precision(kind: str) -> None:
    ends = []
    for chosen in ("full", kind):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        make_step = TrainingStep(
            model, TASK, optimizer, sgd(), World(), microbatch=5, precision=Precision(chosen)
        )
        for step in range(30):
            make_step(batch(step))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in network().parameters()])
    gap, way = (ends[0] - ends[1]).norm(), (ends[0] - start).norm()
    assert 0 < gap < 0.05 * way


def test_a_step_that_overflows_is_left_out_and_halves_the_scale() -> None:
    model, (inputs, targets) = network(), batch()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    precision = Precision("float16")
    huge = inputs * 1e6  # beyond float16

    make_step = TrainingStep(model, TASK, optimizer, sgd(), World(), precision=precision)
    make_step((huge, targets))
    assert precision.state_dict()["scale"] == 32768
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    make_step((inputs * 1e-3, targets))
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = Precision("float16")
    other.load_state_dict(precision.state_dict())
    assert other.state_dict() == precision.state_dict()


def test_full_precision_is_the_plain_gradient() -> None:
    model, (inputs, targets) = network(), batch()
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(inputs), targets).backward()
    add_gradient(model, TASK, (inputs, targets), None)
    for actual, expected in zip(gradients(model), gradients(twin), strict=True):
        assert torch.equal(actual, expected)
    assert Precision().state_dict() == {}


def last(report: Any) -> dict[str, Tensor]:
    return torch.load(report.folder / "checkpoint" / "last.pt", weights_only=False)["model"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("kind", HALVES)
def test_runs_in_mixed_precision_keep_float32_parameters(
    run: Callable[..., Any], kind: str, optimizer: str
) -> None:
    common = [f"optimizer={optimizer}", *SMALL_BASELINE, "trainer.epochs=2"]
    full, mixed = run(common), run([*common, f"trainer.precision={kind}"])
    assert mixed.outcome.status == "done"
    assert {value.dtype for value in last(mixed).values()} == {torch.float32}
    assert any(not torch.equal(value, last(full)[name]) for name, value in last(mixed).items())
    assert mixed.outcome.metrics["train_loss"] == pytest.approx(full.outcome.metrics["train_loss"], rel=0.1)


def test_a_resumed_run_in_float16_continues_bit_for_bit(
    run: Callable[..., Any], compose: Callable[..., Any], tmp_path: Path
) -> None:
    common = ["optimizer=adam", *SMALL_BASELINE, "trainer.precision=float16", "trainer.epochs=4"]
    whole = run(common, tmp_path / "whole")
    cut = run([*common, "trainer.max_steps=7"], tmp_path / "cut")
    again = [f"resume={cut.folder}", "trainer.max_steps=null"]
    resumed = run_experiment(prepare(compose(again), again))
    assert resumed.outcome.step == whole.outcome.step
    assert all(torch.equal(value, last(whole)[name]) for name, value in last(resumed).items())


EAGER = partial(torch.compile, backend="eager")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lbfgs"])
def test_runs_through_the_compiler_are_the_same_runs(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    small = SMALL_BASELINE if optimizer != "lbfgs" else SMALL_BASELINE[:2]
    common = [f"optimizer={optimizer}", *small, "trainer.epochs=2"]
    plain = run(common)
    modules: list[object] = []

    def compile_(target: Any) -> Any:
        modules.append(target)
        return EAGER(target)

    monkeypatch.setattr(torch, "compile", compile_)
    through = run([*common, "trainer.compile=true"])
    assert len(modules) == 2  # the probe and the model
    assert list(last(through)) == list(last(plain)), "names are those of the model"
    for name, value in last(through).items():
        torch.testing.assert_close(value, last(plain)[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_steps(run: Callable[..., Any]) -> None:
    if reason := compiler_failure(torch.device("cpu")):
        pytest.skip(reason)
    common = ["optimizer=sgd", *SMALL_BASELINE, "trainer.epochs=2"]
    plain, through = run(common), run([*common, "trainer.compile=true"])
    for name, value in last(through).items():
        torch.testing.assert_close(value, last(plain)[name], rtol=1e-4, atol=1e-5)


def test_without_a_compiler_compile_is_refused(
    cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(target: Any) -> Any:
        def call(*arguments: Any) -> None:
            raise RuntimeError("\n  No working C++ compiler found\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    answer = cli(["train", "optimizer=sgd", "trainer.compile=true", "trainer.device=cpu"])
    assert answer.code == 2
    assert answer.err.strip() == (
        "gnewton: trainer.compile=true: torch.compile does not work on this machine "
        "(RuntimeError: No working C++ compiler found); use false"
    )
    assert not list(tmp_path.glob("outputs/*/*"))


REFUSED = {
    "optimizer=grouped_newton trainer.precision=bfloat16": (
        "trainer.precision=bfloat16: must be full with optimizer=grouped_newton, whose higher derivatives"
    ),
    "optimizer=grouped_newton trainer.compile=true": (
        "trainer.compile=true: must be false with optimizer=grouped_newton, which differentiates the"
    ),
    "optimizer=kfac trainer.precision=bfloat16": "must be full with optimizer=kfac, whose factors",
    "optimizer=kfac_reference trainer.compile=true": "must be false with optimizer=kfac_reference, which",
    "optimizer=lbfgs trainer.precision=bfloat16": "must be full with optimizer=lbfgs, whose line search",
    "optimizer=sgd trainer.precision=bfloat16 trainer.dtype=float64": (
        "trainer.precision=bfloat16: needs trainer.dtype=float32"
    ),
    "optimizer=sgd trainer.precision=bf16": "must be one of full, bfloat16, float16",
}


@pytest.mark.parametrize("command", REFUSED)
def test_refusals(cli: Callable[..., Answer], command: str, tmp_path: Path) -> None:
    answer = cli(["train", *command.split()])
    assert answer.code == 2
    assert REFUSED[command] in answer.err
    assert "Traceback" not in answer.err
    assert not list(tmp_path.glob("outputs/*/*"))


@pytest.mark.parametrize("kind", ["full", "float16"])
@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_a_long_gradient_is_shortened_and_a_short_one_left(kind: str, limit: float) -> None:
    """One step of SGD at rate 1 moves by the gradient, at the limit or as it is, the scale undone."""
    model, data = network(), batch()
    before = [p.detach().clone() for p in model.parameters()]
    recipe = sgd(lr=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    precision = Precision(kind)
    add_gradient(model, TASK, data, None, precision)
    scale = 65536 if kind == "float16" else 1
    whole = torch.cat([g.flatten() for g in gradients(model)]) / scale
    step = TrainingStep(model, TASK, optimizer, recipe, World(), precision=precision, clip_norm=limit)
    step(data)
    moved = torch.cat([(q - p.detach()).flatten() for p, q in zip(model.parameters(), before, strict=True)])
    expected = whole * min(1.0, limit / float(whole.norm()))
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_clipping_is_refused_where_the_gradient_must_be_that_of_the_loss(cli: Callable[..., Answer]) -> None:
    answer = cli(["train", "optimizer=lbfgs", "trainer.clip_norm=1"])
    assert answer.code == 2
    assert "trainer.clip_norm=1.0: must be null with optimizer=lbfgs, whose" in answer.err
