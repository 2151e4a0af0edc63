"""Hydra's and OmegaConf's exceptions in the user's terms: the option, the value, what is allowed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)

from gnewton.cli.choices import all_groups, config_groups
from gnewton.errors import InputError
from gnewton.experiment.overrides import Override
from gnewton.experiment.schema import REGISTRIES, declared_options
from gnewton.options import did_you_mean, listing, nearest, present_name, quoted

REFUSALS = (HydraException, OmegaConfBaseException, ValueError, OverflowError, AssertionError)
"""What composing raises: on long numbers Hydra lets Python's own errors through."""

Overrides = Mapping[str, Override]
"""The overrides of a command line by their key."""

_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "a text"}


@contextmanager
def explained(overrides: Sequence[Override]) -> Iterator[None]:
    """Within the block, what Hydra raises becomes one :class:`InputError`, see :func:`explain`."""
    try:
        yield
    except InputError:
        raise
    except REFUSALS as error:
        raise explain(error, overrides) from error


def explain(error: Exception, overrides: Sequence[Override]) -> InputError:
    """One :class:`InputError` that names the option, its value and what is allowed.

    Args:
        error: what composing or reading the configuration raised.
        overrides: those of the command line, for the values as they were given.
    """
    typed = {override.key: override for override in overrides}
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, OverrideParseException):
        return InputError(_unparsed(Override.parse(str(error.override)), str(error.message)))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return InputError(_no_such_choice(error))
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and cause.full_key:
        return InputError(_no_such_option(cause, typed))
    if isinstance(cause, ValidationError) and cause.full_key:
        return InputError(_wrong_type(cause, typed))
    if isinstance(error, OverflowError) or "integer string conversion" in str(error):
        return InputError(_too_long(str(error), typed))
    deleted = [override for override in overrides if override.prefix == "~"]
    if deleted:
        return InputError(
            f"{deleted[0].text}: every group and option is needed; choose another value instead"
        )
    no_choice = _not_a_choice(typed)
    if no_choice is not None:
        return InputError(no_choice)
    if isinstance(cause, InterpolationResolutionError):
        return InputError(_unresolved(cause, typed))
    match = re.match(r"Could not override '([^']+)'", str(error))
    if match:
        return InputError(_no_such_group(match[1], typed))
    match = re.search(r"Ambiguous value for argument '([^']+)'", str(error))
    if match:
        key = Override.parse(match[1]).key
        return InputError(
            f"{match[1]}: one value is allowed; for a list write {key}=[…], to sweep add --multirun, "
            f"and a text that holds a comma goes in quotes twice: '{key}=\"…\"'"
        )
    match = re.match(r"In '([^']+)': .*\bfull_key: (\S+)", str(error), re.DOTALL)
    if match:
        return InputError(_lacking(match[1], match[2], typed))
    return InputError(_first_line(str(error) or str(cause)))


def _text(typed: Overrides, key: str) -> str:
    """The override of an option or group as it was given, or its name where it was not."""
    return typed[key].text if key in typed else key


def _unparsed(override: Override, message: str) -> str:
    """An override that Hydra's grammar refuses."""
    where = override.empty_value()
    if where is not None:
        return f"{override.text}: there is no value {where}; give one, or leave the comma out"
    special = override.special_character()
    if override.value is not None and special not in (None, "="):
        text = shlex.quote(f"{override.text.partition('=')[0]}={quoted(override.value)}")
        return (
            f"{override.text}: not of the form option=value; "
            f"where {special!r} belongs to a text, write {text}"
        )
    reason = re.sub(r" expecting (?:\{.*|.{40,})", "", _first_line(message))
    return f"{override.text}: not of the form option=value ({reason})"


def _lacking(file: str, full_key: str, typed: Overrides) -> str:
    """A file of the configuration sets an option of a choice that another choice has replaced."""
    group = full_key.rpartition(".")[0].replace(".", "/")
    return f"{_text(typed, group)}: it has no {full_key}, which configs/{file}.yaml sets"


def _too_long(message: str, typed: Overrides) -> str:
    """A whole number that no float, or not even an int, can hold."""
    match = re.search(r"full_key: (\S+)", message)
    long = [key for key, override in typed.items() if re.search(r"\d{300}", override.text)]
    keys = [match[1]] if match else long
    values = {key: override.value or "" for key, override in typed.items()}
    numbers = ", ".join(f"{key}={values.get(key, '')[:20]}…" for key in keys)
    return f"{numbers}: the number has too many digits"


def _no_such_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    names = list(error.options or [known.name for known in all_groups().get(group, [])])
    if not names:
        return f"{group or 'config'}={choice}: no such choice"
    return f"{group}={choice}: must be one of {listing(names, 40)}{did_you_mean(choice, names)}"


def _not_a_choice(typed: Overrides) -> str | None:
    """The first group whose value is not the name of a choice."""
    groups = config_groups()
    for key, override in typed.items():
        value = override.value or ""
        if key in groups and (value == "null" or not re.fullmatch(r"[A-Za-z_][\w.,-]*", value)):
            names = [choice.name for choice in groups[key]]
            return f"{override.text}: must be one of {listing(names, 40)}"
    return None


def _no_such_group(group: str, typed: Overrides) -> str:
    known = list(config_groups())
    text = _text(typed, group)
    if group in known:
        parent, _, part = group.rpartition("/")
        return f"{text}: no such group, the chosen {parent} has no {part}"
    return f"{text}: no such group{did_you_mean(group, known)} (groups: {listing(known)})"


