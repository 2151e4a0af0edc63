"""Tracing: the loss of a model as a program of ATen operations.

Tracing runs the model once on fake tensors (shapes without data), so it needs no memory, updates no running
statistics and draws no random numbers. Where Python code asks for values, these are recorded first. In-place
operations become ordinary ones, and composite operations (linear, cross-entropy, attention, dropout …) become
the basic ones that have a rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from gnewton.errors import InputError, first_line
from gnewton.summary.isolation import plain_kernels, preserve_random_streams, without_side_effects
from gnewton.summary.likelihoods import gaussian_entries, unmarked
from gnewton.summary.problem import Problem
from gnewton.summary.second_derivatives import has_own_functions
from gnewton.summary.smooth import DECOMPOSITIONS, SMOOTH, FunctionMode, smooth_call, unchunked
from gnewton.summary.tangent.inner_gradients import (
    BelowAutograd,
    GradientsInside,
    asks_for_gradients,
    drop_aliases,
    is_own_function,
    is_transformed,
)
from gnewton.summary.tangent.lowering import program_of
from gnewton.summary.tangent.program import CONSTANT, Program, TraceError

Result = TypeVar("Result")

aten = torch.ops.aten


class _Marking(FunctionMode):
    """Marks in the trace where the model cuts the gradient: ``detach``, ``.data``, ``no_grad``.

    A mark is a copy. What the model writes into ``x.data``, or into a view made under ``no_grad``, reaches x
    all the same.

    Circular padding, which torch writes piece by piece into empty memory, becomes a concatenation, and the
    Gaussian likelihood does not check the values of its variances.

    Args:
        inside: whether the model may form gradients inside; otherwise :class:`GradientsInside` is raised.

    Attributes:
        own_functions: whether gradients inside have passed through a ``torch.autograd.Function``.
    """

    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self._inside = inside
        self._no_grad = not torch.is_grad_enabled()  # as the model says
        self.own_functions = False
        self._marks: dict[int, tuple[Tensor, Tensor]] = {}  # by identity: a mark, and the tensor it copies

    def _call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._no_grad = self._no_grad and not torch.is_grad_enabled()
        if func is torch._C._set_grad_enabled:
            self._no_grad = not args[0]
            return func(*args, **kwargs)
        if asks_for_gradients(func, args, kwargs):
            return self._gradients(func, args, kwargs)
        if _writes(func) and args:
            return self._write(func, args, kwargs)
        if func is F.pad and kwargs.get("mode", args[2] if len(args) > 2 else "") == "circular":
            return _pad_circular(*args, **kwargs)
        if func is F.gaussian_nll_loss:
            return unmarked(gaussian_entries(*args, **kwargs, checked=False))
        func = _REPLACED.get(func, func)
        if (
            self._inside or is_transformed()
        ):  # fused normalisations keep statistics, as if these were constants
            result = smooth_call(func, args, kwargs)
        else:
            result = func(*args, **unchunked(func, kwargs))
        detaches = func is Tensor.detach or getattr(func, "__self__", None) is Tensor.data
        if self._cuts() or (detaches and torch.is_grad_enabled()):
            return pytree.tree_map_only(Tensor, self._mark, result)
        return result

    def _cuts(self) -> bool:
        """Whether the model has switched gradients off; torch does so for a function's own forward pass."""
        if torch.is_grad_enabled():
            return False
        return self._no_grad or not self._inside or torch.is_inference_mode_enabled()

    def _gradients(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Gradients of a loss inside: constants, unless the model asks for their graph."""
        if func is torch.autograd.grad:
            self.own_functions |= has_own_functions(pytree.tree_leaves(args[0]))
        try:
            result = func(*args, **kwargs)
        except RuntimeError as error:
            if self._inside:
                raise
            raise GradientsInside from error
        if func is torch.autograd.grad and not kwargs.get("create_graph", False):  # torch names its arguments
            return pytree.tree_map_only(Tensor, self._mark, result)
        return result

    def _mark(self, tensor: Tensor) -> Tensor:
        mark = _mark(tensor)
        if mark is not tensor:
            self._marks[id(mark)] = mark, tensor
        return mark

    def _write(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation in place, whose target keeps its identity."""
        rest = list(args[1:]), dict(kwargs)
        if self._cuts():
            rest = pytree.tree_map_only(Tensor, _mark, rest)
        result = func(args[0], *rest[0], **rest[1])
        marked = self._marks.get(id(args[0]))
        if marked is not None:
            marked[1].copy_(_mark(args[0]))
        return result


def _cov(x: Tensor, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Tensor:
    """The covariance; torch asks for the value of its divisor."""
    if fweights is not None or aweights is not None:
        return torch.cov(x, correction=correction, fweights=fweights, aweights=aweights)
    rows = x.reshape(1, -1) if x.dim() < 2 else x
    centred = rows - rows.mean(1, keepdim=True)
    return (centred @ centred.mH / max(rows.shape[1] - correction, 0)).squeeze()


def _corrcoef(x: Tensor) -> Tensor:
    covariance = _cov(x)
    if covariance.dim() == 0 or x.is_complex():
        return torch.corrcoef(x)
    deviation = covariance.diagonal().sqrt()
    return (covariance / deviation[:, None] / deviation).clip(-1, 1)


_REPLACED: dict[Any, Callable[..., Any]] = {
    **SMOOTH,
    torch.cov: _cov,
    Tensor.cov: _cov,
    torch.corrcoef: _corrcoef,
    Tensor.corrcoef: _corrcoef,
}


_ASSIGNMENTS = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__imod__")


def _writes(func: Any) -> bool:
    """Whether a function of torch writes into its first argument."""
    name = getattr(func, "__name__", "")
    ordinary = name.endswith("_") and not name.startswith("_") and name != "requires_grad_"
    return ordinary or name in _ASSIGNMENTS


def _mark(tensor: Tensor) -> Tensor:
    return CONSTANT(tensor) if tensor.is_floating_point() else tensor


def _pad_circular(input: Tensor, pad: Sequence[int], mode: str, value: float | None = None) -> Tensor:
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = input.dim() - 1 - i
        length = input.shape[axis]
        pieces = [input.narrow(axis, length - before, before), input, input.narrow(axis, 0, after)]
        input = torch.cat(pieces, axis)
    return input


class Traceable(Generic[Result]):
    """The loss or the results of a problem, as a function that marks where the model cuts the gradient.

    Args:
        function: of parameters, constants, inputs and targets.
        inside: whether the model forms gradients inside.

    Attributes:
        own_functions: whether gradients inside have passed through a ``torch.autograd.Function``.
    """

    def __init__(self, function: Callable[..., Result], *, inside: bool) -> None:
        self._function = function
        self._inside = inside
        self.own_functions = False

    def __call__(self, parameters: Any, fixed: Any, x: Any, y: Any) -> Result:
        """The result."""
        with _Marking(inside=self._inside) as mode:
            result = self._function(parameters, fixed, x, y)
        self.own_functions = mode.own_functions
        return result


def trace(problem: Problem, inputs: Any, targets: Any) -> Program:
    """The program of the loss of a problem, for batches of these shapes.

    The program's inputs are the leaves of ``(problem.constants(), inputs, targets)``.

    Raises:
        TraceError: if shapes depend on the values of tensors, or tracing does not support the model.
        InputError: if the loss is not a scalar.
    """
    try:
        program = _traced_either_way(problem, inputs, targets, None)
    except InputError:
        raise
    except Exception as error:  # any error of user code or the tracer; the reference engine decides
        try:
            answers = _answers(problem, inputs, targets)
            if not answers:
                raise error
            program = _traced_either_way(problem, inputs, targets, answers)
        except Exception as second:
            if isinstance(second, TraceError):
                raise
            reason = first_line(second, with_type=True)
            raise TraceError(f"the model cannot be traced: {reason}") from second
    return program


def _traced_either_way(problem: Problem, inputs: Any, targets: Any, answers: Any) -> Program:
    """The program of a model, with the functional form above autograd, or below it where that is needed."""
    own_functions = False
    try:
        return _traced(problem, inputs, targets, answers, inside=False)
    except GradientsInside:
        pass
    except RuntimeError as error:
        own_functions = is_own_function(error)
        if not own_functions:
            raise
    program = _traced(problem, inputs, targets, answers, inside=True)
    program.own_functions = program.own_functions or own_functions
    return program


def _traced(problem: Problem, inputs: Any, targets: Any, answers: Any, *, inside: bool) -> Program:
    leaves = problem.copied_parameters()
    results = Traceable(problem.results, inside=inside)
    below = BelowAutograd(results)
    make = make_fx(
        below if inside else functionalize(results),
        DECOMPOSITIONS,
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )
    with (
        preserve_random_streams(problem),
        plain_kernels(),
        contextlib.nullcontext() if answers is None else AnswerReplay(answers),
    ):
        traced = make(leaves, problem.constants(), inputs, targets)
    if not inside:
        return program_of(traced, list(problem.parameters()))
    drop_aliases(traced.graph)
    program = program_of(traced, list(problem.parameters()))
    program.gradients_inside = True
    program.own_functions = below.own_functions or results.own_functions
    return program


def _answers(problem: Problem, inputs: Any, targets: Any) -> list[tuple[Any, Any]]:
    """The questions of the model about the values of its tensors on this batch, with the answers."""
    copies = pytree.tree_map_only(Tensor, torch.clone, (problem.constants(), inputs, targets))
    leaves = problem.copied_parameters()
    with without_side_effects(problem), plain_kernels(), AnswerRecorder() as record:
        problem.loss(leaves, *copies)
    return record.answers


# --- answers to questions about values ----------------------------------------------------------------------
#
# Tracing knows shapes, not values, and stops at ``if mask.all():``. The model is then run once on its values,
# every answer is recorded, and tracing receives the answers in the same order. The trace holds while the
# answers stay the same, which every summary verifies (trace_guard.py).

QUESTIONS: frozenset[Any] = frozenset(
    {
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__complex__,
        Tensor.__index__,
        Tensor.__contains__,
        Tensor.item,
        Tensor.tolist,
        Tensor.is_nonzero,
        Tensor.equal,
        Tensor.allclose,
        torch.is_nonzero,
        torch.equal,
        torch.allclose,
    }
)


class AnswerRecorder(FunctionMode):
    """Records the answers to questions about values.

    Attributes:
        answers: pairs of question and answer, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[tuple[Any, Any]] = []

    def _call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if func in QUESTIONS:
            self.answers.append((func, result))
        return result


class AnswerReplay(FunctionMode):
    """Replays recorded answers. With the functional form below autograd, torch asks for a truth by ``item``.

    Raises:
        LookupError: in the model's code, where it asks another question than the recorded one.
    """

    def __init__(self, answers: Sequence[tuple[Any, Any]]) -> None:
        super().__init__()
        self._answers = iter(answers)

    def _call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func not in QUESTIONS:
            return func(*args, **kwargs)
        question, answer = next(self._answers, (None, None))
        if question is not func and not (func is Tensor.item and question is Tensor.__bool__):
            raise LookupError("the model asks for other values of tensors than a moment ago")
        return answer
