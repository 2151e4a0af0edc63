"""Overrides as people type them, made into what Hydra's grammar takes, before it sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from gnewton.cli.choices import config_groups
from gnewton.errors import InputError
from gnewton.experiment.resume import key_of, saved_config
from gnewton.experiment.schema import REGISTRIES, Settings
from gnewton.options import is_place, quoted
from gnewton.runfiles import CONFIG_FILE

_PATHS = ("resume", "optimizer.rates")
"""Options that name a file or folder, and are not kept as a place of the run."""

_WITHOUT_EFFECT = ("hydra.run", "hydra.sweep", "hydra.output_subdir", "hydra.job.chdir")

_OF_A_RUN = ("model", "data", "partition", "optimizer")


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``~`` expanded in paths, and texts in quotes where the grammar asks for them.

    A shell takes the quotes off that are written for it, and completes names without any, so
    ``name=a=b`` and ``resume=outputs/größe/RUN`` arrive without those that Hydra would want.
    """
    return [_prepared(argument) for argument in arguments]


def require_effect(arguments: Sequence[str]) -> None:
    """Refuse options of Hydra that move the outputs of its own programs: runs make their own folder.

    Raises:
        InputError: naming the option to give instead.
    """
    for argument in arguments:
        key = key_of(argument)
        if "=" in argument and any(key == name or key.startswith(f"{name}.") for name in _WITHOUT_EFFECT):
            raise InputError(f"{argument}: has no effect, a run makes its folder under output_root")


def with_choices_of(folder: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides for a run that there is, with the choices of its groups that their options belong to.

    ``data.path=FILE`` belongs to ``data=npz``, which the run has chosen already.

    Raises:
        InputError: if it is no run folder.
    """
    keys = [key_of(override) for override in overrides]
    groups = [group for group in _OF_A_RUN if any(key.startswith(f"{group}.") for key in keys)]
    groups = [group for group in groups if group not in keys]
    if not groups:
        return list(overrides)
    config = saved_config(folder, f"resume={folder}")
    known = {group: {choice.name for choice in choices} for group, choices in config_groups().items()}
    names = {group: str(config[group].name) for group in groups}
    chosen = [f"{group}={name}" for group, name in names.items() if name in known[group]]
    return [*chosen, *overrides]


def for_resumed_run(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``gnewton train``; where they continue a run, see :func:`with_choices_of`."""
    value = next((text.partition("=")[2] for text in arguments if key_of(text) == "resume"), "null")
    first = _values(value)[0] if value not in ("", "null") else ""
    folder = Path(first).expanduser()
    if not first or not (folder / CONFIG_FILE).is_file():
        return list(arguments)
    return with_choices_of(folder, arguments)


def empty_value(override: str) -> str | None:
    """Where a comma of an override has no value beside it, as in ``seed=0,1,``; None: nowhere."""
    value = re.sub(r"'(?:\\.|[^'])*'|\"(?:\\.|[^\"])*\"", "quoted", override.partition("=")[2])
    if re.search(r",\s*(?:$|[\])}])", value):
        return "after the last comma"
    if re.search(r"(?:^|[\[({])\s*,", value):
        return "before the first comma"
    return "between two commas" if re.search(r",\s*,", value) else None


def special_character(override: str) -> str | None:
    """The first character that a value must be quoted for."""
    return next(
        iter(re.findall(r"[^\w\s/\-+.$%*@?|:\\,\[\]{}()'\"]|[^\x00-\x7f]|=", override.partition("=")[2])),
        None,
    )


def _prepared(argument: str) -> str:
    key, equals, value = argument.partition("=")
    name = key_of(argument)
    if argument.startswith("--") and value.startswith("~"):  # no shell expands it there
        return f"{key}={_expanded(value)}"
    if argument.startswith("-") or not equals or name not in _texts():
        return argument
    if name in _paths() and "~" in value:
        value = ",".join(_expanded(part) for part in value.split(","))
        argument = f"{key}={value}"
    if _is_override(argument):
        return argument
    parts = value.split(",")
    if not all(part.strip() for part in parts):
        return argument
    return f"{key}={','.join(quoted(part) for part in parts)}"


def _expanded(text: str) -> str:
    match = re.fullmatch(r"(['\"]?)(~[\w.-]*(?:/.*)?)", text)
    if match is None:
        return text
    try:
        return match[1] + str(Path(match[2].rstrip("'\"")).expanduser()) + match[1]
    except RuntimeError:  # there is no such user
        return text


def _values(value: str) -> list[str]:
    """The values of a sweep without their quotes; commas within quotes stay."""
    parts = re.findall(r"'(?:\\.|[^'])*'|\"(?:\\.|[^\"])*\"|[^,]+", value)
    return [re.sub(r"^(['\"])(.*)\1$", r"\2", part.strip()).replace("\\'", "'") for part in parts] or [value]


def _is_override(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


@cache
def _texts() -> frozenset[str]:
    """The options whose value is any text."""
    return frozenset((*_PATHS, *_declared(places_only=False)))


@cache
def _paths() -> frozenset[str]:
    return frozenset((*_PATHS, *_declared(places_only=True)))


def _declared(*, places_only: bool) -> list[str]:
    kinds: list[tuple[str, type]] = [("", Settings)]
    for registry in REGISTRIES:
        for name, recipe in registry.items():
            where = (
                f"{registry.kind}.{name}" if registry.kind == "logger" else registry.kind.replace("/", ".")
            )
            kinds.append((f"{where}.", recipe))
    return [
        f"{where}{entry.name}"
        for where, kind in kinds
        if is_dataclass(kind)
        for entry in fields(kind)
        if (is_place(entry) if places_only else _is_text(kind, entry.name))
    ]


def _is_text(kind: type, name: str) -> bool:
    hint = get_type_hints(kind).get(name)
    return hint is str or hint == (str | None)
