"""Questions that a model's Python code asks about the values of tensors, and their answers.

Tracing knows shapes, not values, and stops at ``if mask.all():``. The model is then run once on its values,
every answer is written down, and tracing is given them in the same order. The trace holds while the answers
stay, which every summary finds out by :mod:`gnewton.summary.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


class Recorded(TorchFunctionMode):
    """Writes down the answers.

    Attributes:
        answers: question and answer, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[tuple[Any, Any]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in QUESTIONS:
            self.answers.append((func, result))
        return result


class Answered(TorchFunctionMode):
    """Gives the answers that were written down.

    Raises:
        LookupError: in the model's code, where it asks something else than it did then.
    """

    def __init__(self, answers: Sequence[tuple[Any, Any]]) -> None:
        super().__init__()
        self._answers = iter(answers)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in QUESTIONS:
            return func(*args, **(kwargs or {}))
        question, answer = next(self._answers, (None, None))
        if question is not func:
            raise LookupError("the model asks for other values of tensors than a moment ago")
        return answer
