"""What the tangent engine promises beside the numbers: options, side effects, traces, splitting, errors."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.partition import Partition
from gnewton.summary import Summarizer, SummaryError, summarize
from gnewton.summary.tangent import rules, trace_cache
from gnewton.summary.tangent.program import TraceError
from gnewton.summary.tangent.rules import general

from . import oracles, zoo
from .test_zoo import differences


def case(name, **options):
    model, loss_fn, inputs, targets, direction = zoo.make(name, **options)
    return model, loss_fn, inputs, targets, zoo.partitions(model)["per_tensor"], direction


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "encoder", "residual_gates", "hyper", "reuse"])
def test_parts_of_a_summary_are_those_of_the_whole(name):
    args = case(name)
    full = summarize(*args, engine="tangent")
    lean = summarize(*args, engine="tangent", third=False)
    assert lean.third is None
    torch.testing.assert_close(lean.hessian, full.hessian, rtol=1e-10, atol=1e-12)
    for third in (True, False):
        thin = summarize(*args, engine="tangent", diagonal=True, third=third)
        torch.testing.assert_close(thin.hessian, full.curvature, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(thin.gradient, full.gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        summarize(*args, engine="tangent", diagonal=True).third, full.third, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", ["layer_norm", "weight_norm", "convolutions"])
def test_agrees_with_finite_differences(name):
    args = case(name)
    summary = summarize(*args, engine="tangent")
    gradient, hessian, third = oracles.finite_differences(*args, step=3e-4)
    torch.testing.assert_close(summary.gradient, gradient, rtol=1e-5, atol=1e-6)
    if name != "convolutions":  # its kinks are too near for wider steps
        torch.testing.assert_close(summary.hessian, hessian, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(summary.third, third, rtol=2e-2, atol=2e-2)


def test_padded_transposed_convolution_agrees_with_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1),
        nn.Tanh(),
        nn.ConvTranspose2d(3, 2, 2, groups=1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(242, 3),
    ).double()
    inputs, targets = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 2])
    direction = {n: 0.2 * torch.randn_like(p) for n, p in model.named_parameters()}
    args = model, F.cross_entropy, inputs, targets, zoo.partitions(model)["per_tensor"], direction
    summary = summarize(*args, engine="tangent")
    gradient, hessian, third = oracles.finite_differences(*args)
    torch.testing.assert_close(summary.gradient, gradient, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(summary.hessian, hessian, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(summary.third, third, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("resort", ["general", "reverse"])
@pytest.mark.parametrize("name", ["mlp", "reuse", "residual_gates", "sdpa", "group_norm"])
def test_rules_agree_with_the_general_ones(name, resort, monkeypatch):
    args = case(name)
    fast = summarize(*args, engine="tangent")
    for op, rule in list(rules.RULES.items()):
        if rule.adjoint:
            monkeypatch.delitem(rules.RULES, op)
    monkeypatch.setattr(general, "FEW", 0)
    if resort == "reverse":

        def none(site):
            raise NotImplementedError

        monkeypatch.setattr(general, "_by_forward_mode", none)
    plain = summarize(*args, engine="tangent")
    assert max(differences(plain, fast)) < 1e-10
    lean = summarize(*args, engine="tangent", third=False)
    torch.testing.assert_close(lean.hessian, fast.hessian, rtol=1e-10, atol=1e-12)


def test_a_group_without_direction_has_zero_entries():
    model, loss_fn, inputs, targets, partition, direction = case("mlp")
    name = partition.groups[2].name
    direction[name].zero_()
    summary = summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")
    assert summary.gradient[2] == 0
    assert summary.hessian[2].abs().max() == 0
    assert summary.third[2] == 0
    assert summary.hessian.abs().sum() > 0


class Rosenbrock(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))

    def forward(self, inputs):
        x, y = self.theta
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@pytest.mark.parametrize("engine", ["tangent", "reference"])
def test_a_model_without_data(engine):
    model, empty = Rosenbrock(), torch.empty(0)
    direction = {"theta": torch.tensor([1.0, 0.5], dtype=torch.float64)}
    partition = Partition.per_tensor(model)
    summary = summarize(model, lambda o, t: o.mean(), empty, empty, partition, direction, engine=engine)
    expected = oracles.finite_differences(model, lambda o, t: o, empty, empty, partition, direction)
    for got, wanted in zip((summary.gradient, summary.hessian, summary.third), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


# --- side effects -------------------------------------------------------------------------------------------


def snapshot(model):
    state = {n: t.clone() for n, t in model.state_dict().items()}
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    versions = [p._version for p in model.parameters()]
    return state, grads, modes, versions, torch.get_rng_state(), torch.is_grad_enabled()


def same(a, b):
    def equal(x, y):
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return all(equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("engine", ["tangent", "reference"])
@pytest.mark.parametrize("name", ["batch_norm", "encoder", "batch_norm_eval", "spectral_norm_eval"])
def test_nothing_is_touched(name, engine):
    model, loss_fn, inputs, targets, partition, direction = case(name)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    given = inputs.clone()
    before = snapshot(model)
    summarize(model, loss_fn, inputs, targets, partition, direction, engine=engine)
    assert same(before, snapshot(model))
    assert torch.equal(given, inputs)

    def failing(outputs, targets):
        torch.rand(3)
        raise ZeroDivisionError("in the loss")

    with pytest.raises((ZeroDivisionError, SummaryError)):
        summarize(model, failing, inputs, targets, partition, direction, engine=engine)
    assert same(before, snapshot(model))
    with torch.no_grad():
        summarize(model, loss_fn, inputs, targets, partition, direction, engine=engine)
    assert same(before, snapshot(model))


def test_inputs_written_in_place_stay_as_they_are():
    model = zoo.Net(lambda m, x: m.out(x.mul_(2)), out=nn.Linear(5, 3))
    inputs, targets = zoo.flat()
    given = inputs.clone()
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    summarize(
        model,
        F.cross_entropy,
        inputs,
        targets,
        zoo.partitions(model)["per_tensor"],
        direction,
        engine="tangent",
    )
    assert torch.equal(given, inputs)


# --- traces -------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """Python code goes by the number of samples that an expert is chosen for."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x)
        out = torch.zeros_like(h)
        for k in range(3):
            chosen = (h.argmax(1) == k).nonzero().squeeze(1)
            if chosen.numel():
                out[chosen] = h[chosen] * (k + 1)
        return out


