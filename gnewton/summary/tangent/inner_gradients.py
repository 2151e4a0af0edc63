"""Models with autograd inside: physics-informed networks, gradient penalties, inner steps, own functions.

``torch.autograd.grad`` acts above the dispatcher: its backward pass calls ordinary operations. The functional
form of an ordinary trace lies above autograd, so such a call finds no graph. Models that make one are traced
with the functional form below autograd, where the operations of forward and backward passes arrive alike. The
trace then holds both, and derivatives go through both.

Models that call a ``torch.autograd.Function`` are traced in the same way. Their trace has the operations of
its forward pass. The derivatives of these are those of the model as long as its backward pass is right, which
every summary checks (:mod:`gnewton.summary.tangent.trace_cache`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.utils import _pytree as pytree

from gnewton.summary.second_derivatives import has_own_functions
from gnewton.summary.tangent.program import TraceError

aten = torch.ops.aten
_torch: Any = torch  # parts of it are not annotated


class GradientsInside(Exception):
    """The model uses autograd inside, and is traced as if it did not."""


def is_own_function(error: Exception) -> bool:
    """Whether an error is torch's, about a ``torch.autograd.Function`` in functional form."""
    return isinstance(error, RuntimeError) and any(
        part in str(error) for part in ("autograd.Function", "custom_function_call")
    )


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


class BelowAutograd:
    """A function of tensors in functional form, which autograd sees as it sees the function.

    Attributes:
        own_functions: whether the results have passed through a ``torch.autograd.Function``.

    Raises:
        TraceError: in a call that writes into its first argument, the parameters.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.own_functions = False

    def __call__(self, *arguments: Any) -> Any:
        """The result, of tensors that are no longer seen by autograd."""
        with FunctionalTensorMode(), one_thread():
            wrapped = pytree.tree_map_only(Tensor, _wrap, arguments)
            result = self._function(*wrapped)
            if any(_torch._functionalize_has_data_mutation(p.elem) for p in pytree.tree_leaves(wrapped[0])):
                raise TraceError("the model cannot be traced: it writes into its parameters")
            self.own_functions = has_own_functions(pytree.tree_leaves(result))
            return pytree.tree_map_only(FunctionalTensor, _unwrap, result)


def _wrap(tensor: Tensor) -> Tensor:
    wrapped = FunctionalTensor.to_functional(tensor)
    return wrapped.requires_grad_() if tensor.requires_grad else wrapped


def _unwrap(tensor: FunctionalTensor) -> Tensor:
    _torch._sync(tensor)
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
