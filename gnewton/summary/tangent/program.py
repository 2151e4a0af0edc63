"""The loss as a straight-line program of ATen operations, its analysis, and comparison of programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gnewton.summary.result import SummaryError

aten = torch.ops.aten


class TraceError(SummaryError):
    """The loss cannot be written as a fixed program of differentiable operations."""


_library = torch.library.Library("gnewton", "DEF")
_library.define("constant(Tensor x) -> Tensor")
_library.impl("constant", lambda x: x.clone(), "CompositeExplicitAutograd")
CONSTANT = torch.ops.gnewton.constant.default


Path = tuple[Any, ...]
"""Where an argument of a step stands: its position or keyword, and its place in a list."""


@dataclass(frozen=True)
class Ref:
    """An argument that is the value of an earlier step."""

    step: int


@dataclass(frozen=True)
class Form:
    """The memory layout of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass
class Step:
    """One operation of the program.

    Attributes:
        op: the ATen overload; None for an input or a constant of the program.
        args, kwargs: its arguments, with :class:`Ref` in place of earlier values.
        reads: the steps it reads.
        name: its name in errors and logs.
        shape, dtype: shape and type of its (first) tensor value, where known.
        form: memory layout of its value, or of each of several values; None where unknown.
        output: for a step that selects one of several values of another step, the index of that value.
        constant: the value of a step that is a constant of the program.
        last_reader: the last step that reads it; its value may be dropped afterwards.
        active: whether the loss depends through it on a trainable parameter.
        random: whether it draws random numbers.
        needed: whether the loss needs it.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[int, ...]
    name: str
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    form: Form | tuple[Any, ...] | None = None
    output: int | None = None
    constant: Tensor | None = None
    last_reader: int = -1
    active: bool = False
    random: bool = False
    needed: bool = False

    def references(self) -> list[tuple[Path, int]]:
        """Where it takes the values of other steps, and which steps these are."""
        places: list[tuple[Path, Any]] = []
        for key, argument in (*enumerate(self.args), *self.kwargs.items()):
            if type(argument) is list:
                places.extend(((key, i), entry) for i, entry in enumerate(argument))
            else:
                places.append(((key,), argument))
        return [(path, argument.step) for path, argument in places if type(argument) is Ref]


def call_with(
    step: Step,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    paths: Sequence[Path],
    values: Sequence[Tensor],
) -> Any:
    """The result of the operation of a step, with other tensors at ``paths`` of its arguments."""
    own_args: list[Any] = [list(a) if isinstance(a, list) else a for a in args]
    own_kwargs: dict[str, Any] = dict(kwargs)
    for (key, *entry), value in zip(paths, values, strict=True):
        place: Any = own_kwargs if isinstance(key, str) else own_args
        if entry:
            place[key][entry[0]] = value
        else:
            place[key] = value
    return step.op(*own_args, **own_kwargs)


def signature(
    op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: Callable[[Any], int]
) -> tuple[Any, ...]:
    """The key of an operation: itself, the names of its tensors, and its numbers with their types."""
    signed = tuple([(k, _sign(v, name)) for k, v in kwargs.items()])
    return op, tuple([_sign(a, name) for a in args]), signed


def _sign(argument: Any, name: Callable[[Any], int]) -> Any:
    kind = type(argument)
    if kind is int or argument is None:
        return argument
    if kind is Ref or isinstance(argument, Tensor):
        return f"%{name(argument)}"
    if isinstance(argument, (list, tuple)):
        return tuple([_sign(a, name) for a in argument])
    if kind in (float, bool, complex):
        return repr(argument)  # distinguishes 1, 1.0 and True, and -0.0 and 0.0
    try:
        hash(argument)
    except TypeError:
        return id(argument)
    return argument


@dataclass
class Program:
    """A traced loss.

    Attributes:
        steps: in an order in which every step follows what it reads.
        parameters: step of each trainable parameter, by name.
        inputs: steps of the remaining arguments of the program, in calling order.
        loss: the step of the loss.
        cut: the steps of the model's outputs, where the problem names them.
        readers: the steps that read each step, among those the loss needs.
        gradients_inside: whether the model uses autograd inside.
        own_functions: whether it calls a ``torch.autograd.Function``, whose backward pass is not traced.
    """

    steps: list[Step]
    parameters: dict[str, int]
    inputs: list[int]
    loss: int
    cut: list[int] = field(default_factory=list)
    readers: list[list[int]] = field(default_factory=list)
    gradients_inside: bool = False
    own_functions: bool = False

    def arguments(self, step: Step, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a step with the values filled in."""
        return [_fill(a, values) for a in step.args], {k: _fill(a, values) for k, a in step.kwargs.items()}


