"""The commands in docs/sweeps.md are accepted as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.S)
    for line in block.splitlines()
    if line.startswith("gnewton ")
]


# a configuration takes a quarter of a second to compose, so searches are shortened
SHORT = ["tune.trials=2"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--resume" not in c], ids=" ".join)
def test_a_documented_command_is_accepted(command, cli, monkeypatch, tmp_path):
    (tmp_path / "mine" / "space").mkdir(parents=True)
    (tmp_path / "mine" / "space" / "wide.yaml").write_text(re.search(r"```yaml\n(.*?)```", DOCUMENT, re.S)[1])
    monkeypatch.setattr("gnewton.sweep.launchers.cores", lambda: 8)
    if command[0] in ("sweep", "tune"):
        answer = cli([*command, *(SHORT if command[0] == "tune" else []), "--dry-run"])
        assert (answer.code, answer.err) == (0, "")


def test_every_flag_and_launcher_is_named():
    from gnewton.cli.choices import all_groups
    from gnewton.cli.completion import flags

    for flag in set(flags()) - {"--config-dir"}:
        assert flag in DOCUMENT
    for choice in all_groups()["launcher"]:
        assert f"`launcher={choice.name}`" in DOCUMENT
