"""Several runs of ``gnewton train`` in the processes of one ``torchrun``, which are slow to start.

Usage: torchrun … -m tests.training.launched COMMANDS.json CODES.json; COMMANDS holds [port, arguments] pairs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from gnewton.cli.main import main


def train_all(commands: list[tuple[int, list[str]]]) -> list[int]:
    """The exit code of each command."""
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # it keeps the keys of the group before
    codes = []
    for port, arguments in commands:
        os.environ["MASTER_PORT"] = str(port)
        codes.append(main(["train", *arguments]))
    return codes


if __name__ == "__main__":
    result = train_all(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    if os.environ["RANK"] == "0":
        Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