def _unresolved(cause: OmegaConfBaseException, typed: Overrides) -> str:
    message = _first_line(str(cause))
    key = cause.full_key or next((key for key, override in typed.items() if "${" in override.text), None)
    return f"{_text(typed, str(key))}: {message}" if key else message


def _no_such_option(cause: OmegaConfBaseException, typed: Overrides) -> str:
    full_key = str(cause.full_key)
    parent, _, key = full_key.rpartition(".")
    known = [str(name) for name in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []
    candidates = known if parent else sorted({*known, *config_groups(), "import"} - {"hydra", "imports"})
    hint = did_you_mean(key, candidates)
    if not parent and nearest(key, [*candidates, *(_last(name) for name in _full_names())]) not in candidates:
        hint = ""  # an option of a part is nearer
    if parent and hint:
        hint = hint.replace("mean '", f"mean '{parent}.")
    hint = hint or _elsewhere(parent, key, cause.parent_node)
    hint = _renamed(cause.parent_node, parent, key) or f"{hint}{_unchosen(parent, key)}{_owners(parent, key)}"
    where = (
        f" (options of {parent}: {listing(known, 20)})"
        if parent
        else f" (options: {listing(candidates, 20)})"
    )
    text = next(
        (override.text for key, override in typed.items() if f"{key}.".startswith(f"{full_key}.")), full_key
    )
    return f"{text}: no such option{hint}{where}"


def _renamed(node: Container | None, parent: str, key: str) -> str:
    """A hint at the present name of an option of this node that was renamed."""
    name = present_name(OmegaConf.get_type(node), key) if isinstance(node, DictConfig) else None
    return f"; it has been renamed to {parent}.{name}" if name else ""


_OTHER_WORDS = {"learning_rate": "lr", "batchsize": "batch_size", "steps": "max_steps", "epoch": "epochs"}
"""What options are called in other programs."""


def _elsewhere(parent: str, key: str, node: Container | None) -> str:
    """A hint at options of that name in other parts of a run, those nearest to the top first.

    Args:
        parent, key: the option that does not exist.
        node: where it was looked for, in the configuration. Options of the choices made come before others;
            where only others have the option, the hint says which.
    """
    names = [name for name in _full_names() if name.rpartition(".")[0] != parent]
    near = _near({_last(name) for name in names}, parent, key)
    matches = sorted((name for name in names if _last(name) in near), key=lambda n: n.count("."))
    if not matches:
        return ""
    root = node._get_root() if node is not None else None
    chosen = [name for name in matches if _holds(root, name)]
    owners = "" if chosen else _owners(*matches[0].rsplit(".", 1)).replace("; it", " It", 1)
    groups = config_groups()
    shown = [slashed if (slashed := name.replace(".", "/")) in groups else name for name in chosen or matches]
    return f"; did you mean {' or '.join(map(repr, shown[:3]))}?{owners}"


def _near(known: set[str], parent: str, key: str) -> set[str]:
    """Last parts of the names that a wrong one may stand for; one word of several is enough."""
    if key in known:
        return {key}
    if key in _OTHER_WORDS:
        return {_OTHER_WORDS[key]}
    if parent:
        return set()
    return {name for name in known if key in name.split("_")} or {nearest(key, known) or ""}


def _holds(node: object, name: str) -> bool:
    """Whether the configuration has an option of this full name, with the choices made."""
    for part in name.split("."):
        if not isinstance(node, DictConfig) or part not in list(node):
            return False
        node = node._get_node(part)
    return True


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _full_names() -> list[str]:
    """The full names of the options of all parts of a run, whatever is chosen, without labels and loggers."""
    names = dict.fromkeys(option.name for option in declared_options())
    return [
        name
        for name in names
        if "." in name and not name.startswith("logger.") and not name.endswith(".name")
    ]


def _unchosen(group: str, key: str) -> str:
    """A hint where the key is a choice that has not been made, and keeps its options under its name."""
    known = any(choice.name == key for choice in config_groups().get(group, []))
    return f"; choose it first, with {group}={key}" if known else ""


def _owners(parent: str, key: str) -> str:
    """The other choices of the same group that have the option."""
    for registry in REGISTRIES:
        if registry.kind.replace("/", ".") == parent:
            owners = [
                name for name, recipe in registry.items() if key in {entry.name for entry in fields(recipe)}
            ]  # type: ignore[arg-type]
            if owners:
                return f"; it belongs to {registry.kind}={' or '.join(owners)}"
    return ""


def _wrong_type(cause: OmegaConfBaseException, typed: Overrides) -> str:
    message = _first_line(str(cause))
    full_key = re.sub(r"\[\d+\]$", "", str(cause.full_key))
    text = _text(typed, full_key)
    match = re.search(r"could not be converted to (\w+)", message)
    if match:
        return f"{text}: must be {_TYPES.get(match[1], match[1])}"
    if "is not a valid bool" in message:
        return f"{text}: must be {_TYPES['Boolean']}"
    if "not optional" in message or "is not Optional" in message or "NoneType is not a subclass" in message:
        where = " within the list" if full_key != str(cause.full_key) else ""
        return f"{text}: must have a value, null is not allowed{where}"
    group = full_key.replace(".", "/")
    if group in config_groups():
        return f"{text}: a group; choose one of it with {group}=NAME"
    match = re.search(r"is not a subclass of (\w+)", message)
    if match and match[1] not in _TYPES:
        return f"{text}: holds several options; set one of them with {full_key}.OPTION=…"
    if "list" in message.lower():
        return f"{text}: must be a list, such as {full_key}=[…]"
    return f"{text}: {message}"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "invalid"
