"""Shell completion: of the commands by ourselves, of the overrides of a run by Hydra."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from gnewton.cli import sweep, tune
from gnewton.cli.commands import COMMANDS, Parser
from gnewton.errors import InputError

if TYPE_CHECKING:
    from gnewton.experiment.overrides import Override

LINE = "COMP_LINE"

GROUPS = {"sweep": sweep.GROUPS, "tune": tune.GROUPS}
"""The groups of the commands themselves that take overrides of runs, beside ``train``."""


def complete(arguments: list[str]) -> int:
    """Answer the completion script that ``gnewton train -sc install=SHELL`` installs.

    The script hands over the whole line in COMP_LINE. Its first word after ``gnewton`` is a command; once
    that is typed, Hydra is asked about the rest as if it were the whole line.
    """
    from gnewton.cli.train import run

    line = os.environ.get(LINE, "")
    words = line.split()
    if LINE in os.environ:
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            prefix = words[1] if len(words) == 2 else ""
            print(" ".join(name for name in COMMANDS if name.startswith(prefix)))
            return 0
        if words[1] != "train" and words[1] not in GROUPS:
            return 0
        line = _without_imports(line)
        words = line.split()
        if words[1] in GROUPS:
            word = "" if line.endswith(" ") else words[-1]
            of_command = _of_command(words[1], words[2:], word)
            if of_command:
                print(" ".join(of_command))
                return 0
            before = _of_one_run(words[1], words[2:] if not word else words[2:-1])
            line = " ".join([*words[:2], *before, word])
        head, _, rest = line.partition(words[1])
        os.environ[LINE] = head + rest.lstrip()
    return run(arguments)


def _without_imports(line: str) -> str:
    """The line without its ``import=``, whose parts are loaded, unless they cannot be."""
    from gnewton.cli.commands import WORDS, with_imports

    imports = [word for word in line.split()[2:] if word.startswith(WORDS)]
    with suppress(InputError):
        with_imports(imports)
    for word in imports:
        if line.endswith(word):  # it is being typed
            return line
        line = line.replace(f"{word} ", "", 1)
    return line


def _of_command(command: str, words: list[str], word: str) -> list[str]:
    """What completes ``word`` to a flag of the command or to a choice or option of its groups."""
    from gnewton.cli.choices import COMMAND_GROUPS, all_groups

    if not word:
        return []
    candidates = flags()
    for group in GROUPS[command]:
        if word.startswith(f"{group}="):
            candidates += [f"{group}={choice.name}" for choice in all_groups()[group]]
        else:
            chosen = [override.value for override in _parsed(words) if override.key == group]
            options = _options(group, (chosen or [COMMAND_GROUPS[group].default])[-1] or "")
            candidates += [f"{group}=", *(f"{group}.{name}=" for name in options)]
    return [text for text in candidates if text.startswith(word)]


def _of_one_run(command: str, words: list[str]) -> list[str]:
    """The overrides of a single run: of several values the first, and none of the command itself."""
    first = [word.partition(",")[0] for word in words if "=" in word and "(" not in word]
    return [override.text for override in _parsed(first) if not override.is_within(*GROUPS[command])]


def _parsed(words: Sequence[str]) -> Iterator[Override]:
    from gnewton.experiment.overrides import Override

    for word in words:
        with suppress(InputError):
            yield Override.parse(word)


def flags() -> list[str]:
    """The flags of ``sweep`` and ``tune``; those of ``train`` are Hydra's."""
    parser = Parser(add_help=False)
    sweep.add_options(parser)
    return [text for action in parser._actions for text in action.option_strings]


def _options(group: str, choice: str) -> list[str]:
    """The options of a choice of a command's group; none for one that there is not."""
    from gnewton.cli.composer import Composer

    with suppress(InputError):
        config = Composer().command_config("completion", [group], list(_parsed([f"{group}={choice}"])))
        return [str(key) for key in config[group] if key != "name"]
    return []
