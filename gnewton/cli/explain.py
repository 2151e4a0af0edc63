"""Hydra's and OmegaConf's exceptions in the user's terms: the option, the value, what is allowed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)

from gnewton.cli.choices import all_groups, config_groups
from gnewton.cli.overrides import empty_value, special_character
from gnewton.errors import InputError
from gnewton.experiment.schema import REGISTRIES
from gnewton.options import did_you_mean, listing, nearest, quoted
from gnewton.training.settings import TrainerSettings

REFUSALS = (HydraException, OmegaConfBaseException, ValueError, OverflowError, AssertionError)
"""What composing raises: Hydra lets Python's own errors through, on long numbers and nameless overrides."""

_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "a text"}


@contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """Composes within: what Hydra raises becomes one :class:`InputError`, see :func:`explain`."""
    try:
        yield
    except InputError:
        raise
    except REFUSALS as error:
        raise explain(error, overrides) from error


def explain(error: Exception, arguments: Iterable[str]) -> InputError:
    """One :class:`InputError` that names the option, its value and what is allowed.

    Args:
        error: what composing or reading the configuration raised.
        arguments: the command line, for the values as they were given.
    """
    arguments = list(arguments)
    overrides = {_key(argument): argument for argument in arguments if not argument.startswith("-")}
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, OverrideParseException):
        return InputError(_unparsed(str(error.override), str(error.message)))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return InputError(_no_such_choice(error))
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and cause.full_key:
        return InputError(_no_such_option(cause, overrides))
    if isinstance(cause, ValidationError) and cause.full_key:
        return InputError(_wrong_type(cause, overrides))
    if isinstance(error, OverflowError) or "integer string conversion" in str(error):
        return InputError(_too_long(str(error), overrides))
    deleted = [argument for argument in arguments if argument.startswith("~")]
    if deleted:
        return InputError(f"{deleted[0]}: every group and option is needed; choose another value instead")
    no_choice = _not_a_choice(overrides)
    if no_choice is not None:
        return InputError(no_choice)
    if isinstance(cause, InterpolationResolutionError):
        return InputError(_unresolved(cause, overrides))
    match = re.match(r"Could not override '([^']+)'", str(error))
    if match:
        return InputError(_no_such_group(match[1], overrides))
    match = re.search(r"Ambiguous value for argument '([^']+)'", str(error))
    if match:
        key = _key(match[1])
        return InputError(
            f"{match[1]}: one value is allowed; for a list write {key}=[…], to sweep add --multirun, "
            f"and a text that holds a comma goes in quotes twice: '{key}=\"…\"'"
        )
    match = re.match(r"In '([^']+)': .*\bfull_key: (\S+)", str(error), re.DOTALL)
    if match:
        return InputError(_lacking(match[1], match[2], overrides))
    return InputError(_first_line(str(error) or str(cause)))


def _unparsed(override: str, message: str) -> str:
    """What Hydra's grammar does not take."""
    where = empty_value(override)
    if where is not None:
        return f"{override}: there is no value {where}; give one, or leave the comma out"
    key, equals, value = override.partition("=")
    special = special_character(override)
    if key and equals and special not in (None, "="):
        text = shlex.quote(f"{key}={quoted(value)}")
        return f"{override}: not of the form option=value; where {special!r} belongs to a text, write {text}"
    reason = re.sub(r" expecting (?:\{.*|.{40,})", "", _first_line(message))
    return f"{override}: not of the form option=value ({reason})"


def _lacking(file: str, full_key: str, overrides: dict[str, str]) -> str:
    """A file of the configuration sets an option of a choice that is no longer made."""
    group = full_key.rpartition(".")[0].replace(".", "/")
    return f"{overrides.get(group, group)}: it has no {full_key}, which configs/{file}.yaml sets"


def _too_long(message: str, overrides: dict[str, str]) -> str:
    """A whole number that no float, or not even an int, can hold."""
    match = re.search(r"full_key: (\S+)", message)
    keys = [match[1]] if match else [key for key, text in overrides.items() if re.search(r"\d{300}", text)]
    shown = ", ".join(f"{key}={overrides.get(key, key).partition('=')[2][:20]}…" for key in keys)
    return f"{shown}: the number has too many digits"


def _no_such_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    names = list(error.options or [known.name for known in all_groups().get(group, [])])
    if not names:
        return f"{group or 'config'}={choice}: no such choice"
    return f"{group}={choice}: must be one of {listing(names, 40)}{did_you_mean(choice, names)}"


def _not_a_choice(overrides: dict[str, str]) -> str | None:
    """The first group that is given something else than the name of one choice."""
    for key, argument in overrides.items():
        value = argument.partition("=")[2]
        if not key:
            return f"{argument}: not of the form option=value (there is no option before the =)"
        if key in config_groups() and (value == "null" or not re.fullmatch(r"[A-Za-z_][\w.,-]*", value)):
            names = [choice.name for choice in config_groups()[key]]
            return f"{argument}: must be one of {listing(names, 40)}"
    return None


