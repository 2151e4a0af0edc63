"""Writes docs/options.md, the table of all options: ``python -m scripts.options_page``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gnewton.cli.choices import all_groups
from gnewton.cli.composer import Composer
from gnewton.cli.option_help import DescribedOption, describe_options
from gnewton.experiment.places import config_folder
from gnewton.experiment.schema import Settings

PAGE = Path(__file__).parents[1] / "docs" / "options.md"

_HEAD = """# Options

Written by `make docs-options` from the fields that declare the options; do not edit.
`gnewton train optimizer=adam --help` shows the options of a choice on the command line.

The default is that of the choice; `experiment=` and the tuned settings may change it. *Allowed* gives the
bounds, for each entry of a list. Flags: *resumable* options may change when a run is resumed. *Samples*
options count samples and have no effect without data. *Course* options decide the length, the schedule or the
reports of a run and nothing at a single point, so `gnewton inspect` and `gnewton rates` refuse them. *Path*
options take `~`. *Output* options decide where results go and are no part of the identity of a run.
"""

_ROW = "| {} | {} | {} | {} | {} | {} |"


def page() -> str:
    """The page as Markdown: a section for each group, and a table for each choice.

    Of choices with the same options, the first that starts from no other one has all of them, and the others
    have those with another default or help.
    """
    groups = {group: choices for group, choices in all_groups().items() if group != "experiment"}
    composed = Composer().choices((group, choice.name) for group in groups for choice in groups[group])
    config = OmegaConf.structured(Settings)
    top = [option for option in describe_options(config) if option.name not in groups]
    lines = [_HEAD, "## Options of no group", "", *_table(top)]
    for group in sorted(groups):
        lines += ["", f"## `{group}`"]
        first: dict[tuple[str, ...], tuple[str, list[DescribedOption]]] = {}
        for choice in sorted(
            groups[group], key=lambda choice: not _starts_from_its_recipe(group, choice.name)
        ):
            prefix = f"logger.{choice.name}." if group == "logger" else f"{group.replace('/', '.')}."
            options = list(describe_options(composed[group, choice.name], prefix))
            lines += ["", f"### `{group}={choice.name}`", "", f"{choice.description}."]
            parts = [f"`{group}/{name}={part}`" for name, part in _parts(composed[group, choice.name])]
            lines[-1] += f" With {', '.join(parts)}." if parts else ""
            model, known = first.setdefault(tuple(option.name for option in options), (choice.name, []))
            if known:
                lines[-1] += f" The options of `{group}={model}`" + (", but:" if options != known else ".")
            lines += (
                ["", *_table(new)] if (new := [option for option in options if option not in known]) else []
            )
            known += options if not known else []
    return "\n".join(lines) + "\n"


def _parts(node: DictConfig) -> Iterator[tuple[str, str]]:
    """The groups within a choice, with what it chooses in them."""
    for name in node:
        part = node._get_node(name)
        if isinstance(part, DictConfig) and "name" in part:
            yield str(name), str(part.name)


def _starts_from_its_recipe(group: str, choice: str) -> bool:
    return "/schema/" in (config_folder() / group / f"{choice}.yaml").read_text(encoding="utf-8")


def _table(options: list[DescribedOption]) -> Iterator[str]:
    yield _ROW.format("Option", "Type", "Default", "Allowed", "Flags", "Meaning")
    yield "|---|---|---|---|---|---|"
    for option in options:
        flags = ", ".join(option.flags)
        default = "must be given" if option.value == "???" else f"`{option.value}`"
        cells = (f"`{option.name}`", option.type, default, option.allowed, flags, option.help)
        yield _ROW.format(*(cell.replace("|", "\\|") for cell in cells))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
