"""The guard of a trace: whether the model still computes what the trace says, at the cost of Python alone.

The model and the loss are run once more, as at tracing, but nothing is computed twice. An operation of the
program, with the same operation behind every argument and the same numbers, returns the value of the
program's primal pass. Every other operation is computed, and its name is made of the names of its arguments.
So two runs that end with the same name have applied the same operations, numbers and tensors, wherever Python
took them from: closures, globals, configurations, schedules, hooks, random choices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gnewton.summary.isolation import plain_kernels, without_side_effects
from gnewton.summary.problem import Problem
from gnewton.summary.smooth import DECOMPOSITIONS
from gnewton.summary.tangent.inner_gradients import one_thread
from gnewton.summary.tangent.lowering import ordinary
from gnewton.summary.tangent.program import (
    Form,
    Program,
    Ref,
    Step,
    draw_like,
    equal_tensors,
    signature,
)
from gnewton.summary.tangent.tracing import Traceable

aten = torch.ops.aten

Name = int

# operations that copy their argument
_SAME = {aten.lift_fresh.default, aten.lift_fresh_copy.default}


class _MustCompute(Exception):
    """The model writes into a value of the program, or asks for a value that has not been computed."""


class OperationNames:
    """The names of the operations of a program, by which those of the model are recognised.

    The name of a step is its number; equal operations on arguments with equal names have the name of the
    first of them. Random draws are named in their order. Tensors from outside are identified by their memory,
    or, where that is new, by their contents.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.draws = [i for i, step in enumerate(program.steps) if step.random]
        self.drawn = {i for i in self.draws if program.steps[i].op is not aten.native_dropout.default}
        self.result: Name | None = None  # name of the loss, as the model computed it the first time
        self.lend = True  # whether the model runs on the program's values
        self._table: dict[Any, Name] = {}
        self._outside: list[tuple[Tensor, Name]] = []
        self._memory: dict[Any, Name] = {}
        self._next = len(program.steps)
        canonical = list(range(len(program.steps)))
        for i, step in enumerate(program.steps):
            if step.constant is not None:
                self._enter_outside(step.constant, i)
            elif step.output is not None:
                canonical[i] = self._table.setdefault(("output", canonical[step.reads[0]], step.output), i)
            elif step.op in _SAME:
                canonical[i] = canonical[step.reads[0]]
            elif step.op is not None and not step.random:
                key = signature(step.op, step.args, step.kwargs, lambda ref: canonical[ref.step])
                canonical[i] = self._table.setdefault(key, i)

    def of(self, key: Any) -> Name:
        """The name of an operation; a new name for a new operation."""
        name = self._table.get(key)
        if name is None:
            name = self._table[key] = self._next
            self._next += 1
        return name

    def output(self, name: Name, k: int) -> Name:
        """The name of one of several values."""
        return self.of(("output", name, k))

    def outside(self, tensor: Tensor) -> Name:
        """The name of a tensor that is no result of an operation."""
        known = self._memory.get(_place(tensor))
        if known is not None:
            return known
        for other, name in self._outside:
            if equal_tensors(tensor.detach(), other):
                return name
        self._next += 1
        self._enter_outside(tensor.detach(), self._next - 1)
        return self._next - 1

    def _enter_outside(self, tensor: Tensor, name: Name) -> None:
        self._outside.append((tensor, name))  # kept, so that no other tensor takes its memory
        self._memory.setdefault(_place(tensor), name)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Forget the names given inside on leaving, except those of the first run."""
        operations, tensors = len(self._table), len(self._outside)
        yield
        if self.result is None:
            return
        while len(self._table) > operations:
            self._table.popitem()
        while len(self._outside) > tensors:
            tensor, name = self._outside.pop()
            if self._memory.get(_place(tensor)) == name:
                del self._memory[_place(tensor)]


def _place(tensor: Tensor) -> Any:
    try:
        return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
    except RuntimeError:  # sparse tensors have no single address
        return id(tensor)


def _storage(tensor: Tensor) -> int:
    """The identity of the memory that a tensor shares with its views."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # sparse tensors have several
        return id(tensor)


