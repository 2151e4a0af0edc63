"""Batches of any form: both engines give the same summary, and only samples are cut."""

from __future__ import annotations

import logging
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils import _pytree as pytree

from gnewton import GroupedNewton
from gnewton.errors import InputError
from gnewton.summary import Summarizer, Summary, summarize, summary_tensor
from gnewton.summary.batch import batch_size, closed, divisible, hidden, opened
from tests import batches
from tests.batches import Case, Record

from .test_zoo import differences


def gradient(case: Case) -> dict[str, Tensor]:
    names, parameters = zip(*case.model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(batches.training_loss(case), parameters), strict=True))


def summary(case: Case, **options: Any) -> Summary:
    u = gradient(case)
    return summarize(case.model, case.loss_fn, *case.pair, "per_tensor", u, forward=case.forward, **options)


@pytest.mark.parametrize("name", batches.NAMES)
def test_both_engines_agree(name: str) -> None:
    case = batches.make(name)
    fast, reference = summary(case, engine="tangent"), summary(case, engine="reference")
    assert max(differences(fast, reference)) < 1e-12
    with torch.no_grad():
        torch.testing.assert_close(fast.loss, batches.training_loss(case), rtol=1e-14, atol=0)
    squares = torch.stack([u.square().sum() for u in gradient(case).values()])
    torch.testing.assert_close(fast.gradient, squares, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("name", batches.NAMES)
def test_parts_of_a_batch_join_to_the_whole(name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = batches.make(name)
    with caplog.at_level(logging.WARNING):
        parts = summary(case, engine="tangent", max_memory=1)
    assert max(differences(parts, summary(case, engine="tangent"))) < 1e-12
    whole = name == "penalty"  # its loss is no mean over samples alone, but the mean of the parts has it too
    assert ("cannot be split" in caplog.text) <= whole


@pytest.mark.parametrize("name", ["tuple", "own loss", "dataclass"])
def test_a_summarizer_sees_new_numbers_in_the_same_trace(name: str) -> None:
    case, other = batches.make(name), batches.make(name)
    other.batch = pytree.tree_map_only(
        Tensor, lambda t: t.flip(0) * 1.5 if t.is_floating_point() else t, opened(other.batch)
    )
    other.batch = closed(other.batch)
    summarizer = Summarizer(case.model, case.loss_fn, "per_tensor", forward=case.forward, engine="tangent")
    for present in (case, other, case):
        present.model.load_state_dict(case.model.state_dict())
        result = summarizer.summarize(*present.pair, gradient(present))
        assert max(differences(result, summary(present, engine="reference"))) < 1e-12
    assert len(summarizer.tangent_engine.traces) == 1


def test_settings_in_a_batch_have_traces_of_their_own() -> None:
    case = batches.make("dict")
    summarizer = Summarizer(case.model, case.loss_fn, "per_tensor", engine="tangent")
    for scale in (0.5, 2.0, 0.5):
        case.batch = ({**case.batch[0], "scale": scale}, case.batch[1])
        result = summarizer.summarize(*case.batch, gradient(case))
        assert max(differences(result, summary(case, engine="reference"))) < 1e-12
    assert len(summarizer.tangent_engine.traces) == 2


def test_the_whole_tensor_takes_any_batch_too() -> None:
    case = batches.make("own loss")
    third = summary_tensor(
        case.model, case.loss_fn, *case.pair, "per_tensor", gradient(case), order=3, forward=case.forward
    )
    expected = summary(case).third
    assert expected is not None
    torch.testing.assert_close(torch.einsum("sss->s", third), expected, rtol=1e-9, atol=1e-14)


class Opaque:
    """Holds tensors that a trace cannot see."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_batches_a_trace_cannot_see_go_to_the_reference_engine(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    u = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    summarizer = Summarizer(
        model,
        lambda out, batch: F.cross_entropy(out, batch[1]),
        "single",
        forward=lambda m, batch: m(batch[0].x),
    )
    for scale in (1.0, 3.0):
        with caplog.at_level(logging.WARNING):
            result = summarizer.summarize(Opaque(scale * x), y, u)
        plain = summarize(model, F.cross_entropy, scale * x, y, "single", u)
        assert max(differences(result, plain)) < 1e-12
    assert caplog.text.count("the batch holds a Opaque, whose tensors a trace cannot see") == 1


SIZES: dict[str, tuple[Any, Any, int | None, int]] = {
    "plain": (torch.zeros(7, 2), torch.zeros(7), 7, 7),
    "no data": (torch.empty(0), torch.empty(0), 1, 1),
    "no numbers": (torch.empty(1, 0), torch.empty(1, 0), 1, 1),
    "settings": ({"a": torch.zeros(7), "k": 3, "n": None}, torch.zeros(7), 7, 7),
    "shared weights": ((torch.zeros(7, 2), torch.zeros(3)), torch.zeros(7), 7, 7),
    "edges": ((torch.zeros(7, 2), torch.zeros(2, 30, dtype=torch.long)), torch.zeros(7), 7, 1),
    "one target": (torch.zeros(7, 2), torch.zeros(1), 7, 7),
    "scalar target": (torch.zeros(7, 2), torch.tensor(1.0), 7, 7),
    "sequences first": (torch.zeros(5, 7, 2), torch.zeros(7), 7, 7),
    "whole batch as a pair": ((torch.zeros(5, 7), torch.zeros(7)), None, 7, 7),
    "unknown": ({"a": torch.zeros(5), "b": torch.zeros(7)}, None, None, 1),
}


@pytest.mark.parametrize("name", SIZES)
def test_numbers_of_samples(name: str) -> None:
    inputs, targets, count, parts = SIZES[name]
    assert divisible(inputs, targets) == parts
    if count is None:
        with pytest.raises(InputError, match="lengths 5, 7 along the first axis, so the number of samples"):
            batch_size(inputs, targets)
    else:
        assert batch_size(inputs, targets) == count


@dataclass
class Counted:
    """A batch with an attribute that is no field."""

    x: Tensor
    kind: str = "a"

    def __post_init__(self) -> None:
        self.calls = 0


def test_containers_come_back_as_they_were() -> None:
    x = torch.zeros(3)
    record = Record(x, x + 1, x + 2)
    counted = Counted(x)
    counted.calls = 5
    batch = {"list": [x, (record, None)], "user": UserDict({"a": x, "b": 2}), "counted": counted}
    flat, spec = pytree.tree_flatten(opened(batch))
    assert sum(isinstance(leaf, Tensor) for leaf in flat) == 6
    again = closed(pytree.tree_unflatten([1 + t if isinstance(t, Tensor) else t for t in flat], spec))
    assert isinstance(again["list"][1][0], Record)
    assert again["list"][1][1] is None
    assert torch.equal(again["list"][1][0].y, x + 3)
    assert again["list"][1][0].note is None
    assert isinstance(again["user"], UserDict)
    assert torch.equal(again["user"]["a"], x + 1)
    assert again["counted"].calls == 5
    assert again["counted"].kind == "a"
    assert counted.x is x
    assert record.x is x
    assert not hidden(opened(batch))
    assert hidden([Opaque(x)]) == "Opaque"
    assert str(spec) == str(pytree.tree_flatten(opened(batch))[1])


def test_a_loss_that_is_no_tensor_is_named() -> None:
    case = batches.make("tuple")
    u = gradient(case)
    with pytest.raises(InputError, match="the loss must be a scalar tensor, got <float>"):
        summarize(case.model, lambda out, y: 1.0, *case.batch, "single", u, engine="reference")  # type: ignore[arg-type,return-value]


def test_a_loss_may_read_the_weights_of_the_model() -> None:
    """Its terms are differentiated with those of the outputs."""
    case = batches.make("penalty")
    u = gradient(case)
    result = summary(case)
    plain = summarize(case.model, F.cross_entropy, *case.batch, "per_tensor", u)
    quartic = [p.detach() for p in case.model.parameters()]
    slopes = torch.stack([(0.4 * p.pow(3) * g).sum() for p, g in zip(quartic, u.values(), strict=True)])
    curvatures = torch.stack(
        [(1.2 * p.square() * g.square()).sum() for p, g in zip(quartic, u.values(), strict=True)]
    )
    torch.testing.assert_close(result.gradient - plain.gradient, slopes, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(result.hessian - plain.hessian, curvatures.diag(), rtol=1e-9, atol=1e-13)


class Sentences(nn.Module):
    """A recurrent network that takes packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.GRU(4, 5), nn.Linear(5, 3)

    def forward(self, sentences: PackedSequence) -> Tensor:
        return self.out(self.cells(sentences)[1][-1])


def test_a_packed_sequence_is_one_input() -> None:
    torch.manual_seed(0)
    model, loss_fn = Sentences(), F.cross_entropy
    batch = pack_sequence([torch.randn(n, 4) for n in (5, 3, 2)]), torch.tensor([0, 2, 1])
    optimizer, losses = GroupedNewton(model, loss_fn), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_fn(model(batch[0]), batch[1])
        loss.backward()
        losses.append(loss.item())
        optimizer.step(batch=batch)
    assert losses[-1] < losses[0]
    slopes = torch.autograd.grad(loss_fn(model(batch[0]), batch[1]), list(model.parameters()))
    summary = summarize(model, loss_fn, *batch, "per_tensor", slopes)
    squares = torch.stack([slope.double().square().sum() for slope in slopes])
    torch.testing.assert_close(summary.gradient, squares, rtol=1e-5, atol=1e-7)
