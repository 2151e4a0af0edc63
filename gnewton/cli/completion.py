"""Shell completion: of the commands by ourselves, of a command's overrides by Hydra."""

from __future__ import annotations

import os

from gnewton.cli.commands import COMMANDS

LINE = "COMP_LINE"


def complete(arguments: list[str]) -> int:
    """Answer the completion script that ``gnewton train -sc install=SHELL`` installs.

    The script hands over the whole line in COMP_LINE. Its first word after ``gnewton`` is a command; once
    that is typed, Hydra is asked about the rest as if it were the whole line.
    """
    from gnewton.cli.train import run

    words = os.environ.get(LINE, "").split()
    typing_command = len(words) < 2 or (len(words) == 2 and not os.environ[LINE].endswith(" "))
    if LINE in os.environ and typing_command:
        prefix = words[1] if len(words) == 2 else ""
        print(" ".join(name for name in COMMANDS if name.startswith(prefix)))
        return 0
    if LINE in os.environ:
        if words[1] != "train":
            return 0
        head, _, rest = os.environ[LINE].partition(words[1])
        os.environ[LINE] = head + rest.lstrip()
    return run(arguments)
