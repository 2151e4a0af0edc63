"""Typed options with allowed values and roles, of which recipes are made.

A recipe is a keyword-only dataclass whose fields are declared with :func:`option`: default, allowed values,
help and role, beside the type. Nothing else defines an option: the schema of the configuration, ``--help``,
docs/options.md, the checks of the constructors and those of a resumed run read the field. The YAML file of a
choice gives only the values that differ. Every value is checked before any work starts, wherever it comes
from.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from enum import Flag, auto
from operator import attrgetter
from pathlib import Path
from typing import Any

from gnewton.errors import InputError

_DECLARATION = "gnewton"

ABSENT: Any = object()
"""Stands for no value, where None is one."""


class Role(Flag):
    """What an option is to a run, beside its value."""

    NONE = 0
    PLACE = auto()
    """It says where a file or folder is, which may move: the run stays the same."""
    PATH = auto()
    """Its value may be a path, and is kept in another form or not at all."""
    OUTPUT = auto()
    """It decides where results go; the run is the same."""
    LABEL = auto()
    """It names the run, and decides no number."""
    RESUMABLE = auto()
    """It may change when a run is resumed: it decides how far the run goes, what is written when and what
    ends it early, and not the steps of a sound run."""
    COURSE = auto()
    """It decides the length, the schedule or the reports of training, and nothing at a single point."""
    SAMPLES = auto()
    """It counts samples, and has no effect where there are none."""
    BATCHES = auto()
    """It decides the batches of the training steps, and nothing where no step is made."""
    RATES = auto()
    """It is a learning rate, which ``gnewton rates`` suggests."""
    BUDGET = auto()
    """It decides how long a run may go on; all trials of a search agree in it."""
    VIEW = auto()
    """It decides how a point of a run is looked at, and may be chosen anew for it."""


@dataclass(frozen=True)
class Rule:
    """The allowed values of one option; for a list, of each of its entries. Numbers must be finite too."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    length: int | None = None

    def admits(self, value: object) -> bool:
        """Whether ``value`` (None: the option is switched off) is allowed."""
        if value is None:
            return True
        if isinstance(value, (list, tuple)):
            right_length = self.length is None or len(value) == self.length
            return right_length and all(self.admits(entry) for entry in value)
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            (isinstance(value, int) or math.isfinite(value))  # a whole number may be too large for isfinite
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def hint(self, value: object) -> str:
        """What to write instead of a text that is not a choice; empty where nothing is near."""
        if not isinstance(value, str):
            return ""
        return did_you_mean(value, self.choices)

    def describe(self, value: object = 0.0) -> str:
        """The allowed values in words: whole numbers if ``value`` is one."""
        if isinstance(value, (list, tuple)):
            entry = self.describe(value[0] if value else 0.0)
            return (
                f"a list of {self.length} entries, each {entry}"
                if self.length is not None
                else f"a list, each {entry}"
            )
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = "a whole number" if isinstance(value, int) else "a finite number"
        return f"{kind} {self.limits()}".rstrip()

    def limits(self) -> str:
        """The bounds or the choices alone; empty for none."""
        if self.choices:
            return ", ".join(self.choices)
        bounds = ((">", self.above), (">=", self.at_least), ("<", self.below), ("<=", self.at_most))
        return " and ".join(
            f"{sign} {int(bound) if float(bound).is_integer() else bound}"
            for sign, bound in bounds
            if bound is not None
        )


@dataclass(frozen=True)
class Declaration:
    """What :func:`option` says about a field, beside its default.

    Attributes:
        rule: the allowed values.
        role: what the option is to a run.
        help: what it means, in one line.
        formerly: a name that it had before; None for none.
        before: the value in runs that were configured before the option existed; ABSENT: it has none.
    """

    rule: Rule = Rule()
    role: Role = Role.NONE
    help: str = ""
    formerly: str | None = None
    before: Any = ABSENT


