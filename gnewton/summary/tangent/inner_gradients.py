"""Models that form gradients inside: physics-informed networks, gradient penalties, inner steps.

``torch.autograd.grad`` acts above the dispatcher: its backward pass calls ordinary operations. The functional
form of an ordinary trace lies above autograd, so such a call finds no graph. Models that make one are traced
with the functional form below autograd, where the operations of forward and backward passes arrive alike. The
trace then holds both, and derivatives go through both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.utils import _pytree as pytree

from gnewton.summary.second_derivatives import has_own_functions
from gnewton.summary.tangent.program import TraceError

Result = TypeVar("Result")

aten = torch.ops.aten

class GradientsInside(Exception):
    """The model asks for gradients inside, and is traced as if it did not."""


def asks_for_gradients(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function of torch forms gradients, or makes a tensor one of their variables.

    ``torch.func`` calls the same functions; its transformations are traced as they are.

    Raises:
        TraceError: if it adds gradients to the attribute ``grad`` of tensors, or changes gradients by a hook.
    """
    if is_transformed():
        return False
    if func is Tensor.register_hook:
        raise TraceError("the model cannot be traced: it changes gradients by a hook")
    if func is torch.autograd.backward or func is Tensor.backward:
        raise TraceError("the model cannot be traced: it calls backward()")
    if func is torch.autograd.grad:
        return True
    if func is Tensor.requires_grad_:
        return bool(kwargs.get("requires_grad", args[1] if len(args) > 1 else True))
    return getattr(func, "__self__", None) is Tensor.requires_grad and len(args) > 1 and bool(args[1])


def is_transformed() -> bool:
    """Whether ``torch.func`` is differentiating what is called now."""
    interpreters = torch._C._functorch.get_interpreter_stack() or []
    kinds = torch._C._functorch.TransformType
    return any(i.key() in (kinds.Grad, kinds.Jvp) for i in interpreters)


def functional_below_autograd(function: Callable[..., Result]) -> Callable[..., Result]:
    """A function of tensors in functional form, which autograd sees as it sees the function.

    Raises:
        TraceError: if the function writes into its first argument, the parameters, or calls a
            ``torch.autograd.Function``, whose backward pass need not be the derivative of its forward pass.
    """

    def functional(*arguments: Any) -> Result:
        with FunctionalTensorMode(), one_thread():
            wrapped = pytree.tree_map_only(Tensor, _wrap, arguments)
            result = function(*wrapped)
            if any(torch._functionalize_has_data_mutation(p.elem) for p in pytree.tree_leaves(wrapped[0])):
                raise TraceError("the model cannot be traced: it writes into its parameters")
            if has_own_functions(pytree.tree_leaves(result)):
                raise TraceError("the model cannot be traced: it calls a torch.autograd.Function")
            return pytree.tree_map_only(FunctionalTensor, _unwrap, result)

    return functional


def _wrap(tensor: Tensor) -> Tensor:
    wrapped = FunctionalTensor.to_functional(tensor)
    return wrapped.requires_grad_() if tensor.requires_grad else wrapped


def _unwrap(tensor: FunctionalTensor) -> Tensor:
    torch._sync(tensor)
    return torch._from_functional_tensor(tensor.elem)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run backward passes in this thread, under its modes."""
    with torch.autograd.set_multithreading_enabled(False):
        yield


def drop_aliases(graph: fx.Graph) -> None:
    """Remove the copies without a graph that autograd makes of what it saves for a backward pass.

    What the model itself detaches is marked.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