def _no_such_group(group: str, overrides: dict[str, str]) -> str:
    known = list(config_groups())
    given = overrides.get(group, group)
    if group in known:
        parent, _, part = group.rpartition("/")
        return f"{given}: no such group, the chosen {parent} has no {part}"
    return f"{given}: no such group{did_you_mean(group, known)} (groups: {listing(known)})"


def _unresolved(cause: OmegaConfBaseException, overrides: dict[str, str]) -> str:
    message = _first_line(str(cause))
    key = cause.full_key or next((key for key, text in overrides.items() if "${" in text), None)
    return f"{overrides.get(str(key), key)}: {message}" if key else message


def _no_such_option(cause: OmegaConfBaseException, overrides: dict[str, str]) -> str:
    full_key = str(cause.full_key)
    parent, _, key = full_key.rpartition(".")
    known = [str(name) for name in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []
    candidates = known if parent else sorted({*known, *config_groups()} - {"hydra"})
    hint = did_you_mean(key, candidates)
    if parent and hint:
        hint = hint.replace("mean '", f"mean '{parent}.")
    hint = hint or _elsewhere(parent, key)
    where = (
        f" (options of {parent}: {listing(known, 20)})"
        if parent
        else f" (options: {listing(candidates, 20)})"
    )
    given = next(
        (text for name, text in overrides.items() if f"{name}.".startswith(f"{full_key}.")), full_key
    )
    return f"{given}: no such option{hint}{_unchosen(parent, key)}{_owners(parent, key)}{where}"


_OTHER_WORDS = {"learning_rate": "lr", "batchsize": "batch_size", "steps": "max_steps", "epoch": "epochs"}
"""What options are called elsewhere."""


def _elsewhere(parent: str, key: str) -> str:
    """Where another part of a run has an option of that name, say which; those nearest to the top first."""
    names = [name for name in _full_names() if name.rpartition(".")[0] != parent]
    last = {name.rpartition(".")[2] for name in names}
    near = key if key in last else _OTHER_WORDS.get(key) or (nearest(key, last) if not parent else None)
    found = sorted((name for name in names if name.rpartition(".")[2] == near), key=lambda n: n.count("."))
    return f"; did you mean {' or '.join(repr(name) for name in found[:3])}?" if found else ""


def _full_names() -> list[str]:
    """The options of all parts of a run by their full name, whatever is chosen."""
    kinds = [("trainer", TrainerSettings)] + [
        (registry.kind.replace("/", "."), recipe)
        for registry in REGISTRIES
        if registry.kind != "logger"
        for _, recipe in registry.items()
    ]
    found: dict[str, None] = {}
    while kinds:
        where, kind = kinds.pop(0)
        hints = get_type_hints(kind)
        for entry in fields(kind):  # type: ignore[arg-type]
            if entry.name != "name":
                found[f"{where}.{entry.name}"] = None
            if is_dataclass(hints[entry.name]):
                kinds.append((f"{where}.{entry.name}", hints[entry.name]))
    return list(found)


def _unchosen(group: str, key: str) -> str:
    """Where the option belongs to a choice that stands under its own name, and was not made, say so."""
    known = any(choice.name == key for choice in config_groups().get(group, []))
    return f"; choose it first, with {group}={key}" if known else ""


def _owners(parent: str, key: str) -> str:
    """Where another choice of the same group does know the option, say which."""
    for registry in REGISTRIES:
        if registry.kind.replace("/", ".") == parent:
            owners = [
                name for name, recipe in registry.items() if key in {entry.name for entry in fields(recipe)}
            ]  # type: ignore[arg-type]
            if owners:
                return f"; it belongs to {registry.kind}={' or '.join(owners)}"
    return ""


def _wrong_type(cause: OmegaConfBaseException, overrides: dict[str, str]) -> str:
    message = _first_line(str(cause))
    full_key = re.sub(r"\[\d+\]$", "", str(cause.full_key))
    given = overrides.get(full_key, full_key)
    match = re.search(r"could not be converted to (\w+)", message)
    if match:
        return f"{given}: must be {_TYPES.get(match[1], match[1])}"
    if "is not a valid bool" in message:
        return f"{given}: must be {_TYPES['Boolean']}"
    if "not optional" in message or "is not Optional" in message or "NoneType is not a subclass" in message:
        where = " within the list" if full_key != str(cause.full_key) else ""
        return f"{given}: must have a value, null is not allowed{where}"
    group = full_key.replace(".", "/")
    if group in config_groups():
        return f"{given}: a group; choose one of it with {group}=NAME"
    match = re.search(r"is not a subclass of (\w+)", message)
    if match and match[1] not in _TYPES:
        return f"{given}: holds several options; set one of them with {full_key}.OPTION=…"
    if "list" in message.lower():
        return f"{given}: must be a list, such as {full_key}=[…]"
    return f"{given}: {message}"


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "invalid"
