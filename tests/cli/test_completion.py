"""Shell completion, called as the shell's script calls it, and once by a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gnewton.cli.commands import COMMANDS


@pytest.fixture
def words(cli, monkeypatch):
    def completed(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        answer = cli(["-sc", "query=bash"])
        assert answer.code == 0
        assert answer.err == ""
        return answer.out.split()

    return completed


def test_commands(words):
    assert words("gnewton ") == list(COMMANDS)
    assert words("gnewton tr") == ["train"]
    assert words("gnewton x") == []


def test_groups_options_and_choices(words):
    assert "optimizer" in words("gnewton train opt")
    assert words("gnewton train optimizer=sg") == ["optimizer=sgd"]
    assert set(words("gnewton train partition=bl")) == {"partition=blocks"}
    assert words("gnewton train trainer.epo") == ["trainer.epochs="]
    assert words("gnewton train optimizer=sgd optimizer.mom") == ["optimizer.momentum="]


def test_a_sweep_completes_runs_launchers_and_flags(words):
    assert words("gnewton sweep optimizer=sg") == ["optimizer=sgd"]
    assert words("gnewton sweep seed=0,1 trainer.epo") == ["trainer.epochs="]
    assert words("gnewton sweep launcher=s") == ["launcher=slurm"]
    assert words("gnewton sweep launcher.j") == ["launcher.jobs="]
    assert words("gnewton sweep launcher=slurm launcher.part") == ["launcher.partition="]
    assert words("gnewton sweep --re") == ["--resume", "--retries"]


def test_other_commands_have_no_completion(words):
    assert words("gnewton data fe") == []


def test_the_script_names_the_command(cli):
    answer = cli(["train", "-sc", "install=bash"])
    assert answer.code == 0
    assert "COMP_LINE" in answer.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_in_a_real_bash(tmp_path):
    folder = Path(sys.executable).parent
    assert (folder / "gnewton").exists(), "the console script belongs to every installation"
    script = """
eval "$(gnewton train -sc install=bash)"
complete -p gnewton
COMP_LINE='gnewton train optimizer=lb'; COMP_POINT=${#COMP_LINE}
COMP_WORDS=(gnewton train optimizer = lb); COMP_CWORD=4
function_name=$(complete -p gnewton | sed -E 's/.*-F ([^ ]+).*/\\1/')
$function_name
echo "reply: ${COMPREPLY[*]}"
"""
    ended = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        timeout=120,
    )
    assert "lbfgs" in ended.stdout.splitlines()[-1], ended.stdout + ended.stderr