def option(
    default: Any = ABSENT,
    *,
    help: str = "",
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: Iterable[str] = (),
    length: int | None = None,
    role: Role = Role.NONE,
    formerly: str | None = None,
    before: Any = ABSENT,
) -> Any:
    """Declare a field of a recipe: all there is to say about an option but its name and its type.

    Args:
        default: the value in a new run, unless the YAML file of a choice has another; for a part that holds
            several options, its dataclass. ABSENT: it must be given.
        help: what the option means, in one line, with the meaning of null and of each choice.
        above, at_least, below, at_most, choices, length: what is allowed, see :class:`Rule`.
        role: what it is to a run, see :class:`Role`; of a group or a part, that of all its options.
        formerly: a name that it had before; it is refused with a hint.
        before: the value in runs that were configured before the option existed. ABSENT: the option has
            always been there.
    """
    rule = Rule(above, at_least, below, at_most, tuple(choices), length)
    return _field(default, Declaration(rule, role, help, formerly, before))


def option_of(recipe: type, name: str, default: Any = ABSENT, *, help: str = "") -> Any:
    """Declare a field like the option ``name`` of another recipe, perhaps with another default or help."""
    (entry,) = (entry for entry in fields(recipe) if entry.name == name)
    declared = declaration(entry)
    return _field(
        default_of(entry) if default is ABSENT else default, replace(declared, help=help or declared.help)
    )


def _field(default: Any, declared: Declaration) -> Any:
    metadata = {_DECLARATION: declared}
    if default is ABSENT:
        return field(metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def declaration(entry: Field[Any]) -> Declaration:
    """What a field of a recipe was declared with."""
    declared: Declaration = entry.metadata.get(_DECLARATION, Declaration())
    return declared


def default_of(entry: Field[Any]) -> Any:
    """The default of a field, a new object where it can be changed in place; ABSENT for none."""
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return ABSENT if entry.default is MISSING else entry.default


def present_name(recipe: object, name: str) -> str | None:
    """What the option of a recipe is called now that was called ``name`` before; None if there is none."""
    if not is_dataclass(recipe):
        return None
    return next((e.name for e in fields(recipe) if declaration(e).formerly == name), None)


def violations(settings: object, path: str = "") -> Iterator[str]:
    """Yield one line per option of ``settings``, nested ones included, whose value is not allowed.

    A recipe may add checks that tie several options together in a method ``conflicts()`` that yields pairs
    (option name, message).
    """
    for entry in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, entry.name)
        where = f"{path}.{entry.name}" if path else entry.name
        rule = declaration(entry).rule
        if not rule.admits(value):
            yield f"{where}={show(value)}: must be {rule.describe(value)}{rule.hint(value)}"
        elif is_dataclass(value):
            yield from violations(value, where)
        elif isinstance(value, dict):
            for key, member in value.items():
                if is_dataclass(member):
                    yield from violations(member, f"{where}.{key}")
    conflicts = getattr(settings, "conflicts", None)
    if conflicts is not None:
        for name, message in conflicts():
            where = f"{path}.{name}" if path else name
            yield f"{where}={show(attrgetter(name)(settings))}: {message}"


def validate(settings: object, path: str = "") -> None:
    """Raise one :class:`InputError` that lists every violation of ``settings``."""
    problems = list(violations(settings, path))
    if problems:
        raise InputError("\n".join(problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``known``, or an empty string."""
    near = nearest(word, known)
    return f"; did you mean '{near}'?" if near else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The entry of ``known`` closest to ``word`` by spelling, in any case; None where nothing is close."""
    folded = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def listing(names: Sequence[str], limit: int = 12) -> str:
    """Names joined for a message; of a long list only the first ones, and how many more there are."""
    first = ", ".join(names[:limit])
    return first if len(names) <= limit else f"{first}, … ({len(names) - limit} more)"


def show(value: object) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(show(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{show(entry)}" for key, entry in value.items()) + "}"
    return str(value)


def quoted(text: str) -> str:
    """A text as a value on the command line, in quotes where Hydra's grammar needs them."""
    plain = re.fullmatch(r"(?:[A-Za-z_]|\.{0,2}/)[A-Za-z0-9_./+%-]*", text)
    if plain and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    # a backslash counts only before a quote, where it is halved
    escaped = re.sub(r'(\\*)"', r"\1\1\"", re.sub(r"(\\+)$", r"\1\1", text))
    return f'"{escaped}"'


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, with ``~`` at its beginning for the home folder.

    ``./~x`` is a file of that name in the current folder, and so is ``~x`` where there is no user x.
    """
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path takes ./~x for the home folder of x
