"""Evaluating a model as if it had not been: what its Python code leaves behind is put back."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

from torch import nn

from gnewton.summary.problem import Problem, untouched


@contextlib.contextmanager
def undisturbed(problem: Problem) -> Iterator[None]:
    """Restore random streams and the attributes of every module on leaving, however it is left.

    The streams are those of torch, of Python's ``random`` and of NumPy. Attributes are put back by identity:
    a counter, a cache, a stored activation; what is changed inside a list or a dictionary stays changed.
    Attention runs by differentiable kernels only, gradients are on.
    """
    modules = list(_modules(problem))
    before = [dict(vars(module)) for module in modules]
    try:
        with restored_streams(problem):
            yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            _restore(vars(module), attributes)


@contextlib.contextmanager
def restored_streams(problem: Problem) -> Iterator[None]:
    """Restore the random streams alone, as :func:`undisturbed` does."""
    stream = random.getstate()
    numpy = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    try:
        with untouched(problem.device()):
            yield
    finally:
        random.setstate(stream)
        if numpy is not None:
            numpy.random.set_state(legacy)


def _restore(now: dict[str, object], before: dict[str, object]) -> None:
    if len(now) > len(before) or now.keys() != before.keys():
        for name in now.keys() - before.keys():
            del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _modules(problem: Problem) -> Iterator[nn.Module]:
    yield from problem.model.modules()
    if isinstance(problem.loss_fn, nn.Module):
        yield from problem.loss_fn.modules()
