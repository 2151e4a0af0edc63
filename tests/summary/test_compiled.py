"""The compiled engine: the graph of the passes on every network of the zoo, the real compiler on a few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton import Partition, summarize
from gnewton.backend import compiler_failure
from gnewton.errors import InputError, OutOfMemory
from gnewton.summary import Summarizer, SummaryError
from gnewton.summary.api import EngineName
from tests.conftest import Answer
from tests.thorough import THOROUGH

from . import zoo
from .test_zoo import differences

NAMES: tuple[EngineName, ...] = ("compiled", "tangent")


class Recorder:
    """Stands in for torch.compile: runs graphs as they are, and records its arguments."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, target: Any, **options: Any) -> Any:
        if isinstance(target, torch.fx.GraphModule):
            self.graphs.append(target)
        return target


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    stand_in = Recorder()
    monkeypatch.setattr(torch, "compile", stand_in)
    return stand_in


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(8, 5, dtype=torch.float64), torch.randint(0, 3, (8,))
    return model, inputs, targets, {name: torch.randn_like(p) for name, p in model.named_parameters()}


LONG = ("functions", "reductions", "views")
"""Networks of dozens of operations, whose passes take a minute to trace; test_operations.py has them all."""


FREE_SHAPES = ("products_of_sets",)
"""Networks with an operation whose derivative in torch picks entries, as many as their values say."""

COMPILED = [name for name in zoo.DISTINCT if name not in FREE_SHAPES]
SHORT = [name for name in COMPILED if name not in LONG]
THIRD = COMPILED if THOROUGH else SHORT[::2]
"""Networks whose third derivatives are compared; their part of the graph takes longest."""


@pytest.mark.parametrize("name", COMPILED if THOROUGH else SHORT)
def test_the_graph_of_the_passes_gives_the_summary(name: str, recorder: Recorder) -> None:
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    kinds = zoo.partitions(model)
    partition = kinds.get("alternate", kinds["per_tensor"])
    state = torch.get_rng_state()
    compiled, tangent = (
        Summarizer(model, loss_fn, partition, engine=engine, third=name in THIRD) for engine in NAMES
    )
    summary = compiled.summarize(inputs, targets, direction)
    assert torch.equal(torch.get_rng_state(), state)
    plain = tangent.summarize(inputs, targets, direction)
    assert max(differences(summary, plain)) < 1e-10
    assert len(recorder.graphs) == 1


@pytest.mark.parametrize("name", FREE_SHAPES)
def test_a_failed_compilation_is_one_line(name: str, recorder: Recorder) -> None:
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    compiled = Summarizer(model, loss_fn, "per_tensor", engine="compiled")
    with pytest.raises(SummaryError, match=r"cannot be compiled: .*no derivative of aten\.\w+") as raised:
        compiled.summarize(inputs, targets, direction)
    assert "\n" not in str(raised.value)
    assert not recorder.graphs


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_real_compiler_gives_the_summary(dtype: torch.dtype, tolerance: float) -> None:
    if reason := compiler_failure(torch.device("cpu")):
        pytest.skip(reason)
    model, inputs, targets, direction = network()
    model, inputs = model.to(dtype), inputs.to(dtype)
    direction = {name: u.to(dtype) for name, u in direction.items()}
    partition = Partition.from_names(model, [["0.weight", "3.bias"], ["0.bias", "3.weight"]])
    third = dtype == torch.float64  # its code takes most of the compiler's time
    compiled = Summarizer(model, F.cross_entropy, partition, engine="compiled", third=third)
    plain = Summarizer(model, F.cross_entropy, partition, engine="tangent", third=third)
    for _ in range(2):  # the second time without compiling, at other parameters and with other masks
        seed = torch.get_rng_state()
        summary = compiled.summarize(inputs, targets, direction)
        assert torch.equal(torch.get_rng_state(), seed)
        assert max(differences(summary, plain.summarize(inputs, targets, direction))) < tolerance
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)
        torch.manual_seed(5)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("third", [False, True])
def test_parts_of_a_summary(recorder: Recorder, third: bool, diagonal: bool) -> None:
    model, inputs, targets, direction = network()
    options: dict[str, Any] = {"third": third, "diagonal": diagonal}
    partition = Partition.per_tensor(model)
    summary, plain = (
        Summarizer(model, F.cross_entropy, partition, engine=engine, **options).summarize(
            inputs, targets, direction
        )
        for engine in ("compiled", "tangent")
    )
    assert summary.hessian.shape == plain.hessian.shape
    assert (summary.third is None) == (not third)
    assert max(differences(summary, plain)) < 1e-12


def test_one_graph_for_every_shape(recorder: Recorder) -> None:
    model, inputs, targets, direction = network()
    engine = Summarizer(model, F.cross_entropy, Partition.per_tensor(model), engine="compiled")
    for rows in (8, 6, 8, 6):
        engine.summarize(inputs[:rows], targets[:rows], direction)
    assert len(recorder.graphs) == 2


def test_a_split_batch_is_the_whole_one(recorder: Recorder) -> None:
    model, inputs, targets, direction = network()
    model[2].p = 0.0
    partition = Partition.per_tensor(model)
    plain = summarize(model, F.cross_entropy, inputs, targets, partition, direction)
    summary = summarize(
        model, F.cross_entropy, inputs, targets, partition, direction, engine="compiled", max_memory=2000
    )
    assert len(recorder.graphs) > 1
    assert max(differences(summary, plain)) < 1e-12


def failing(error: Exception) -> Callable[..., Any]:
    """Stands in for torch.compile: a compiled graph raises ``error``, anything else comes back unchanged."""

    def compile_(target: Any, **options: Any) -> Any:
        def call(*arguments: Any) -> None:
            raise error

        return call if isinstance(target, torch.fx.GraphModule) else target

    return compile_


def test_what_the_compiler_cannot_do_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, targets, direction = network()
    monkeypatch.setattr(torch, "compile", failing(ValueError("\n no rule for it\n details")))
    engine = Summarizer(model, F.cross_entropy, Partition.per_tensor(model), engine="compiled")
    with pytest.raises(SummaryError, match="the passes cannot be compiled: ValueError: no rule for it"):
        engine.summarize(inputs, targets, direction)


def test_running_out_of_memory_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, targets, direction = network()
    monkeypatch.setattr(torch, "compile", failing(torch.OutOfMemoryError("no memory")))
    engine = Summarizer(model, F.cross_entropy, Partition.per_tensor(model), engine="compiled")
    with pytest.raises(OutOfMemory):
        engine.summarize(inputs, targets, direction)


def test_without_a_compiler_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    def compile_(target: Any, **options: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", compile_)
    model, *_ = network()
    with pytest.raises(InputError, match="engine=compiled: torch.compile does not work .* use engine=auto"):
        Summarizer(model, F.cross_entropy, Partition.per_tensor(model), engine="compiled")
    answer = cli(["train", "optimizer.curvature.engine=compiled", "trainer.device=cpu"])
    assert answer.code == 2
    assert answer.err.strip() == (
        "gnewton: optimizer.curvature.engine=compiled: torch.compile does not work on this machine "
        "(RuntimeError: No working C++ compiler found); use auto"
    )
    assert not list(tmp_path.glob("outputs/*/*"))
