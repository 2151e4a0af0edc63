"""Writing the loss of a model as a program of ATen operations.

Tracing runs the model once on fake tensors (shapes without data), so it costs no memory, moves no running
statistic and draws no random number; where Python code asks for values, these are found first. In-place
operations are turned into ordinary ones on the way, composite operations (linear, cross-entropy, attention,
dropout …) into the few basic ones that have a rule.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from gnewton.errors import InputError, first_line
from gnewton.summary.answers import Answered, Recorded
from gnewton.summary.graph import CONSTANT, Form, Program, Ref, Step, TraceError, analyse, draw_like
from gnewton.summary.problem import Problem
from gnewton.summary.smooth import unchunked
from gnewton.summary.undisturbed import restored_streams, undisturbed

aten = torch.ops.aten


class _Traceable(TorchFunctionMode):
    """Leaves a mark in the trace where the model cuts the gradient: ``detach``, ``.data``, ``no_grad``.

    Circular padding, which torch writes piece by piece into empty memory, becomes a concatenation, and the
    Gaussian likelihood does without a look at the values of its variances.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.pad and kwargs.get("mode", args[2] if len(args) > 2 else "") == "circular":
            return _pad_circular(*args, **kwargs)
        if func is F.gaussian_nll_loss:
            return _gaussian_likelihood(*args, **kwargs)
        result = func(*args, **unchunked(func, kwargs))
        cuts = func is Tensor.detach or getattr(func, "__self__", None) is Tensor.data
        if cuts or not torch.is_grad_enabled():
            return pytree.tree_map_only(Tensor, _mark, result)
        return result


def _mark(tensor: Tensor) -> Tensor:
    return CONSTANT(tensor) if tensor.is_floating_point() else tensor


def _pad_circular(input: Tensor, pad: Sequence[int], mode: str, value: float | None = None) -> Tensor:
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = input.dim() - 1 - i
        length = input.shape[axis]
        pieces = [input.narrow(axis, length - before, before), input, input.narrow(axis, 0, after)]
        input = torch.cat(pieces, axis)
    return input


def _gaussian_likelihood(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    variance = torch.full_like(input, var) if isinstance(var, float) else var
    if variance.dim() == input.dim() - 1 and variance.shape == input.shape[:-1]:
        variance = variance.unsqueeze(-1)
    below = CONSTANT(variance.clamp(min=eps) - variance)  # the bound does not stop the gradient
    variance = variance + below
    loss = 0.5 * (variance.log() + (input - target).square() / variance)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return {"mean": loss.mean, "sum": loss.sum}.get(reduction, lambda: loss)()


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(v.dim()) if axis != dim]
    norm = v.square().sum(axes, keepdim=True).sqrt()
    return v * (g / norm), norm


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``target.copy_(source)`` leaves in ``target``."""
    if source.dtype != target.dtype or source.device != target.device:
        source = aten._to_copy.default(source, dtype=target.dtype, device=target.device)
    if source.shape != target.shape:
        source = aten.expand.default(source, list(target.shape))
    return aten.clone.default(source)


# operations that torch differentiates too seldom, in basic ones
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten._weight_norm_interface.default: _weight_norm,
    aten.copy.default: _copy,
}


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Trace to operations that have derivatives of every order, not to a vendor's fused forward kernels."""
    backends = torch.backends
    before = backends.mha.get_fastpath_enabled(), backends.cudnn.enabled, torch._C._get_mkldnn_enabled()
    backends.mha.set_fastpath_enabled(False)
    torch._C._set_cudnn_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        backends.mha.set_fastpath_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])
        torch._C._set_mkldnn_enabled(before[2])


def traceable(problem: Problem) -> Callable[..., Tensor]:
    """The loss of a problem as a function that marks where the gradient is cut."""

    def loss(parameters: Any, fixed: Any, x: Any, y: Any) -> Tensor:
        with _Traceable():
            return problem.loss(parameters, fixed, x, y)

    return loss


