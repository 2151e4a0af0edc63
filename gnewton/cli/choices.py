"""The configuration groups and their choices, read from the YAML files alone: no Hydra, no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gnewton.experiment.places import config_folder
from gnewton.registry import OWN_PARTS

_INTERNAL = ("hydra", "tuned")  # never chosen on the command line


@dataclass(frozen=True)
class CommandGroup:
    """A group of ``gnewton sweep`` or ``gnewton tune`` itself.

    Attributes:
        default: its default choice.
        recipes: the registry of its recipes, or the only one, as ``module:name``.
        fixed: whether a search that is resumed keeps it.
    """

    default: str
    recipes: str
    fixed: bool = False


COMMAND_GROUPS = {
    "launcher": CommandGroup("local", "gnewton.sweep.launchers:LAUNCHERS"),
    "tune": CommandGroup("default", "gnewton.tuning.search:TuneSettings", fixed=True),
    "space": CommandGroup("default", "gnewton.tuning.space:SpaceSettings", fixed=True),
}
"""The groups of ``gnewton sweep`` and ``gnewton tune`` themselves."""


@dataclass(frozen=True)
class Choice:
    """One file of a group: its name and the description in its first line."""

    name: str
    description: str


def config_groups() -> dict[str, list[Choice]]:
    """Every group of a run, such as ``model`` or ``optimizer/schedule``, with its choices, sorted."""
    return {group: choices for group, choices in all_groups().items() if group not in COMMAND_GROUPS}


def all_groups() -> dict[str, list[Choice]]:
    """The groups of a run and those in :data:`COMMAND_GROUPS`, with the parts of the user's own."""
    root = config_folder()
    groups: dict[str, list[Choice]] = {}
    for path in sorted(root.rglob("*.yaml")):
        group = path.parent.relative_to(root).as_posix()
        if group != "." and group.split("/")[0] not in _INTERNAL:
            groups.setdefault(group, []).append(Choice(path.stem, _first_comment(path)))
    for part in OWN_PARTS:
        groups[part.registry.kind].append(Choice(part.name, part.description))
    return groups


def describe_choices(*, details: bool = False) -> str:
    """The groups and choices as text; with ``details``, one line of description for each choice."""
    defaults = _defaults(config_folder())
    return "\n".join(
        _detailed(group, choices, defaults.get(group))
        if details
        else _brief(group, choices, defaults.get(group))
        for group, choices in config_groups().items()
    )


def describe_group(group: str) -> str:
    """The choices of one of :data:`COMMAND_GROUPS`, a line for each."""
    return _detailed(group, all_groups()[group], COMMAND_GROUPS[group].default)


def _brief(group: str, choices: list[Choice], default: str | None) -> str:
    names = ", ".join(_marked(choice.name, default) for choice in choices)
    return textwrap.fill(
        names, width=100, initial_indent=f"  {group:<20} ", subsequent_indent=" " * 23, break_on_hyphens=False
    )


def _detailed(group: str, choices: list[Choice], default: str | None) -> str:
    width = max(len(choice.name) for choice in choices) + 1
    lines = [f"  {_marked(choice.name, default):<{width}}  {choice.description}" for choice in choices]
    return "\n".join([f"{group}=", *lines, ""])


def _marked(name: str, default: str | None) -> str:
    return f"{name}*" if name == default else name


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").strip()
    return ""


def _defaults(root: Path) -> dict[str, str]:
    """The default choice of each group, from the defaults lists of config.yaml and of the chosen files."""
    defaults: dict[str, str] = {}
    pending = [("", root / "config.yaml")]
    while pending:
        parent, path = pending.pop()
        for key, value in _entries(path):
            group = f"{parent}/{key}" if parent else key
            defaults[group] = value
            if (root / group / f"{value}.yaml").is_file():
                pending.append((group, root / group / f"{value}.yaml"))
    return defaults


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    for entry in content.get("defaults", []):
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, str) and " " not in key and "@" not in key:
                yield key, value
