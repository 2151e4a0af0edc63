"""What README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SWEEPS_PAGE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("gnewton ")
]


def test_there_are_commands_to_test() -> None:
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "train"], ids=" ".join)
def test_every_training_command_composes(command: list[str], cli) -> None:
    command = [word.partition(",")[0] for word in command if word != "--multirun"]
    if not {"--cfg", "--help"} & set(command):
        command = [*command, "--cfg", "job", "--resolve"]
    answer = cli(command)
    assert (answer.code, answer.err) == (0, "")


SWEEPS = [
    command
    for command in COMMANDS
    if command[0] in ("sweep", "tune") and shlex.join(command) not in SWEEPS_PAGE
]
"""Those that docs/sweeps.md does not show as well, where tests/sweep/test_documents.py tries them."""


@pytest.mark.parametrize("command", SWEEPS, ids=" ".join)
def test_every_sweep_is_accepted(command: list[str], cli) -> None:
    short = ["tune.trials=2"] if command[0] == "tune" else []
    answer = cli([*command, *short, "--dry-run"])
    assert (answer.code, answer.err) == (0, "")


def test_the_loop_of_ones_own_runs(capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(code, "README.md", "exec"), {})
    loss, rates = capsys.readouterr().out.split(maxsplit=1)
    assert 0 < float(loss) < 3
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    assert set(eval(rates)) == set(names)


def test_the_message_it_quotes_is_the_one_that_is_given(cli) -> None:
    (command, message) = re.findall(r"```console\n\$ gnewton (.*?)\n(.*?)\n```", README, re.S)[0]
    answer = cli(shlex.split(command))
    assert (answer.code, answer.err.strip()) == (2, message)


def test_every_page_it_links_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_make_target_it_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
