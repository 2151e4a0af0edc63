"""From a traced graph of torch.fx to a :class:`~gnewton.summary.tangent.program.Program`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gnewton.summary.tangent.program import (
    Form,
    Program,
    Ref,
    Step,
    TraceError,
    analyse,
    draw_like,
    signature,
)

aten = torch.ops.aten


def program_of(traced: fx.GraphModule, parameter_names: list[str]) -> Program:
    """The program of a traced loss, whose first inputs are the parameters.

    Raises:
        TraceError: if the graph holds what a program cannot express, or writes in place.
    """
    _replace_in_place(traced.graph)
    nodes = list(traced.graph.nodes)
    number: dict[fx.Node, int] = {}
    steps: list[Step] = []
    placeholders: list[int] = []
    loss, cut = -1, []
    shared, last_output = _Shared(nodes), _last_output(traced.graph)
    for node in nodes:
        if node.op == "output":
            loss, *cut = (number[result] for result in pytree.tree_leaves(node.args[0]))
            continue
        step = _step(traced, node, number)
        if step is None:
            continue
        known = shared.enter(step, len(steps))
        if known is not None:
            number[node] = known
            continue
        number[node] = len(steps)
        if node.op == "placeholder":
            placeholders.append(len(steps))
        steps.append(step)
        if node is last_output:
            shared = _Shared(nodes)
    count = len(parameter_names)
    program = Program(
        steps=steps,
        parameters=dict(zip(parameter_names, placeholders[:count], strict=True)),
        inputs=placeholders[count:],
        loss=loss,
        cut=cut,
    )
    _restore_layouts(program)
    analyse(program)
    _refuse_mutation(program)
    return program


def _last_output(graph: fx.Graph) -> fx.Node | None:
    """The last of the outputs of the model, where the program returns them behind the loss."""
    (results,) = (node.args[0] for node in graph.nodes if node.op == "output")
    outputs = [node for node in pytree.tree_leaves(results)[1:] if isinstance(node, fx.Node)]
    return max(outputs, default=None)


class _Shared:
    """Equal operations on the same values, which become one step: a backward pass inside repeats many.

    What is drawn is not equal. Where an operation writes in place, memory that looks equal may not be. Model
    and loss share no step, so that each has its own part of the program.
    """

    def __init__(self, nodes: list[fx.Node]) -> None:
        self._off = any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in nodes)
        self._known: dict[Any, int] = {}

    def enter(self, step: Step, number: int) -> int | None:
        """The number of an earlier step that is equal; None where there is none."""
        if self._off or step.op is None or step.random or not step.reads:
            return None
        key = signature(step.op, step.args, step.kwargs, lambda ref: ref.step)
        first = self._known.setdefault(key, number)
        return None if first == number else first


# overloads of ordinary operations that differ from those of their in-place forms
_OVERLOADS = {"transpose_": "int"}


def ordinary(op: torch._ops.OpOverload) -> Any:
    """The operation that returns what an in-place operation writes; None where there is none."""
    packet, _, overload = op.name().removeprefix("aten::").partition(".")
    if packet == "bernoulli_" and overload == "float":
        return draw_like
    if not packet.endswith("_") or packet == "copy_" or torch.Tag.nondeterministic_seeded in op.tags:
        return None
    return getattr(getattr(aten, packet[:-1], None), _OVERLOADS.get(packet, overload or "default"), None)


def _replace_in_place(graph: fx.Graph) -> None:
    """Replace the in-place operations that remain inside composite ones by ordinary ones.

    They write into temporary memory; later readers of this memory read the result instead.
    """
    for node in list(graph.nodes):
        op = node.target
        if (
            node.op != "call_function"
            or not isinstance(op, torch._ops.OpOverload)
            or not op._schema.is_mutable
        ):
            continue
        written = node.args[0] if node.args else None
        plain = ordinary(op)
        if plain is None or not isinstance(written, fx.Node):
            continue
        node.target = plain
        later = {user for user in written.users if user is not node and user > node}
        written.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _step(traced: fx.GraphModule, node: fx.Node, number: Mapping[fx.Node, int]) -> Step | None:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    shape = tuple(first.shape) if isinstance(first, Tensor) else ()
    dtype = first.dtype if isinstance(first, Tensor) else None
    if node.op == "placeholder":
        return Step(None, (), {}, (), node.name, shape, dtype)
    if node.op == "get_attr":
        constant = traced
        for part in str(node.target).split("."):
            constant = getattr(constant, part)
        if not isinstance(constant, Tensor):
            raise TraceError(f"the model cannot be traced: it holds a sub-program ({node.target})")
        return Step(
            None, (), {}, (), node.name, tuple(constant.shape), constant.dtype, constant=constant.detach()
        )
    if node.op != "call_function":
        raise TraceError(f"the model cannot be traced: unexpected {node.op} {node.target}")
    reads = tuple(dict.fromkeys(number[n] for n in node.all_input_nodes if n in number))
    if node.target is aten.copy_.default and not node.users:
        return None  # writes a buffer: running statistics are not updated
    output: Any = node.args[1] if getattr(node.target, "__name__", "") == "getitem" else None

    def convert(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return Ref(number[argument])
        if isinstance(argument, (list, tuple)):
            return [convert(a) for a in argument]
        return argument

    args = tuple(convert(a) for a in node.args)
    kwargs = {k: convert(a) for k, a in node.kwargs.items()}
    random = node.target is draw_like or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return Step(
        node.target,
        args,
        kwargs,
        reads,
        node.name,
        shape,
        dtype,
        form=_form(value),
        output=output,
        random=random,  # type: ignore[arg-type]
    )


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or not all(
            type(n) is int for n in (*value.shape, *value.stride())
        ):
            return None
        return Form(tuple(value.shape), value.stride(), value.dtype, value.device)
    if isinstance(value, (tuple, list)):
        parts = tuple(map(_form, value))
        return None if any(part is None for part in parts) else parts
    return None


def _restore_layouts(program: Program) -> None:
    """Give a dropout mask the memory layout of the masked tensor, as in the forward pass of the model.

    Tracing turns ``empty_like(x).bernoulli_(p)`` into a draw of contiguous layout; the same random stream
    would then give another mask.
    """
    steps = program.steps
    for i, step in enumerate(steps):
        if step.op is not aten.bernoulli.p:
            continue
        source = steps[step.reads[0]]
        if source.op is aten.expand.default:
            source = steps[source.reads[0]]
        if source.op is not aten.empty.memory_format:
            continue
        carriers = {i} | {j for j, s in enumerate(steps) if s.op is aten.div.Scalar and s.args[0] == Ref(i)}
        for user in steps[i + 1 :]:
            if user.op is aten.mul.Tensor and carriers & set(user.reads) and len(user.reads) == 2:
                (masked,) = set(user.reads) - carriers
                if masked < i and steps[masked].shape == step.shape:
                    step.op = draw_like
                    step.args = (Ref(masked), *step.args[1:])
                    step.reads = (masked,)
                    break


# operations with a result in new memory, which may be overwritten
_FRESH = (
    "empty",
    "new_empty",
    "zeros",
    "new_zeros",
    "ones",
    "new_ones",
    "full",
    "new_full",
    "rand",
    "randn",
    "bernoulli",
)


def _refuse_mutation(program: Program) -> None:
    """Refuse in-place operations, unless they write into new memory that carries no derivative."""
    steps = program.steps
    for step in steps:
        if (
            not step.needed
            or not isinstance(step.op, torch._ops.OpOverload)
            or not step.op._schema.is_mutable
        ):
            continue
        root = step
        while isinstance(root.op, torch._ops.OpOverload) and root.op._schema.is_mutable and root.reads:
            root = steps[root.reads[0]]
        name = root.op.name() if isinstance(root.op, torch._ops.OpOverload) else ""
        name = name.removeprefix("aten::").split(".")[0].removesuffix("_like")
        if step.active or root.active or name not in _FRESH:
            raise TraceError(f"the model cannot be traced: it writes in place ({step.op})")