def trace(problem: Problem, inputs: Any, targets: Any) -> Program:
    """Write the loss of a problem on a batch of these shapes as a program.

    The program's inputs are the leaves of ``(problem.constants(), inputs, targets)``.

    Raises:
        TraceError: if shapes depend on the values of tensors, or the model uses what tracing does not know.
        InputError: if the loss is no scalar.
    """
    try:
        traced = _traced(problem, inputs, targets, None)
    except InputError:
        raise
    except Exception as error:  # whatever user code and the tracer throw: the reference engine will judge
        try:
            answers = _answers(problem, inputs, targets)
            if not answers:
                raise error
            traced = _traced(problem, inputs, targets, answers)
        except Exception as again:
            reason = first_line(again, with_type=True)
            raise TraceError(f"the model cannot be traced: {reason}") from again
    return _program(traced, list(problem.parameters()))


def _traced(problem: Problem, inputs: Any, targets: Any, answers: Any) -> fx.GraphModule:
    leaves = {name: p.clone().requires_grad_() for name, p in problem.parameters().items()}
    loss = functionalize(traceable(problem))
    make = make_fx(loss, DECOMPOSITIONS, tracing_mode="fake", _allow_non_fake_inputs=True)
    with (
        restored_streams(problem),
        plain_kernels(),
        contextlib.nullcontext() if answers is None else Answered(answers),
    ):
        return make(leaves, problem.constants(), inputs, targets)


def _answers(problem: Problem, inputs: Any, targets: Any) -> list[tuple[Any, Any]]:
    """What the model asks about the values of its tensors on this batch."""
    copies = pytree.tree_map_only(Tensor, torch.clone, (problem.constants(), inputs, targets))
    leaves = {name: p.requires_grad_() for name, p in problem.parameters().items()}
    with undisturbed(problem), plain_kernels(), Recorded() as record:
        problem.loss(leaves, *copies)
    return record.answers


def _program(traced: fx.GraphModule, parameter_names: list[str]) -> Program:
    _replace_in_place(traced.graph)
    nodes = list(traced.graph.nodes)
    number: dict[fx.Node, int] = {}
    steps: list[Step] = []
    placeholders: list[int] = []
    loss = -1
    for node in nodes:
        if node.op == "output":
            (result,) = pytree.tree_leaves(node.args[0])
            loss = number[result]
            continue
        step = _step(traced, node, number)
        if step is None:
            continue
        number[node] = len(steps)
        if node.op == "placeholder":
            placeholders.append(len(steps))
        steps.append(step)
    count = len(parameter_names)
    program = Program(
        steps=steps,
        parameters=dict(zip(parameter_names, placeholders[:count], strict=True)),
        inputs=placeholders[count:],
        loss=loss,
    )
    _restore_layouts(program)
    analyse(program)
    _refuse_mutation(program)
    return program


# the overloads of ordinary operations whose in-place forms have another one
_OVERLOADS = {"transpose_": "int"}


def ordinary(op: torch._ops.OpOverload) -> Any:
    """The operation that returns what an in-place one writes; None where there is none."""
    packet, _, overload = op.name().removeprefix("aten::").partition(".")
    if packet == "bernoulli_" and overload == "float":
        return draw_like
    if not packet.endswith("_") or packet == "copy_" or torch.Tag.nondeterministic_seeded in op.tags:
        return None
    return getattr(getattr(aten, packet[:-1], None), _OVERLOADS.get(packet, overload or "default"), None)


def _replace_in_place(graph: fx.Graph) -> None:
    """Turn the in-place operations that survive inside composite ones into ordinary ones.

    They write into temporary memory; who reads it afterwards reads the result instead.
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
        return None  # writes a buffer back: running statistics do not move
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
    """Let a dropout mask have the memory layout of what it masks, as in the model's own forward pass.

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


# operations whose result is new memory, so that writing into it harms nobody
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
    """In-place operations that survived tracing may only write into new memory that carries no derivative."""
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
