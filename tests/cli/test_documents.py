"""Every command in docs/configuration.md composes as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gnewton.cli.choices import config_groups

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.S)
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("gnewton ")
]


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_it_composes(command, cli, tmp_path):
    own = re.search(r"```yaml\n(.*?)```", DOCUMENT, re.S)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "tiny.yaml").write_text(own[1])
    if "--multirun" in command:  # composed by the sweeper: the first of each list stands for all
        command = [word.partition(",")[0] for word in command if word != "--multirun"]
    if not {"--cfg", "--help", "-sc"} & set(command):
        command = [*command, "--cfg", "job", "--resolve"]
    answer = cli(command)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out


def test_every_group_is_named():
    for group in config_groups():
        assert f"`{group}`" in DOCUMENT
