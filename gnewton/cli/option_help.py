"""The options of a choice in words, from the fields that declare them: for ``--help`` and docs/options.md."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from gnewton.cli.choices import config_groups
from gnewton.cli.composer import Composer
from gnewton.experiment.overrides import Override, parse_overrides
from gnewton.experiment.schema import Settings
from gnewton.loggers import LOGGERS
from gnewton.options import Declaration, Role, declaration, show

_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "mapping"}

_FLAGS = {
    Role.RESUMABLE: "resumable",
    Role.SAMPLES: "samples",
    Role.COURSE: "course",
    Role.PLACE: "path",
    Role.PATH: "path",
    Role.OUTPUT: "output",
}
"""What docs/options.md calls the roles."""


@dataclass(frozen=True)
class DescribedOption:
    """One option of a composed part.

    Attributes:
        name: its full name.
        value: its value, as on the command line; ``???`` where it must be given.
        type: the kind of its values in words, with null where that is allowed.
        allowed: the bounds or the names that restrict it; empty for none.
        flags: its roles and those of the parts that hold it.
        help: what it means.
    """

    name: str
    value: str
    type: str
    allowed: str
    flags: tuple[str, ...]
    help: str


def describe_options(node: DictConfig, prefix: str = "", role: Role = Role.NONE) -> Iterator[DescribedOption]:
    """The options of a composed part, without its label and the groups within it.

    Args:
        node: the part, typed by its recipe.
        prefix: of the names, such as ``optimizer.``.
        role: of the parts that hold it.
    """
    kind = OmegaConf.get_type(node)
    assert isinstance(kind, type)
    hints = get_type_hints(kind)
    for entry in fields(kind):  # type: ignore[arg-type]
        declared = declaration(entry)
        hint, child = hints[entry.name], node._get_node(entry.name)
        if is_dataclass(hint):
            if "name" not in {part.name for part in fields(hint)}:  # with a name, it is a group of its own
                assert isinstance(child, DictConfig)
                yield from describe_options(child, f"{prefix}{entry.name}.", role | declared.role)
        elif entry.name != "name" or kind is Settings:
            yield _described(f"{prefix}{entry.name}", _raw(child), hint, declared, role)


def help_on_options(words: Sequence[str], groups: Sequence[str] = ()) -> str | None:
    """The options of the parts that the overrides among ``words`` touch; None without overrides.

    Args:
        words: the arguments of a command.
        groups: the groups of the command itself.

    Raises:
        InputError: for an override that is wrong.
    """
    overrides = parse_overrides([word for word in words if "=" in word and not word.startswith("-")])
    if not overrides:
        return None
    composer = Composer()
    of_runs, of_command = composer.split(overrides, groups)
    sections = []
    if of_runs:
        config = composer.compose(of_runs)
        for group in _groups_of(of_runs):
            if group == LOGGERS.kind:  # any number of them
                loggers = config.logger.items()
                sections += [_section(group, node, f"logger.{name}.") for name, node in loggers]
            elif isinstance(node := OmegaConf.select(config, group.replace("/", ".")), DictConfig):
                sections.append(_section(group, node, f"{group.replace('/', '.')}."))
    if of_command:
        chosen = composer.command_config("help", groups, of_command)
        touched = {override.option.partition(".")[0] for override in of_command}
        sections += [_section(group, chosen[group], f"{group}.") for group in groups if group in touched]
    return "\n".join(section for section in sections if section)


def _groups_of(overrides: Sequence[Override]) -> list[str]:
    """The groups that hold the options of some overrides; of a chosen group, also those within it."""
    groups, touched = list(config_groups()), set()
    for override in overrides:
        if override.key == "experiment":
            return groups
        holding = [group for group in groups if override.is_within(group.replace("/", "."))]
        touched |= {group for group in groups if group.startswith(f"{override.key}/")}
        touched |= {max(holding, key=len)} if holding else set()
    return [group for group in groups if group in touched]


def help_on_settings() -> str:
    """The options of a run that belong to no part."""
    config = OmegaConf.structured(Settings)
    parts = {entry.name for entry in fields(Settings) if entry.name in config_groups()}
    return "\n".join(_line(option) for option in describe_options(config) if option.name not in parts)


def _section(group: str, node: DictConfig, prefix: str) -> str:
    lines = [_line(option) for option in describe_options(node, prefix)]
    return "\n".join([f"{group}={node.name}", *(lines or ["  no options"]), ""])


def _line(option: DescribedOption) -> str:
    limits = f"{option.type} {option.allowed}".rstrip().removeprefix("name ")
    text = f"{option.help}  [{limits}]"
    width = max(80, min(120, shutil.get_terminal_size((110, 24)).columns))
    head = f"  {option.name}={option.value}"
    margin = " " * 40
    wrapped = textwrap.fill(
        text, width=width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )
    return f"{head:<39} {wrapped[40:]}" if len(head) < 40 else f"{head}\n{wrapped}"


def _raw(node: Any) -> Any:
    """The value of a node, interpolations as they are written."""
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node._value()


def _described(name: str, value: Any, hint: Any, declared: Declaration, role: Role) -> DescribedOption:
    optional = NoneType in get_args(hint)
    kind = next(part for part in get_args(hint) if part is not NoneType) if optional else hint
    entries = get_args(kind)[-1] if get_origin(kind) is list else None
    word = f"list of {_plural(entries)}" if entries is not None else _TYPES.get(kind, "mapping")
    if declared.rule.choices:
        word = "name"
    if optional or hint is Any:
        word += " or null"
    roles = declared.role | role
    flags = tuple(dict.fromkeys(text for flag, text in _FLAGS.items() if flag in roles))
    return DescribedOption(name, show(value), word, declared.rule.limits(), flags, declared.help)


def _plural(kind: Any) -> str:
    return "lists" if get_origin(kind) is list else f"{_TYPES.get(kind, 'mapping')}s"