class _Replay(TorchDispatchMode):
    """Answers the model's operations from the values of a program.

    Args:
        names: names of the program's operations.
        named: names of inputs and parameters, by identity.
        values: values of the program's steps; None where there is none.
        lend: whether to return these values instead of computing.
        blank: whether to return memory of the right shape where there is no value, and to stop where the
            model needs the numbers.

    Where the model forms gradients inside, operations in place arrive as they are. What they write into, and
    every view of it, gets another name.
    """

    def __init__(
        self, names: OperationNames, named: dict[int, Name], values: Sequence[Any], *, lend: bool, blank: bool
    ) -> None:
        super().__init__()
        self._names = names
        self._named = named
        self._values = values
        self._lend = lend
        self._blank = blank
        self._blanks: set[int] = set()
        self._inputs = set(named)
        self._computed: set[int] = set()  # tensors computed here
        self._held: list[Any] = []  # live objects keep their identity
        self._draws = 0
        self._inside = names.program.gradients_inside
        self._same = _SAME | {aten.detach.default} if self._inside else _SAME

    def name(self, tensor: Any) -> Name:
        known = self._named.get(id(tensor))
        if known is None:
            known = self._named[id(tensor)] = self._names.outside(tensor)
            self._held.append(tensor)
        return known

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:
                decomposition = DECOMPOSITIONS.get(func, func.decompose)
                result = decomposition(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func._schema.is_mutable:
            return self._write(func, args, kwargs)
        if func in self._same:
            result = self._compute(func, args, kwargs)
            computed = func in _SAME or id(args[0]) in self._computed
            self._enter(result, self.name(args[0]), computed=computed)
            return result
        result, name, computed = self._value(func, args, kwargs)
        if isinstance(result, Tensor):
            self._enter(result, name, computed=computed)
        elif isinstance(result, (tuple, list)):
            for k, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._enter(part, self._names.output(name, k), computed=computed)
        return result

    def _value(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Name, bool]:
        """The result of an operation, its name, and whether it has been computed here."""
        key = signature(func, args, kwargs, self.name)
        name = self._draw(func, args, key) if torch.Tag.nondeterministic_seeded in func.tags else None
        if name is None:
            name = self._names.of(key)
        value = self._lent(name)
        if isinstance(value, Tensor):
            return value.detach(), name, False
        if value is not None:
            return pytree.tree_map_only(Tensor, torch.detach, value), name, False
        if self._blank and name < len(self._values) and not func.is_view:
            form = self._names.program.steps[name].form
            if form is not None:
                return self._blank_memory(form), name, False
        if name in self._names.drawn and self._values[name] is not None:
            return self._values[name].clone(), name, True  # drawn once
        computed = not func.is_view or id(args[0]) in self._computed
        return self._compute(func, args, kwargs), name, computed

    def _lent(self, name: Name) -> Any:
        return self._values[name] if self._lend and name < len(self._values) else None

    def _blank_memory(self, form: Any) -> Any:
        if isinstance(form, Form):
            blank = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=form.device)
            self._blanks.add(id(blank))
            return blank
        return tuple([None if part is None else self._blank_memory(part) for part in form])

    def _compute(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if not self._blank or not any(id(a) in self._blanks for a in pytree.tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if not func.is_view:
            raise _MustCompute
        result = func(*args, **kwargs)
        self._blanks.update(id(r) for r in pytree.tree_leaves(result))
        return result

    def _enter(self, tensor: Tensor, name: Name, *, computed: bool) -> None:
        self._named[id(tensor)] = name
        self._held.append(tensor)
        if computed:
            self._computed.add(id(tensor))

    def _draw(self, func: Any, args: Sequence[Any], key: Any) -> Name:
        """The name of the next random draw: that of the program's draw, if the two correspond."""
        order, self._draws = self._draws, self._draws + 1
        if order < len(self._names.draws):
            i = self._names.draws[order]
            if _draws_alike(self._names.program.steps[i], func, args):
                return i
        return self._names.of(("draw", order, key))

    def _write(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation in place, named like the ordinary operation that returns what it writes."""
        target: Any = args[0] if args else None
        if func is aten.copy_.default and id(target) in self._inputs:
            return target  # running statistics are not updated
        plain = ordinary(func)
        computed = id(target) in self._computed
        aliases = self._aliases(target) if self._inside else []
        if not computed and self._lend and (plain is None or aliases or self._is_view(target)):
            raise _MustCompute
        if torch.Tag.nondeterministic_seeded in func.tags:
            name = self._draw(plain or func, args, signature(plain or func, args, kwargs, self.name))
            value = self._lent(name)
            result = value.detach() if value is not None else self._compute(plain or func, args, kwargs)
            if result is not target:
                target.set_(result)
                if value is not None:  # lent from here on
                    self._computed.discard(id(target))
        elif computed or not self._lend:
            name = self._names.of(signature(plain or func, args, kwargs, self.name))
            self._compute(func, args, kwargs)
        else:
            assert plain is not None
            result, name, _ = self._value(plain, args, kwargs)
            target.set_(result)  # other memory, so that the program's keeps its numbers
        self._named[id(target)] = name
        for alias in aliases:
            self._named[id(alias)] = self._names.of(("written", self._named[id(alias)], name))
        return target

    def _aliases(self, tensor: Tensor) -> list[Tensor]:
        """The other tensors in the memory of a tensor."""
        memory = _storage(tensor)
        return [other for other in self._held if other is not tensor and _storage(other) == memory]

    def _is_view(self, tensor: Tensor) -> bool:
        name = self._named.get(id(tensor), len(self._values))
        if name >= len(self._values):
            return True
        op = self._names.program.steps[name].op
        return op is None or getattr(op, "is_view", False)


_COMPOSITE: dict[Any, bool] = {}


def _is_composite(func: Any) -> bool:
    """Whether tracing decomposes an operation."""
    known = _COMPOSITE.get(func)
    if known is None:
        known = _COMPOSITE[func] = func in DECOMPOSITIONS or torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
        )
    return known


def _draws_alike(step: Step, func: Any, args: Sequence[Any]) -> bool:
    """Whether a random step of the program is this draw; tracing gives masks another form."""
    if step.op is not func and (step.op is not draw_like or func is not aten.bernoulli.p):
        return False
    tensors = [a for a in args if isinstance(a, Tensor)]
    if tensors and tuple(tensors[0].shape) != step.shape:
        return False
    numbers = [repr(a) for a in args if not isinstance(a, Tensor)]
    return numbers == [repr(a) for a in step.args if type(a) is not Ref]


def computed_name(
    problem: Problem,
    names: OperationNames,
    trees: tuple[Any, Any, Any],
    leaves: Mapping[str, Tensor],
    values: Sequence[Any],
    *,
    blank: bool = False,
) -> Name | None:
    """Run the model and the loss, and return the name of the loss; None if it has none.

    Args:
        problem: model and loss.
        names: names of the program's operations.
        trees: constants, inputs and targets, as in :meth:`Problem.loss`.
        leaves: the parameters.
        values: the values of the program's steps for the same leaves and trees.
        blank: whether these are random draws alone: then nothing is computed, unless the model needs it.
    """

    def run(*, lend: bool) -> Name | None:
        with names.borrowed(), without_side_effects(problem):
            # the model may write into its arguments
            arguments = trees if lend and not inside else pytree.tree_map_only(Tensor, torch.clone, trees)
            named = {id(variables[name]): i for name, i in names.program.parameters.items()}
            for i, value in zip(names.program.inputs, pytree.tree_leaves(arguments), strict=True):
                if isinstance(value, Tensor):
                    named[id(value)] = i
            marked = Traceable(problem.loss, inside=inside)
            loss_of: Callable[..., Tensor] = marked if inside else functionalize(marked)
            with (
                plain_kernels(),
                one_thread(),
                _Replay(names, named, values, lend=lend, blank=blank and lend),
            ):
                loss = loss_of(dict(variables), *arguments)
            return named.get(id(loss))

    inside = names.program.gradients_inside
    variables = {name: p.detach().requires_grad_() for name, p in leaves.items()} if inside else leaves

    if names.lend:
        try:
            return run(lend=True)
        except _MustCompute:
            names.lend = blank  # with all numbers available the next run would be the same
    return run(lend=False)
