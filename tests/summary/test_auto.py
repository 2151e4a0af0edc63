"""Failures of the fast engine do not stop engine="auto"; and models that are hard to trace."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import distributions, nn

from gnewton.errors import InputError, OutOfMemory
from gnewton.partition import Partition
from gnewton.summary import Summarizer, summarize
from gnewton.summary.problem import Request
from gnewton.summary.tangent import passes, rules

from .operations import Net
from .test_zoo import differences


def case(function, loss_fn=F.cross_entropy):
    torch.manual_seed(0)
    model = Net(lambda m, x: function(m.a(x)), a=nn.Linear(6, 8)).double()
    inputs, targets = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 5, (8,))
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    return model, loss_fn, inputs, targets, Partition.per_tensor(model), direction


# --- writing in place ---------------------------------------------------------------------------------------


def zeros(h):
    return torch.zeros_like(h)


def with_(start, write):
    def function(h):
        out = start(h)
        write(out, h)
        return out * out + h

    return function


def recurrence(out, h):
    for t in range(8):
        out[:, t] = torch.tanh(h[:, t]) + (out[:, t - 1] if t else 0)


def arithmetic(out, h):
    out += 1
    out[:, 2:4] *= 2
    out[0] -= h[1]
    out.clamp_(-2, 2).mul_(h)


def masked_product(out, h):
    out[h > 0.2] *= 2
    out[h < -0.2] += h[h < -0.2].sin()


def list_of_rows(h):
    rows = [torch.zeros_like(h[0]) for _ in range(8)]
    for t in range(8):
        rows[t] += h[t].tanh()
        rows[t][0] *= 2
    return torch.stack(rows)


COLUMN = torch.arange(8)[:, None] % 8
WRITES = {
    "slice": with_(zeros, lambda out, h: out[:, :4].copy_(h[:, :4].tanh())),
    "assigned_slice": with_(zeros, lambda out, h: out.__setitem__((slice(None), slice(4)), h[:, 4:].tanh())),
    "recurrence": with_(zeros, recurrence),
    "mask": with_(torch.clone, lambda out, h: out.__setitem__(h > 0.3, 1.0)),
    "arithmetic": with_(torch.clone, arithmetic),
    "copy": with_(torch.empty_like, lambda out, h: out.copy_(h)),
    "broadcast_copy": with_(torch.empty_like, lambda out, h: out.copy_(h[:, :1])),
    "fill": with_(torch.sin, lambda out, h: out[:, 1:3].fill_(h[0, 0])),
    "zero": with_(torch.sin, lambda out, h: out[:, 1:3].zero_()),
    "entry": with_(torch.sin, lambda out, h: out.__setitem__((2, 3), h[1, 1])),
    "columns": with_(torch.sin, lambda out, h: out.__setitem__((slice(None), [0, 2]), h[:, [1, 3]].cos())),
    "index_copy": with_(torch.sin, lambda out, h: out.index_copy_(1, torch.tensor([0, 2]), h[:, 1:3])),
    "scatter": with_(torch.sin, lambda out, h: out.scatter_(1, COLUMN, h[:, 1:2])),
    "scatter_add": with_(torch.sin, lambda out, h: out.scatter_add_(1, COLUMN, h[:, 1:2])),
    "masked_fill": with_(torch.sin, lambda out, h: out.masked_fill_(h > 0, 0.3)),
    "masked_scatter": with_(torch.sin, lambda out, h: out.masked_scatter_(COLUMN.T % 2 == 0, h.cos())),
    "masked_product": with_(torch.sin, masked_product),
    "diagonal": with_(torch.sin, lambda out, h: out.diagonal().copy_(h[0])),
    "transposed": with_(torch.sin, lambda out, h: out.T.select(0, 1).copy_(h[2])),
    "flat_view": with_(torch.sin, lambda out, h: out.view(-1)[3:9].copy_(h.reshape(-1)[:6])),
    "list_of_rows": list_of_rows,
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_in_place_is_traced_and_exact(name):
    args = case(WRITES[name])
    fast = summarize(*args, engine="tangent")
    slow = summarize(*args, engine="reference")
    assert max(differences(fast, slow)) < 1e-10


# --- asking for values --------------------------------------------------------------------------------------


def scaled(h):
    return h * h.detach().abs().max().item()


def checked(h):
    return h.tanh() if torch.ones(len(h), dtype=torch.bool).all() else h


def branching(h):
    return h.tanh() if h.sum() > 0 else h.sigmoid() * 2


def gaussian(outputs, targets):
    goal = targets[:, None].to(outputs.dtype).expand_as(outputs)
    return F.gaussian_nll_loss(outputs, goal, outputs.exp()) + F.gaussian_nll_loss(
        outputs, goal, outputs[:, 0].exp(), full=True, eps=0.9, reduction="sum"
    )


def likelihood(outputs, targets):
    return (
        -distributions.Normal(outputs, 0.5 + outputs.square())
        .log_prob(targets[:, None].to(outputs.dtype))
        .mean()
        - distributions.Categorical(logits=outputs).log_prob(targets).mean()
    )


@pytest.mark.parametrize(
    ("function", "loss_fn"),
    [
        (scaled, F.cross_entropy),
        (checked, F.cross_entropy),
        (branching, F.cross_entropy),
        (torch.tanh, gaussian),
        (torch.tanh, likelihood),
    ],
)
def test_models_that_ask_for_values_are_traced(function, loss_fn):
    model, loss_fn, inputs, targets, partition, direction = case(function, loss_fn)
    fast = Summarizer(model, loss_fn, partition, engine="tangent")
    for sign in (1, -1, 1, -3, -1):
        a = fast.summarize(sign * inputs, targets, direction)
        b = summarize(model, loss_fn, sign * inputs, targets, partition, direction, engine="reference")
        assert max(differences(a, b)) < 1e-10


# --- falling back -------------------------------------------------------------------------------------------


def experts(h):
    out = torch.zeros_like(h)
    for k in range(3):
        chosen = (h.argmax(1) % 3 == k).nonzero().squeeze(1)
        if chosen.numel():
            out[chosen] = h[chosen] * (k + 1)
    return out


@pytest.mark.parametrize("function", [experts, lambda h: torch.fft.rfft(h).abs()])
def test_shapes_that_depend_on_data_go_to_the_reference_engine(function, caplog):
    args = case(function)
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        got = summarize(*args)
    assert caplog.text.count("takes over") == 1
    assert max(differences(got, summarize(*args, engine="reference"))) == 0


@pytest.mark.parametrize("error", [IndexError, AssertionError, KeyError, RuntimeError, ZeroDivisionError])
@pytest.mark.parametrize("place", ["rule", "plan", "forward"])
def test_auto_survives_any_exception_of_a_pass(place, error, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise error("broken")

    if place == "rule":
        monkeypatch.setitem(rules.RULES, torch.ops.aten.tanh.default, rules.TangentRule(broken, adjoint=True))
    elif place == "plan":
        monkeypatch.setattr("gnewton.summary.tangent.trace_cache.make_plan", broken)
    else:
        monkeypatch.setattr(passes, "_backward", broken)
    model, loss_fn, inputs, targets, partition, direction = case(torch.tanh)
    summarizer = Summarizer(model, loss_fn, partition)
    slow = summarize(model, loss_fn, inputs, targets, partition, direction, engine="reference")
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        for _ in range(3):
            got = summarizer.summarize(inputs, targets, direction)
            assert max(differences(got, slow)) == 0
    assert caplog.text.count("takes over") == 1
    with pytest.raises(Exception, match="broken"):
        summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")


def test_gradients_that_disagree_are_left_to_the_reference_engine(monkeypatch, caplog):
    args = case(torch.tanh)
    tanh = torch.ops.aten.tanh.default
    right = rules.RULES[tanh]

    def wrong(site):
        out = right.function(site)
        out.first.merge().mul_(1.1)
        return out

    monkeypatch.setitem(rules.RULES, tanh, rules.TangentRule(wrong, adjoint=True))
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        got = summarize(*args)
    assert "disagree" in caplog.text
    assert max(differences(got, summarize(*args, engine="reference"))) == 0


def test_a_late_disagreement_is_left_to_the_reference_engine(caplog):
    """As on CUDA, where the check of a summary is read at the next one."""
    model, loss_fn, inputs, targets, partition, direction = case(torch.tanh)
    summarizer = Summarizer(model, loss_fn, partition)
    tangents = summarizer.tangent_engine
    summarizer.summarize(inputs, targets, direction)
    kind = tangents.traces.kind(Request(inputs, targets, direction))
    tangents._pending = torch.ones(len(partition), dtype=torch.bool), kind
    slow = summarize(model, loss_fn, inputs, targets, partition, direction, engine="reference")
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        for _ in range(2):
            got = summarizer.summarize(inputs, targets, direction)
            assert max(differences(got, slow)) == 0
        other = summarizer.summarize(inputs[:4], targets[:4], direction)
    assert len(tangents.traces) == 2, "batches of another kind stay with the fast engine"
    assert other.gradient.isfinite().all()
    assert caplog.text.count("disagree") == 1


def test_errors_of_the_user_stay_what_they_are():
    model, _, inputs, targets, partition, direction = case(torch.tanh)
    for name in ("auto", "tangent", "reference"):
        with pytest.raises(InputError, match="must be a scalar"):
            summarize(model, lambda o, t: o, inputs, targets, partition, direction, engine=name)
    summarizer = Summarizer(model, F.cross_entropy, partition)
    with pytest.raises(IndexError):
        summarizer.summarize(inputs, targets + 100, direction)
    fast = summarizer.summarize(inputs, targets, direction)
    assert len(summarizer.tangent_engine.traces) == 1, "the fault was of that batch"
    assert fast.loss.isfinite()


def test_exhausted_memory_is_no_reason_for_the_slow_engine(monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(passes, "_backward", exhausted)
    with pytest.raises(OutOfMemory):
        summarize(*case(torch.tanh))
