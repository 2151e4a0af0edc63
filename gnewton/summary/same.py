"""Whether two programs are the same, or differ in their numbers alone."""

from __future__ import annotations

from typing import Any

import torch

from gnewton.summary.graph import Program, Ref


def same_program(a: Program, b: Program) -> bool:
    """Whether two programs compute the same: every operation, number and constant."""
    return same_operations(a, b) and all(
        repr(x.args) == repr(y.args)
        and repr(x.kwargs) == repr(y.kwargs)
        and (x.constant is None or y.constant is None or _equal(x.constant, y.constant))
        for x, y in zip(a.steps, b.steps, strict=True)
    )


def same_operations(a: Program, b: Program) -> bool:
    """Whether two programs chain the same operations on values of the same shapes, whatever their numbers."""
    return (
        len(a.steps) == len(b.steps)
        and (a.parameters, a.inputs, a.loss) == (b.parameters, b.inputs, b.loss)
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


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two constants hold the same now; should one of them change later, it is noticed then."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    return torch.equal(a, b)
