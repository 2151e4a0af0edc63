"""A summary knows its own rounding: noise lies below the noise level, real entries far above it.

The true entry of a noise case is 0, for a reason that is stated with it: the loss does not change along u.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.partition import Partition
from gnewton.summary import Summarizer, Summary, SummaryError, summarize
from gnewton.summary.tangent import rules
from gnewton.summary.tangent.checks import report_disagreement

from . import zoo

ENGINES = ("tangent", "reference")
DTYPES = (torch.float32, torch.float64)
NOISES = ("gradient_noise", "hessian_noise", "third_noise")


class Attention(nn.Module):
    """Two heads, and a separate bias of the keys."""

    def __init__(self, width=8):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        q, k, v = (part(x).unflatten(2, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).flatten(2).mean(1))


def classes(x):
    return x, torch.randint(0, 3, (len(x),))


def dense(norm, samples=64):
    model = nn.Sequential(nn.Linear(8, 16), norm(16), nn.Tanh(), nn.Linear(16, 3))
    return model, *classes(torch.randn(samples, 8))


def convolutional(dims, norm, samples=8):
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = nn.Sequential(convolution(2, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4**dims, 3))
    return model, *classes(torch.randn(samples, 2, *[6] * dims))


def scaled(norm):
    """The direction of the first weight is that weight; the layer behind it divides by its scale."""
    model = nn.Sequential(nn.Linear(8, 16, bias=False), norm(16), nn.Tanh(), nn.Linear(16, 3))
    return model, *classes(torch.randn(64, 8))


def gated():
    """A parameter that is added and one that is multiplied, before a layer that removes shift and scale."""
    model = zoo.Net(
        lambda m, x: m.out(torch.tanh(m.norm(m.gain * (m.a(x) + m.shift)))),
        a=nn.Linear(8, 16, bias=False),
        shift=nn.Parameter(torch.randn(16)),
        gain=nn.Parameter(torch.tensor(1.3)),
        norm=nn.BatchNorm1d(16, eps=1e-30),
        out=nn.Linear(16, 3),
    )
    return model, *classes(torch.randn(64, 8))


def idle():
    """A unit of a dead layer, a parameter that nothing reads, one that is multiplied by 0."""
    model = zoo.Net(
        lambda m, x: m.out(torch.relu(m.dead(x) - 1e3) + torch.tanh(m.a(x)) + 0 * m.nought),
        dead=nn.Linear(8, 16),
        a=nn.Linear(8, 16),
        unused=nn.Linear(2, 2),
        nought=nn.Parameter(torch.randn(16)),
        out=nn.Linear(16, 3),
    )
    return model, *classes(torch.randn(32, 8))


# name -> (model and data, parameters whose entries are 0, a change of the direction)
CASES = {
    "dense-batch": (lambda: dense(nn.BatchNorm1d), ["0.bias"], None),
    "dense-batch-8": (lambda: dense(nn.BatchNorm1d, 8), ["0.bias"], None),
    "dense-layer": (lambda: dense(nn.LayerNorm), ["0.bias"], "constant"),
    **{
        f"conv{d}-{name}": (lambda d=d, norm=norm: convolutional(d, norm), ["0.bias"], None)
        for d in (1, 2, 3)
        for name, norm in (
            ("batch", (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[d - 1]),
            ("instance", (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[d - 1]),
            ("group", lambda c: nn.GroupNorm(c, c)),
        )
    },
    "keys": (lambda: (Attention(), *classes(torch.randn(8, 5, 8))), ["k.bias"], None),
    "logits": (lambda: (zoo.linear(8, 16, 3), *classes(torch.randn(64, 8))), ["2.bias"], "constant"),
    "scale-batch": (lambda: scaled(lambda c: nn.BatchNorm1d(c, eps=1e-30)), ["0.weight"], "itself"),
    "scale-layer": (lambda: scaled(lambda c: nn.LayerNorm(c, eps=1e-30)), ["0.weight"], "itself"),
    "gated": (gated, ["shift", "gain"], None),
    "idle": (idle, ["dead.weight", "dead.bias", "unused.weight", "unused.bias", "nought"], None),
}


def make(name, dtype):
    """The arguments of a summary, and the groups whose entries are 0."""
    build, names, _ = CASES[name]
    torch.manual_seed(0)
    model, inputs, targets = build()
    model, inputs = model.to(dtype), inputs.to(dtype)
    partition = Partition.per_tensor(model)
    args = model, F.cross_entropy, inputs, targets, partition, draw(name, model)
    return args, [partition.index[n] for n in names]


def draw(name, model):
    _, names, kind = CASES[name]
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    for n in names:
        if kind == "constant":
            direction[n].fill_(0.7)
        elif kind == "itself":
            direction[n] = 1.3 * model.get_parameter(n).detach()
    return direction


def ratio(summary):
    """|entry| in units of its noise level, for the gradient: 0 for 0."""
    return summary.gradient.abs() / summary.gradient_noise.clamp_min(1e-300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_what_does_not_change_the_loss_is_noise(name, engine, dtype):
    (model, loss_fn, inputs, targets, partition, _), silent = make(name, dtype)
    summarizer = Summarizer(model, loss_fn, partition, engine=engine, third=False, diagonal=True)
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
        summary = summarizer.summarize(torch.randn_like(inputs), targets, draw(name, model))
        values = ratio(summary)
        assert values[silent].max() <= 1
        assert values[[s for s in range(len(values)) if s not in silent]].min() > 3


@pytest.mark.parametrize(
    "name", ["dense-batch", "dense-layer", "conv2-batch", "conv2-instance", "conv3-group"]
)
def test_a_shift_removed_by_normalisation_has_no_curvature(name):
    """Tangents that are constant over a normalised set end there, exactly: curvature has no noise to show."""
    args, (s, *_) = make(name, torch.float32)
    summary = summarize(*args, engine="tangent")
    assert summary.hessian[s].abs().max() == 0
    assert summary.third[s] == 0


def deep(width, depth, activation):
    return zoo.linear(20, *[width] * depth, 3, activation=activation)


ORDINARY = {
    "mlp": lambda: deep(64, 2, nn.Tanh),
    "deep": lambda: deep(32, 20, nn.ELU),
    "deep-relu": lambda: deep(32, 20, nn.ReLU),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(160, 3)
    ),
    "attention": lambda: nn.Sequential(nn.Unflatten(1, (5, 4)), nn.Linear(4, 8), Attention()),
    "batch": lambda: nn.Sequential(
        nn.Linear(20, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)
    ),
}


def along(model, inputs, targets):
    """The gradient, its signs and a random direction."""
    named = dict(model.named_parameters())
    loss = F.cross_entropy(model(inputs), targets)
    gradient = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    return {
        "gradient": gradient,
        "signs": {n: g.sign() for n, g in gradient.items()},
        "random": {n: torch.randn_like(g) for n, g in gradient.items()},
    }


@pytest.mark.parametrize("samples", [8, 100, 1000])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_entries_are_no_noise(name, samples):
    torch.manual_seed(0)
    model = ORDINARY[name]()
    inputs, targets = classes(torch.randn(samples, 20))
    partition = Partition.per_tensor(model)
    real = [s for s, group in enumerate(partition.names) if "k.bias" not in group]
    summarizer = Summarizer(model, F.cross_entropy, partition, engine="tangent", third=False)
    for kind, direction in along(model, inputs, targets).items():
        summary = summarizer.summarize(inputs, targets, direction)
        least = 3 if kind == "random" else 1e3  # a random direction may be nearly orthogonal to the gradient
        assert ratio(summary)[real].min() > least, kind
        noisy = summary.curvature.abs() <= summary.hessian_noise.diagonal()
        assert noisy[real].sum() == 0, kind


def test_an_embedding_is_no_noise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(40, 3))
    inputs, targets = classes(torch.randint(0, 50, (64, 5)))
    for direction in along(model, inputs, targets).values():
        summary = summarize(
            model, F.cross_entropy, inputs, targets, Partition.per_tensor(model), direction, engine="tangent"
        )
        assert ratio(summary).min() > 100


def test_half_precision_does_not_call_every_gradient_noise():
    torch.manual_seed(0)
    for name in ("mlp", "deep", "batch"):
        model = ORDINARY[name]().bfloat16()
        inputs, targets = classes(torch.randn(100, 20).bfloat16())
        for kind, direction in along(model, inputs, targets).items():
            if kind != "random":
                args = model, F.cross_entropy, inputs, targets, Partition.per_tensor(model), direction
                assert ratio(summarize(*args, engine="tangent")).min() > 1


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_no_noise_until_the_loss_is(engine):
    """Adam on few samples: at a loss of 1e-5 every entry is known; where float32 ends, the two may differ."""
    torch.manual_seed(0)
    model = zoo.linear(20, 64, 3)
    inputs, targets = classes(torch.randn(32, 20))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    summarizer = Summarizer(model, F.cross_entropy, Partition.per_tensor(model), engine=engine, third=False)
    checked, bound = 0, 1e-1
    for _ in range(6000):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        if loss < bound:
            directions = along(model, inputs, targets)
            for kind in ("gradient", "signs"):
                values = ratio(summarizer.summarize(inputs, targets, directions[kind]))
                assert bound < 1e-5 or values.min() > 3, (bound, kind)
            checked, bound = checked + 1, bound / 10
        if checked == 7:  # down to 1e-7: no disagreement
            break
        loss.backward()
        optimizer.step()
    assert checked >= 5


# --- properties ---------------------------------------------------------------------------------------------


def noises(summary):
    return [getattr(summary, name) for name in NOISES]


@pytest.mark.parametrize("engine", ENGINES)
def test_noise_scales_like_its_entry(engine):
    args, _ = make("dense-batch", torch.float64)
    *head, direction = args
    model, loss_fn, *rest = head
    base = summarize(*args, engine=engine)
    double = summarize(*head, {n: 4.0 * u for n, u in direction.items()}, engine=engine)  # exact powers of 2
    for degree, (a, b) in enumerate(zip(noises(double), noises(base), strict=True), start=1):
        torch.testing.assert_close(a, 4.0**degree * b, rtol=1e-6, atol=0)
    larger = summarize(model, lambda o, t: 8 * loss_fn(o, t), *rest, direction, engine=engine)
    for a, b in zip(noises(larger), noises(base), strict=True):
        torch.testing.assert_close(a, 8 * b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_noise_covers_the_distance_to_double_precision(engine):
    for name in ("mlp", "deep", "batch", "attention"):
        torch.manual_seed(1)
        model = ORDINARY[name]()
        inputs, targets = classes(torch.randn(50, 20))
        direction = along(model, inputs, targets)["random"]
        partition = Partition.per_tensor(model)
        single = summarize(model, F.cross_entropy, inputs, targets, partition, direction, engine=engine)
        wide = {n: u.double() for n, u in direction.items()}
        exact = summarize(model.double(), F.cross_entropy, inputs.double(), targets, partition, wide)
        assert ((single.gradient - exact.gradient).abs() <= single.gradient_noise).all(), name


def test_contributions_that_cancel_are_noise():
    """L = f(a) − f(a) + g(b), summed otherwise: what a adds cancels between two operations."""
    torch.manual_seed(0)
    model = zoo.Net(
        lambda m, x: (torch.sin(3 * m.a * x) - torch.sin(3.0 * (x * m.a)) + torch.exp(m.b * x)).sum(),
        a=nn.Parameter(torch.randn(5)),
        b=nn.Parameter(torch.randn(5)),
    )
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    partition = Partition.per_tensor(model)
    x = torch.randn(5)
    summary = summarize(model, lambda o, t: o, x, x, partition, direction, engine="tangent")
    assert summary.gradient[0].abs() <= summary.gradient_noise[0]
    assert summary.hessian[0, 0].abs() <= summary.hessian_noise[0, 0]
    assert summary.third[0].abs() <= summary.third_noise[0]
    assert summary.hessian_noise[0, 0] > 0
    assert summary.hessian[1, 1].abs() > 100 * summary.hessian_noise[1, 1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("third", [False, True])
def test_shapes(engine, third):
    args, _ = make("dense-batch", torch.float32)
    size = len(args[4])
    for diagonal in (False, True):
        summary = summarize(*args, engine=engine, third=third, diagonal=diagonal)
        assert summary.gradient_noise.shape == (size,)
        assert summary.hessian_noise.shape == summary.hessian.shape
        assert (summary.third_noise is None) == (not third)
        for noise in noises(summary):
            assert noise is None or (noise.dtype == torch.float64 and bool((noise >= 0).all()))
        if not diagonal:
            assert torch.equal(summary.hessian_noise, summary.hessian_noise.T)


def test_left_out_levels_are_zero():
    one = torch.ones(2)
    summary = Summary(one, torch.eye(2), None, torch.tensor(1.0))
    assert torch.equal(summary.gradient_noise, torch.zeros(2))
    assert torch.equal(summary.hessian_noise, torch.zeros(2, 2))
    assert summary.third_noise is None
    assert Summary(one, one, one, one[0]).third_noise.shape == (2,)


def test_the_parts_of_a_split_batch_add_their_noise():
    torch.manual_seed(0)
    model = zoo.linear(8, 16, 3)
    inputs, targets = classes(torch.randn(64, 8))
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    args = model, F.cross_entropy, inputs, targets, Partition.per_tensor(model), direction
    whole = summarize(*args, engine="tangent")
    split = summarize(*args, engine="tangent", max_memory=3000)
    for a, b in zip(noises(split), noises(whole), strict=True):
        assert (a > b / 10).all()
        assert (a < b * 10).all()


def test_the_compiled_engine_returns_the_same_levels(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda target, **options: target)  # graphs run as they are
    for name in ("dense-batch", "logits"):
        args, silent = make(name, torch.float64)
        compiled = summarize(*args, engine="compiled")
        plain = summarize(*args, engine="tangent")
        assert ratio(compiled)[silent].max() <= 1
        for a, b in zip(noises(compiled), noises(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=0.5, atol=1e-16)


# --- the check of the two gradients -------------------------------------------------------------------------


def wrong_tanh(monkeypatch, factor):
    tanh = torch.ops.aten.tanh.default
    right = rules.RULES[tanh]

    def wrong(site):
        out = right.function(site)
        out.first.merge().mul_(factor)
        return out

    monkeypatch.setitem(rules.RULES, tanh, rules.TangentRule(wrong, adjoint=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mlp", "deep-tanh"])
def test_a_wrong_rule_is_found_in_every_precision(name, dtype, monkeypatch):
    torch.manual_seed(0)
    model = (zoo.linear(20, 64, 3) if name == "mlp" else deep(32, 8, nn.Tanh)).to(dtype)
    inputs, targets = classes(torch.randn(100, 20, dtype=dtype))
    direction = along(model, inputs, targets)["gradient"]
    wrong_tanh(monkeypatch, 1.1)
    with pytest.raises(SummaryError, match=r"disagree in .*a rule of the tangent engine is wrong"):
        summarize(
            model, F.cross_entropy, inputs, targets, Partition.per_tensor(model), direction, engine="tangent"
        )


def test_nonfinite_numbers_are_no_disagreement(monkeypatch):
    """The caller checks for them; a gradient that overflows says nothing about the rules."""
    torch.manual_seed(0)
    model = zoo.linear(8, 16, 3)
    inputs, targets = classes(torch.randn(16, 8))
    partition = Partition.per_tensor(model)
    summarizer = Summarizer(model, F.cross_entropy, partition, engine="tangent")
    for bad in (float("inf"), float("nan")):
        direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
        direction["0.weight"][0, 0] = bad
        summary = summarizer.summarize(inputs, targets, direction)
        assert not summary.gradient.isfinite().all()


def test_a_perfect_fit_is_no_disagreement():
    """Logits so far apart that p − y is 0 or a last digit."""
    torch.manual_seed(0)
    for gap in (5.0, 10.0, 15.0, 16.0, 17.0, 20.0, 50.0, 200.0):
        for loss_fn in (F.cross_entropy, lambda o, t: F.nll_loss(o.softmax(1).log(), t)):
            model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))
            targets = torch.randint(0, 3, (64,))
            inputs = torch.randn(64, 3) * 0.1
            shift = gap * F.one_hot(targets, 3)
            direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
            summarize(
                model,
                lambda o, t, shift=shift, loss_fn=loss_fn: loss_fn(o + shift, t),
                inputs,
                targets,
                Partition.per_tensor(model),
                direction,
                engine="tangent",
            )


def test_a_spread_lost_in_the_mean_is_no_disagreement():
    """A bias before a batch normalisation, so large that the values it is added to are lost to rounding."""
    model, inputs, targets = dense(nn.BatchNorm1d)
    partition = Partition.per_tensor(model)
    summarizer = Summarizer(model, F.cross_entropy, partition, engine="tangent")
    for size in (1e2, 1e4, 1e6, 1e8, 1e13):
        with torch.no_grad():
            model[0].bias.normal_().mul_(size)
        direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
        summary = summarizer.summarize(inputs, targets, direction)
        assert ratio(summary)[partition.index["0.bias"]] <= 1


def test_the_report_names_the_groups():
    report_disagreement(torch.tensor([False, False]), ["a", "b"])
    with pytest.raises(SummaryError, match="disagree in b:"):
        report_disagreement(torch.tensor([False, True]), ["a", "b"])
