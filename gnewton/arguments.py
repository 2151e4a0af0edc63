"""Checks of the library's arguments, whose errors are one line with argument, value and allowed values."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, ParamSpec, TypeVar, get_args, get_type_hints

from gnewton.errors import InputError
from gnewton.options import Rule, declaration, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


def check_number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> None:
    """Check for a finite number within bounds.

    Raises:
        InputError: for any other value.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (is_number and value > above and value >= at_least and value < below and value <= at_most):  # type: ignore[operator]
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
            if math.isfinite(bound)
        ]
        raise InputError(f"{name}={shown(value)}: must be a finite number {' and '.join(bounds)}".rstrip())


def check_whole(name: str, value: object, at_least: int, at_most: int | None = None) -> None:
    """Check for a whole number within bounds.

    Raises:
        InputError: for any other value.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (whole and value >= at_least and (at_most is None or value <= at_most)):  # type: ignore[operator]
        bounds = f">= {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise InputError(f"{name}={shown(value)}: must be an integer {bounds}")


def check_name(name: str, value: object, allowed: Collection[str]) -> None:
    """Check for one of the names in ``allowed``.

    Raises:
        InputError: for any other value.
    """
    if not isinstance(value, str) or value not in allowed:
        hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
        text = value if isinstance(value, str) else shown(value)
        raise InputError(f"{name}={text}: must be one of {', '.join(allowed)}{hint}")


def check_flag(name: str, value: object) -> None:
    """Check for True or False.

    Raises:
        InputError: for any other value.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}: must be True or False")


def check_options(recipe: type, /, **values: object) -> None:
    """Check arguments against the options of the same names.

    Args:
        recipe: the dataclass that declares them, see :func:`gnewton.options.option`.
        values: the arguments by name.

    Raises:
        InputError: for the first value of another type or out of range.
    """
    declared = _declared(recipe)
    for name, value in values.items():
        hint, rule = declared[name]
        if value is None and NoneType in get_args(hint):
            continue
        kind = next(iter(get_args(hint)), hint)
        if rule.choices:
            check_name(name, value, rule.choices)
        elif kind is bool:
            check_flag(name, value)
        elif kind is int and rule.at_least is not None:
            check_whole(name, value, int(rule.at_least), None if rule.at_most is None else int(rule.at_most))
        else:
            bounds = {side: getattr(rule, side) for side in ("above", "at_least", "below", "at_most")}
            check_number(name, value, **{side: bound for side, bound in bounds.items() if bound is not None})


@functools.cache
def _declared(recipe: type) -> dict[str, tuple[Any, Rule]]:
    """The type and the allowed values of each option."""
    hints = get_type_hints(recipe)
    return {entry.name: (hints[entry.name], declaration(entry).rule) for entry in fields(recipe)}


def check_kind(name: str, value: object, kind: type, example: str) -> None:
    """Check for an object of a class, or None.

    Raises:
        InputError: for any other value.
    """
    if value is not None and not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InputError(f"{name}={shown(value)}: must be {article} {kind.__name__}, such as {example}")


def check_function(name: str, value: object, signature: str) -> None:
    """Check for a function, or None.

    Raises:
        InputError: for any other value.
    """
    if value is not None and (isinstance(value, type) or not callable(value)):
        raise InputError(f"{name}={shown(value)}: must be a function {signature}")


def shown(value: object) -> str:
    """A value as messages show it: numbers and names as they are, anything else by its type."""
    if isinstance(value, str):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    return f"<class {value.__name__}>" if isinstance(value, type) else f"<{type(value).__name__}>"


def explained(**hints: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: a call with unknown or missing arguments raises a one-line InputError, not a TypeError.

    Args:
        hints: by argument, a hint for one that users expect in vain or forget.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except TypeError:
                misfit = _misfit(inspect.signature(function), args, kwargs, hints)
                if misfit is None:
                    raise
            raise InputError(f"{function.__qualname__.removesuffix('.__init__')}: {misfit}")

        return wrapper

    return decorate


def _misfit(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any], hints: Mapping[str, str]
) -> str | None:
    """Why arguments do not fit a signature; None where they do."""
    every = signature.parameters.values()
    names = [p.name for p in every if p.name != "self"]
    for name in kwargs:
        if name not in names:
            hint = f"; {hints[name]}" if name in hints else did_you_mean(name, names)
            return f"{name}={shown(kwargs[name])}: no such argument{hint}"
    positional = [p.name for p in every if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    by_place = positional[: len(args)]
    if len(args) > len(positional):
        places = [name for name in positional if name != "self"]
        return f"only {', '.join(places)} may be given by position; name the others, as in {names[-1]}=…"
    for name in by_place:
        if name in kwargs:
            return f"{name} is given twice, by position and by name"
    for p in every:
        if p.default is inspect.Parameter.empty and p.name not in (*by_place, *kwargs):
            return f"{p.name} is missing" + (f"; {hints[p.name]}" if p.name in hints else "")
    return None
