"""Shell completion: of the commands by ourselves, of the overrides of a run by Hydra."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gnewton.cli.commands import COMMANDS

LINE = "COMP_LINE"

_FLAGS = ("--resume", "--retries", "--fail-fast", "--dry-run", "--config-dir")

FLAGS = {"sweep": _FLAGS, "tune": _FLAGS}
"""The flags of the commands that take the overrides of runs, beside ``train``, whose flags are Hydra's."""

GROUPS = {"sweep": ("launcher",), "tune": ("launcher", "tune", "space")}
"""The groups that these commands have for themselves."""


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
        if words[1] != "train" and words[1] not in FLAGS:
            return 0
        if words[1] in FLAGS:
            word = "" if line.endswith(" ") else words[-1]
            own = _own(words[1], words[2:], word)
            if own:
                print(" ".join(own))
                return 0
            before = _of_one_run(words[1], words[2:] if not word else words[2:-1])
            line = " ".join([*words[:2], *before, word])
        head, _, rest = line.partition(words[1])
        os.environ[LINE] = head + rest.lstrip()
    return run(arguments)


def _own(command: str, words: list[str], word: str) -> list[str]:
    """What completes ``word`` to a flag of the command or to something of a group of its own."""
    from gnewton.cli.choices import OWN_GROUPS, all_groups
    from gnewton.experiment.locate import config_folder

    if not word:
        return []
    found = list(FLAGS[command])
    for group in GROUPS[command]:
        if word.startswith(f"{group}="):
            found += [f"{group}={choice.name}" for choice in all_groups()[group]]
        else:
            chosen = [text.partition("=")[2] for text in words if text.startswith(f"{group}=")]
            path = config_folder() / group / f"{(chosen or [OWN_GROUPS[group]])[-1]}.yaml"
            options = _options(path) if path.is_file() else []
            found += [f"{group}=", *(f"{group}.{name}=" for name in options)]
    return [text for text in found if text.startswith(word)]


def _of_one_run(command: str, words: list[str]) -> list[str]:
    """Overrides that Hydra can compose: of several values the first, and those of the command left out."""
    first = [word.partition(",")[0] for word in words if "=" in word and "(" not in word]
    return [word for word in first if re.split(r"[.=]", word)[0] not in GROUPS[command]]


def _options(path: Path) -> list[str]:
    from omegaconf import OmegaConf

    return [str(key) for key in OmegaConf.load(path) if key not in ("defaults", "name")]
