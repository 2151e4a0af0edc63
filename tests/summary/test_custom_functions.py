"""Own ``torch.autograd.Function``s: the right derivatives, or an error where their backward pass has none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils import checkpoint

from gnewton import GroupedNewton, loss_derivatives
from gnewton.summary import SummaryError, summarize

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


@pytest.mark.parametrize("function", [Ramp, MarkedLater])
def test_agree_with_basic_operations(function):
    third = function is Ramp
    own = summarize(*case(function.apply), third=third)
    basic = summarize(*case(lambda x: x.clamp(min=0) ** 3), third=third)
    torch.testing.assert_close(own.hessian, basic.hessian, rtol=1e-10, atol=1e-12)
    if third:
        torch.testing.assert_close(own.third, basic.third, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, linear])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_backward_pass_without_derivatives_is_refused(engine, loss_fn):
    with pytest.raises(SummaryError, match="marked once_differentiable and has no derivatives"):
        summarize(*case(Marked.apply, loss_fn), engine=engine)
    with pytest.raises(SummaryError, match="once_differentiable"):
        summarize(*case(MarkedLater.apply, loss_fn), engine=engine)  # with third derivatives


def test_also_for_the_other_derivatives():
    with pytest.raises(SummaryError, match="once_differentiable"):
        summarize(*case(Marked.apply), curvature="gauss_newton")
    with pytest.raises(SummaryError, match="once_differentiable"):
        loss_derivatives(*case(Marked.apply), order=2)


def test_the_optimizer_says_so_at_its_first_update():
    model, loss_fn, inputs, targets, *_ = case(Marked.apply)
    optimizer = GroupedNewton(model, loss_fn)
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
