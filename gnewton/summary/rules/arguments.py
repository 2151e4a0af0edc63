"""Finding and replacing the moving arguments of an operation, wherever they stand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gnewton.summary.graph import Ref
from gnewton.summary.rules.table import Passed
from gnewton.summary.site import Site
from gnewton.summary.tangents import Rows, Tangent


def moving_arguments(site: Site) -> list[tuple[tuple[Any, ...], Tensor, Tangent]]:
    """Where the moving tensors stand among the arguments, their values and their tangents."""
    found: list[tuple[tuple[Any, ...], Tensor, Tangent]] = []
    for key, argument, value in [
        *((i, a, v) for i, (a, v) in enumerate(zip(site.step.args, site.args, strict=True))),
        *((k, a, site.kwargs[k]) for k, a in site.step.kwargs.items()),
    ]:
        entries: list[tuple[tuple[Any, ...], Any, Any]] = [((key,), argument, value)]
        if type(argument) is list:
            entries = [((key, i), a, v) for i, (a, v) in enumerate(zip(argument, value, strict=True))]
        for path, a, v in entries:
            tangent = site.tangent_of(a)
            if type(a) is Ref and tangent is not None:
                found.append((path, v, tangent))
    return found


def call_with(site: Site, paths: list[tuple[Any, ...]], values: tuple[Tensor, ...]) -> Any:
    """The operation with the tensors at ``paths`` replaced."""
    args: list[Any] = [list(a) if isinstance(a, list) else a for a in site.args]
    kwargs: dict[str, Any] = dict(site.kwargs)
    for path, value in zip(paths, values, strict=True):
        place: Any = kwargs if isinstance(path[0], str) else args
        if len(path) == 2:
            place[path[0]][path[1]] = value
        else:
            place[path[0]] = value
    return site.step.op(*args, **kwargs)


def outgoing(
    site: Site, several: bool, smooth: list[int], groups: tuple[int, ...], first: Any, second: Any
) -> Passed:
    """The tangents of a value, or of those of several values that are listed in ``smooth``."""
    made: list[Tangent | None] = [None] * (len(site.value) if several else 1)
    for j, i in enumerate(smooth):
        bent = None if second is None else Rows(groups, [second[j]], owned=True)
        made[i] = Tangent(Rows(groups, [first[j]], owned=True), bent)
    return made if several else made[0]
