"""Overrides, ``option=value`` and ``group=choice``: what a command line sets, each parsed once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from gnewton.errors import InputError
from gnewton.experiment.schema import declared_options, options_with
from gnewton.options import Role, quoted

_QUOTED = r"'(?:\\.|[^'])*'|\"(?:\\.|[^\"])*\""


@dataclass(frozen=True)
class Override:
    """One override.

    Attributes:
        text: the override in Hydra's grammar: as typed, with quotes around a text that needs them.
        prefix: ``+``, ``++`` or ``~``; empty for none.
        key: the option or group, such as ``trainer.epochs`` or ``optimizer/schedule``.
        package: where the choice of a group goes, which follows ``@``; empty for none.
        value: what follows the equals sign; None without one.
    """

    text: str
    prefix: str
    key: str
    package: str
    value: str | None

    @classmethod
    def parse(cls, text: str) -> Override:
        """Split ``text`` into its parts.

        Raises:
            InputError: if it names no option.
        """
        head, equals, value = text.partition("=")
        name = head.lstrip("+~")
        key, _, package = name.partition("@")
        if not key:
            where = "before the =" if equals else "in it"
            raise InputError(f"{text}: not of the form option=value (there is no option {where})")
        return cls(text, head[: len(head) - len(name)], key, package, value if equals else None)

    @property
    def option(self) -> str:
        """The key with dots: of a group, the part of the configuration that it chooses."""
        return self.key.replace("/", ".")

    def is_within(self, *names: str) -> bool:
        """Whether it sets one of ``names``, written with dots, or a part of one."""
        return any(self.option == name or self.option.startswith(f"{name}.") for name in names)

    def values(self) -> list[str]:
        """The values of a sweep without their quotes, a single one otherwise; a comma in quotes is none."""
        parts = re.findall(rf"{_QUOTED}|[^,]+", self.value or "")
        return [re.sub(r"^(['\"])(.*)\1$", r"\2", part.strip()).replace("\\'", "'") for part in parts]

    def empty_value(self) -> str | None:
        """Where a comma has no value beside it, as in ``seed=0,1,``; None for nowhere."""
        value = re.sub(_QUOTED, "quoted", self.value or "")
        if re.search(r",\s*(?:$|[\])}])", value):
            return "after the last comma"
        if re.search(r"(?:^|[\[({])\s*,", value):
            return "before the first comma"
        return "between two commas" if re.search(r",\s*,", value) else None

    def special_character(self) -> str | None:
        """The first character of the value that Hydra takes only in quotes."""
        match = re.search(r"[^\w\s/\-+.$%*@?|:\\,\[\]{}()'\"]|[^\x00-\x7f]|=", self.value or "")
        return match[0] if match else None


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """The overrides of a command line, with ``~`` expanded in paths and quotes around texts that need them.

    A shell takes off the quotes that are written for it, and completes file names without any, so
    ``name=a=b`` and ``resume=outputs/größe/RUN`` arrive without those that Hydra's grammar asks for.

    Raises:
        InputError: for one that names no option, or the home folder of a user that there is not.
    """
    return [_in_grammar(Override.parse(text)) for text in texts]


def expand_home(text: str) -> str:
    """A path, which may be in quotes, with ``~`` replaced by the home folder.

    Raises:
        InputError: if the path begins with ``~NAME`` and there is no such user.
    """
    match = re.fullmatch(r"(['\"]?)(~[\w.-]*(?:/.*)?)", text)
    if match is None:
        return text
    try:
        return match[1] + str(Path(match[2].rstrip("'\"")).expanduser()) + match[1]
    except RuntimeError:
        raise InputError(f"{text}: there is no such user") from None


def _in_grammar(override: Override) -> Override:
    if override.value is None or override.key not in _texts():
        return override
    if override.key in _paths() and "~" in override.value:
        try:
            override = _with_value(override, ",".join(map(expand_home, override.value.split(","))))
        except InputError as error:
            raise InputError(f"{override.key}={error}") from None
    parts = (override.value or "").split(",")
    truth = any(part.strip() in ("true", "false") for part in parts)  # of a text they are words
    if (not truth and _hydra_takes(override.text)) or not all(part.strip() for part in parts):
        return override
    return _with_value(override, ",".join(part if _in_quotes(part) else quoted(part) for part in parts))


def _in_quotes(text: str) -> bool:
    return re.fullmatch(_QUOTED, text.strip()) is not None


def _with_value(override: Override, value: str) -> Override:
    return Override.parse(f"{override.text.partition('=')[0]}={value}")


def _hydra_takes(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    return True


def forget_options() -> None:
    """Read the options of all choices anew when they are next needed, since a choice came or went."""
    for cached in (declared_options, _texts, _paths):
        cached.cache_clear()


@cache
def _texts() -> frozenset[str]:
    """The options that take any text."""
    text = [option.name for option in declared_options() if option.type in (str, str | None)]
    return _paths() | frozenset(text)


@cache
def _paths() -> frozenset[str]:
    return frozenset(options_with(Role.PLACE | Role.PATH))