class Counting(nn.Module):
    """Computes another function at each of its first three calls."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.a(x) * min(self.calls, 3)


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return -grad


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Experts(), "cannot be traced"),
        (zoo.Net(lambda m, x: Reversal.apply(m.a(x).tanh()), a=nn.Linear(5, 3)), "does not reproduce"),
        (zoo.Net(lambda m, x: torch.fft.rfft(m.a(x)).abs(), a=nn.Linear(5, 4)), "complex"),
        (Counting(), "does not reproduce"),
    ],
)
def test_the_reference_engine_takes_over_with_one_line(model, reason, caplog):
    inputs, targets = zoo.flat()
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    partition = zoo.partitions(model)["per_tensor"]
    summarizer = Summarizer(model, F.cross_entropy, partition)
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        first = summarizer.summarize(inputs, targets, direction)
        summarizer.summarize(inputs, targets, direction)
    assert len(caplog.records) == 1
    assert reason in caplog.text
    slow = summarize(model, F.cross_entropy, inputs, targets, partition, direction, engine="reference")
    assert max(differences(first, slow)) == 0
    model.calls = 0
    with pytest.raises(TraceError, match=reason):
        summarize(model, F.cross_entropy, inputs, targets, partition, direction, engine="tangent")


def test_a_trace_lasts_while_shapes_and_settings_stay():
    model, loss_fn, inputs, targets, partition, direction = case("dropout")
    summarizer = Summarizer(model, loss_fn, partition, engine="tangent")
    kept = summarizer.tangent_engine.traces

    def check(expected):
        fast = summarizer.summarize(inputs, targets, direction)
        slow = summarize(model, loss_fn, inputs, targets, partition, direction, engine="reference")
        assert max(differences(fast, slow)) < 1e-10
        assert len(kept) == expected

    check(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    check(1)
    model[1].p = 0.1
    check(2)
    model.eval()
    check(3)
    inputs, targets = inputs[:4], targets[:4]
    check(4)
    model.train()
    model[2] = nn.Sigmoid()
    check(5)


def test_an_attribute_that_matters_makes_a_new_trace():
    """A flag, a number that is annealed and an index of layers, none of them in ``extra_repr``."""
    model = zoo.Net(
        lambda m, x: m.parts[m.part](x) * (m.scale if m.flag else 1),
        parts=nn.ModuleList([nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 3), nn.Tanh())]),
    )
    model.double()
    model.flag, model.scale, model.part = False, 2.0, 0
    inputs, targets = zoo.flat()
    inputs = inputs.double()
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    partition = zoo.partitions(model)["per_tensor"]
    summarizer = Summarizer(model, F.cross_entropy, partition, engine="tangent")
    for change, expected in (
        ({}, 1),
        ({"scale": 3.0}, 1),  # without effect while the flag is off
        ({"flag": True}, 2),
        ({"scale": 2.9}, 3),
        ({"part": 1}, 4),
        ({"part": 0}, 4),
        ({"scale": 2.8}, 4),  # the oldest is dropped
    ):
        vars(model).update(change)
        fast = summarizer.summarize(inputs, targets, direction)
        slow = summarize(model, F.cross_entropy, inputs, targets, partition, direction, engine="reference")
        assert max(differences(fast, slow)) < 1e-10
        assert len(summarizer.tangent_engine.traces) == expected


def test_a_counter_does_not_cost_a_trace_each_time(monkeypatch):
    model, loss_fn, inputs, targets, partition, direction = case("mlp")
    model.calls = 0
    summarizer = Summarizer(model, loss_fn, partition, engine="tangent")
    checked = []
    check = trace_cache.checks.check_program
    monkeypatch.setattr(trace_cache.checks, "check_program", lambda *args: checked.append(check(*args)))
    for _ in range(6):
        model.calls += 1
        summarizer.summarize(inputs, targets, direction)
    assert len(summarizer.tangent_engine.traces) == 1
    assert len(checked) == 1 + trace_cache.IDLE, "after so many changes without effect it is let alone"


def test_a_wrong_rule_is_found_by_the_two_gradients(monkeypatch):
    args = case("mlp")
    tanh = torch.ops.aten.tanh.default
    right = rules.RULES[tanh]

    def wrong(site):
        out = right.function(site)
        out.first.merge().mul_(1.1)
        return out

    monkeypatch.setitem(rules.RULES, tanh, rules.TangentRule(wrong, adjoint=True))
    with pytest.raises(SummaryError, match="disagree in"):
        summarize(*args, engine="tangent")


# --- splitting ----------------------------------------------------------------------------------------------


def sliced(name):
    model, loss_fn, inputs, targets, partition, direction = case(name)
    whole = summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")
    reduction = "sum" if name == "sum" else "mean"
    summarizer = Summarizer(model, loss_fn, partition, engine="tangent", max_memory=3000, reduction=reduction)
    return summarizer, summarizer.summarize(inputs, targets, direction), whole


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "convolutions",
        "dropout",
        "dropout2d",
        "attention_dropout",
        "layer_norm",
        "weighted",
        "pixels",
        "mse",
        "sum",
        "batch_norm_eval",
        "tied_embedding",
    ],
)
def test_a_split_batch_gives_the_same_summary(name):
    summarizer, split, whole = sliced(name)
    assert len(summarizer.tangent_engine.traces) > 1
    assert max(differences(split, whole)) < 1e-10


@pytest.mark.parametrize("name", ["batch_norm", "detached"])
def test_a_batch_whose_samples_mix_stays_whole(name, caplog):
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        _, split, whole = sliced(name)
    assert "cannot be split" in caplog.text
    assert max(differences(split, whole)) == 0


def test_bad_options_are_refused():
    model, loss_fn, *_ = case("mlp")
    partition = zoo.partitions(model)["single"]
    with pytest.raises(ValueError, match="max_memory=0"):
        Summarizer(model, loss_fn, partition, max_memory=0)
    with pytest.raises(ValueError, match="reduction=none"):
        Summarizer(model, loss_fn, partition, reduction="none")
