"""Errors where torch, or a backward pass of the user, has no second derivatives."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from gnewton.summary.result import SummaryError

_GAPS = (
    re.compile(r"derivative for '?(?:aten::)?_?(\w+?)(?:_backward)?'? is not implemented"),
    re.compile(r"double backwards? on (\w+) (?:is )?not supported"),
)

ONCE = (
    "summary: the model or the loss uses a torch.autograd.Function whose backward pass is marked "
    "once_differentiable and has no derivatives; write that pass in differentiable operations, without the "
    "mark"
)


@contextlib.contextmanager
def named_gaps() -> Iterator[None]:
    """Within the block, torch's error about a derivative that it lacks names the operation and the result."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        match = next((found for gap in _GAPS if (found := gap.search(str(error)))), None)
        if match is None:
            raise
        raise SummaryError(
            f"summary: torch has no second derivatives of {match[1]}, so no engine has the Hessian of this "
            "loss; use another operation in its place"
        ) from error


def check_graph(results: Sequence[Tensor | None]) -> bool:
    """Check that results can be differentiated twice.

    The derivative of a backward pass that is marked ``once_differentiable`` comes out as zero: torch's node
    that would raise an error lies where derivatives with respect to chosen tensors do not pass.

    Returns:
        Whether functions of the user are behind the results. If not, none is behind their derivatives.

    Raises:
        SummaryError: if there is such a pass behind a result.
    """
    own = False
    for node in _nodes(results):
        function = getattr(node, "_forward_cls", None)
        own = own or function is not None
        if node.name() == "torch::autograd::Error" or _is_marked(function):
            raise SummaryError(ONCE)
    return own


def has_own_functions(results: Sequence[Any]) -> bool:
    """Whether a ``torch.autograd.Function`` of the user is behind a result."""
    return any(getattr(node, "_forward_cls", None) is not None for node in _nodes(results))


def _nodes(results: Sequence[Tensor | None]) -> Iterator[Any]:
    """The nodes of autograd behind results."""
    waiting: list[Any] = [x.grad_fn for x in results if x is not None and x.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def _is_marked(function: Any) -> bool:
    """Whether the backward pass of a ``torch.autograd.Function`` is marked ``once_differentiable``."""
    if function is None:
        return False
    backward = function.backward if function.vjp is Function.vjp else function.vjp
    while backward is not None:
        if getattr(backward, "__code__", None) is _MARK:
            return True
        backward = getattr(backward, "__wrapped__", None)  # below other decorators
    return False


_MARK = once_differentiable(lambda ctx: None).__code__
