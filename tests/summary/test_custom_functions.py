"""Own ``torch.autograd.Function``s: the right derivatives, or an error where their backward pass has none."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils import checkpoint

from gnewton import GroupedNewton, loss_derivatives
from gnewton.summary import Summarizer, SummaryError, summarize

from .operations import Net
from .test_zoo import differences


class Ramp(torch.autograd.Function):
    """max(x, 0)³, with a backward pass in ordinary operations."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0) ** 3

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0].clamp(min=0) ** 2


class Marked(Ramp):
    """The same with a backward pass that cannot be differentiated."""

    backward = staticmethod(once_differentiable(Ramp.backward))


class Slope(torch.autograd.Function):
    """3 g max(x, 0)² with a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x, grad):
        ctx.save_for_backward(x, grad)
        return 3 * grad * x.clamp(min=0) ** 2

    @staticmethod
    @once_differentiable
    def backward(ctx, weight):
        x, grad = ctx.saved_tensors
        return 6 * weight * grad * x.clamp(min=0), 3 * weight * x.clamp(min=0) ** 2


class MarkedLater(Ramp):
    """The same with second derivatives, but no third ones."""

    @staticmethod
    def backward(ctx, grad):
        return Slope.apply(ctx.saved_tensors[0], grad)


def network(function):
    return Net(lambda m, x: m.out(function(m.a(x))), a=nn.Linear(5, 6), out=nn.Linear(6, 3)).double()


def case(function, loss_fn=F.cross_entropy):
    torch.manual_seed(0)
    model = network(function)
    inputs, targets = torch.randn(7, 5).double(), torch.randint(0, 3, (7,))
    return model, loss_fn, inputs, targets, "per_tensor", [torch.randn_like(p) for p in model.parameters()]


def linear(outputs, targets):
    """A loss in which the backward pass gets constants: then torch has no node that could raise an error."""
    return outputs.sum() / len(targets)


class Swish(torch.autograd.Function):
    """x σ(x), which keeps its argument alone, with the context in a method of its own."""

    @staticmethod
    def forward(x):
        return x * torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s + x * s * (1 - s))


def cube(x):
    return x.clamp(min=0) ** 3


@pytest.mark.parametrize("engine", ["tangent", "reference"])
@pytest.mark.parametrize(
    ("function", "basic"), [(Ramp, cube), (MarkedLater, cube), (Swish, F.silu)], ids=lambda f: f.__name__
)
def test_agree_with_basic_operations(function, basic, engine):
    third = function is not MarkedLater
    own = summarize(*case(function.apply), third=third, engine=engine)
    plain = summarize(*case(basic), third=third)
    torch.testing.assert_close(own.hessian, plain.hessian, rtol=1e-10, atol=1e-12)
    if third:
        torch.testing.assert_close(own.third, plain.third, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, linear])
@pytest.mark.parametrize("function", [Marked, MarkedLater])
def test_the_tangent_engine_needs_no_derivatives_of_the_backward_pass(function, loss_fn):
    own, plain = (summarize(*case(f, loss_fn)) for f in (function.apply, cube))
    assert max(differences(own, plain)) < 1e-10


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, linear])
def test_the_reference_engine_refuses_a_backward_pass_without_derivatives(loss_fn):
    with pytest.raises(SummaryError, match="marked once_differentiable and has no derivatives"):
        summarize(*case(Marked.apply, loss_fn), engine="reference")
    with pytest.raises(SummaryError, match="once_differentiable"):
        summarize(*case(MarkedLater.apply, loss_fn), engine="reference")  # with third derivatives


def test_also_for_the_other_derivatives():
    with pytest.raises(SummaryError, match="once_differentiable"):
        summarize(*case(Marked.apply), curvature="gauss_newton", engine="reference")
    with pytest.raises(SummaryError, match="once_differentiable"):
        loss_derivatives(*case(Marked.apply), order=2, engine="reference")
    own, plain = (summarize(*case(f), curvature="gauss_newton") for f in (Marked.apply, cube))
    torch.testing.assert_close(own.hessian, plain.hessian, rtol=1e-10, atol=1e-12)
    own, plain = (loss_derivatives(*case(f), order=3) for f in (Marked.apply, cube))
    torch.testing.assert_close(own, plain, rtol=1e-10, atol=1e-12)


# --- backward passes that are no derivative -----------------------------------------------------------------


class Rounded(torch.autograd.Function):
    """Whole numbers, with the derivative of the identity (straight-through)."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Clipped(torch.autograd.Function):
    """x between −2 and 2, with the derivative of the identity everywhere."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(-2, 2)

    @staticmethod
    def backward(ctx, grad):
        return grad.clone()


class Reversed(torch.autograd.Function):
    """x, with the derivative of −λ x; λ is a number of the class."""

    factor = -1.0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -Reversed.factor * grad


def compared(engine, function, *changes):
    """Summaries by an engine and by the reference engine, after each change of the model."""
    model, loss_fn, inputs, targets, partition, direction = case(function)
    fast, slow = (Summarizer(model, loss_fn, partition, engine=name) for name in (engine, "reference"))
    for change in changes:
        with torch.no_grad():
            change(model)
        both = [summarizer.summarize(inputs, targets, direction) for summarizer in (fast, slow)]
        assert max(differences(*both)) < 1e-10


def stays(model):
    pass


def smaller(model):
    model.a.weight.mul_(0.3)


@pytest.mark.parametrize("function", [Rounded, Reversed])
def test_the_reference_engine_takes_over(function, monkeypatch, caplog):
    monkeypatch.setattr(Reversed, "factor", 0.5)
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        compared("auto", function.apply, stays, stays)
    assert "takes over: the trace does not reproduce the model's gradient" in caplog.text


def test_even_where_the_first_gradient_does_not_show_it(caplog):
    """With a last layer of zeros no gradient passes through the function, but curvature does."""
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        compared("auto", Rounded.apply, lambda model: model.out.weight.zero_(), stays)
    assert "takes over" in caplog.text


def test_also_once_it_shows():
    """Larger entries, or a number that only the backward pass reads."""
    compared("auto", Clipped.apply, smaller, lambda model: model.a.weight.mul_(20), stays)
    compared("auto", Reversed.apply, stays, lambda model: setattr(Reversed, "factor", 1e-3), stays)
    Reversed.factor = -1.0


def test_both_are_by_the_tangent_engine_until_then():
    compared("tangent", Clipped.apply, smaller, smaller)
    compared("tangent", Reversed.apply, stays, lambda model: model.a.weight.mul_(20))


def test_a_number_in_the_forward_pass_is_noticed():
    factor = [1.0]

    class Scaled(Ramp):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return factor[0] * Ramp.forward(ctx, x)

        @staticmethod
        def backward(ctx, grad):
            return factor[0] * Ramp.backward(ctx, grad)

    compared("tangent", Scaled.apply, stays, lambda model: factor.__setitem__(0, 1.5), stays)


def test_the_optimizer_says_so_at_its_first_update():
    model, loss_fn, inputs, targets, *_ = case(Marked.apply)
    optimizer = GroupedNewton(model, loss_fn, engine="reference")
    loss_fn(model(inputs), targets).backward()
    with pytest.raises(SummaryError, match="once_differentiable"):
        optimizer.step(batch=(inputs, targets))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_computed_at_once(reentrant):
    """With the same random draws; a reentrant one can otherwise not be differentiated by chosen tensors."""
    block = nn.Sequential(nn.Tanh(), nn.Dropout(0.3))

    def part(x):
        return checkpoint.checkpoint(block, x, use_reentrant=reentrant)

    plain = case(block)
    kept = case(part)
    own = checkpoint.CheckpointFunction
    torch.manual_seed(3)
    expected = summarize(*plain, engine="reference")
    for engine in ("tangent", "reference"):
        torch.manual_seed(3)
        assert max(differences(summarize(*kept, engine=engine), expected)) < 1e-12
    assert checkpoint.CheckpointFunction is own