def _fill(argument: Any, values: Sequence[Any]) -> Any:
    if type(argument) is Ref:
        return values[argument.step]
    if type(argument) is list:
        return [_fill(a, values) for a in argument]
    return argument


def draw_like(x: Tensor, p: float) -> Tensor:
    """Ones with probability p, zeros otherwise, drawn in the order of x's memory."""
    return torch.empty_like(x).bernoulli_(p)


def analyse(program: Program) -> None:
    """Mark the steps that the loss needs, those that carry derivatives to it, and the last reader of each."""
    steps = program.steps
    stack = [program.loss, *(i for i, step in enumerate(steps) if step.random)]
    while stack:
        i = stack.pop()
        if not steps[i].needed:
            steps[i].needed = True
            stack.extend(steps[i].reads)
    program.readers = [[] for _ in steps]
    trainable = set(program.parameters.values())
    for i, step in enumerate(steps):
        if not step.needed:
            continue
        for j in step.reads:
            steps[j].last_reader = i
            program.readers[j].append(i)
        if step.dtype is not None and step.dtype.is_complex and any(steps[j].active for j in step.reads):
            raise TraceError(f"the tangent engine has no complex numbers ({step.op})")
        step.active = i in trainable or (
            any(steps[j].active for j in step.reads) and carries_derivative(step)
        )
    reaches = [False] * len(steps)
    reaches[program.loss] = True
    for i in range(len(steps) - 1, -1, -1):
        step = steps[i]
        if step.needed and reaches[i] and step.active:
            for j in step.reads:
                reaches[j] = True
        step.active = step.active and reaches[i]


def carries_derivative(step: Step) -> bool:
    """Whether an operation has derivatives that may differ from zero."""
    if step.op is CONSTANT or step.op in FLAT:
        return False
    return step.dtype is None or step.dtype.is_floating_point


# operations whose derivative is zero wherever it exists
FLAT = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_empty.default,
    aten.new_full.default,
    aten.zero.default,
    aten.sign.default,
    aten.sgn.default,
    aten.round.default,
    aten.floor.default,
    aten.ceil.default,
    aten.trunc.default,
    aten.bernoulli.p,
    aten.bernoulli.default,
    aten.bernoulli_.float,
    aten.detach.default,
    draw_like,
}


# --- comparison of two programs -----------------------------------------------------------------------------


def same_program(a: Program, b: Program) -> bool:
    """Whether two programs compute the same: every operation, number and constant."""
    return same_operations(a, b) and all(
        repr(x.args) == repr(y.args)
        and repr(x.kwargs) == repr(y.kwargs)
        and (x.constant is None or y.constant is None or equal_tensors(x.constant, y.constant))
        for x, y in zip(a.steps, b.steps, strict=True)
    )


def same_operations(a: Program, b: Program) -> bool:
    """Whether two programs apply the same operations to values of the same shapes, with any numbers."""
    return (
        len(a.steps) == len(b.steps)
        and (a.parameters, a.inputs, a.loss, a.cut) == (b.parameters, b.inputs, b.loss, b.cut)
        and all(
            (x.op, x.output, str(x.shape), x.dtype, x.active)
            == (y.op, y.output, str(y.shape), y.dtype, y.active)
            and (x.constant is None) == (y.constant is None)
            and _references(x.args) == _references(y.args)
            and _references(x.kwargs) == _references(y.kwargs)
            for x, y in zip(a.steps, b.steps, strict=True)
        )
    )


def _references(argument: Any) -> Any:
    if type(argument) is Ref:
        return argument
    if isinstance(argument, dict):
        return {k: _references(v) for k, v in argument.items()}
    if isinstance(argument, (list, tuple)):
        return [_references(a) for a in argument]
    return None


def equal_tensors(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have equal entries now; a later change is detected by the next comparison."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    return torch.equal(a, b)
