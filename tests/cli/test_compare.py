"""``gnewton compare`` from the command line: what it prints, writes and refuses, and its exit codes."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import SMALL, SMALL_BASELINE, loaded_by
from tests.report.builders import ENVIRONMENT, GPU, falling, grouped_newton, write_run
from tests.report.sweeps import write_sweep

ROOT = Path(__file__).parents[2]

DOCUMENTED = [
    shlex.split(line, comments=True)[1:]
    for name in ("README.md", "docs/compare.md", "docs/configuration.md")
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S)
    for line in block.splitlines()
    if line.startswith("gnewton compare ")
]


@pytest.mark.parametrize("command", sorted({tuple(command) for command in DOCUMENTED}), ids=" ".join)
def test_documented_commands_work(command, cli, no_images, tmp_path):
    write_sweep(tmp_path / "outputs")
    answer = cli(command)
    assert (answer.code, answer.err) == (0, "")
    assert "grouped_newton" in answer.out
    if "--html" in command:
        assert (tmp_path / "outputs" / "comparison" / "report.html").is_file()


def test_there_are_documented_commands():
    assert len(DOCUMENTED) >= 7


def test_every_file_is_documented(cli, no_images, tmp_path):
    write_sweep(tmp_path)
    cli(["compare", "digits", "--html", "--target", "validation_loss=0.5"])
    document = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    for path in (tmp_path / "digits" / "comparison").iterdir():
        assert f"`{path.name}`" in document or f"`{path.stem.replace('grouped_newton', 'SETUP')}`" in document


def test_real_runs_from_end_to_end(run, cli, tmp_path):
    for seed in (0, 1):
        target = ["trainer.target.metric=train_loss", "trainer.target.value=100", f"seed={seed}"]
        run([*SMALL_BASELINE, "optimizer=sgd", *target])
        run([*SMALL, "optimizer=grouped_newton", "optimizer.period=2", *target])
    answer = cli(["compare", ".", "--html"])
    assert (answer.code, answer.err) == (0, "")
    assert "To the target: train loss ≤ 100" in answer.out
    assert "grouped_newton   2 of 2" in answer.out
    expected = ["runs.csv", "setups.csv", "means.csv", "tables.md", "report.html"]
    plots = ["progress_epochs", "progress_seconds", "rates_grouped_newton", "profile"]
    expected += [f"{name}.{kind}" for name in plots for kind in ("png", "svg")]
    assert {path.name for path in (tmp_path / "comparison").iterdir()} == set(expected)
    assert answer.out.splitlines()[-1].startswith("13 files in comparison: runs.csv, ")
    assert cli(["compare", ".", "--no-plots"]).code == 0  # its own output is no run


def test_a_target_can_be_set(cli, tmp_path):
    write_sweep(tmp_path)
    answer = cli(["compare", "digits", "--no-plots", "--target", "validation_loss=0.5"])
    assert answer.code == 0
    lines = [line.split() for line in answer.out.splitlines()]
    assert ["sgd", "lr=1", "0", "of", "3", "missed", "missed", "missed"] in lines


@pytest.mark.parametrize(("style", "start"), [("markdown", "# Comparison\n"), ("csv", "problem,setup,")])
def test_formats(style, start, cli, tmp_path):
    write_sweep(tmp_path)
    answer = cli(["compare", "digits", "--no-plots", "--format", style])
    assert answer.code == 0
    assert answer.out.startswith(start)
    if style == "csv":
        table = pd.read_csv(io.StringIO(answer.out))
        assert answer.out == (tmp_path / "digits" / "comparison" / "setups.csv").read_text()
        assert table["runs"].tolist() == [3] * 4
    else:
        assert answer.out == (tmp_path / "digits" / "comparison" / "tables.md").read_text()


def test_the_output_folder_can_be_chosen(cli, tmp_path):
    write_sweep(tmp_path)
    assert cli(["compare", "digits", "--no-plots", "-o", "new/place"]).code == 0
    assert (tmp_path / "new" / "place" / "tables.md").is_file()
    assert not (tmp_path / "digits" / "comparison").exists()


def test_several_folders(cli, tmp_path):
    write_run(tmp_path, "a/one", rows=falling([1.0]))
    write_run(tmp_path, "b/two", grouped_newton(), rows=falling([1.0]))
    answer = cli(["compare", "a", "b", "--no-plots"])
    assert answer.code == 0
    assert "grouped_newton" in answer.out
    assert (tmp_path / "a" / "comparison" / "runs.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "compare: the following arguments are required: DIR; see gnewton compare --help"),
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: there is no run folder in it or below"),
        (["runs", "--target", "validation_loss"], "--target validation_loss: must be metric=value"),
        (["runs", "--target", "loss=1"], "--target loss=1: the metric must be one of train_loss"),
        (["runs", "--target", "test_loss=1"], "--target test_loss=1: no run has measured test_loss"),
        (["runs", "--format", "pdf"], "argument --format: invalid choice: 'pdf'"),
        (["runs", "--seeds"], "unrecognized arguments: --seeds"),
        (["runs", "-o", "file"], "cannot be written"),
        (["runs", "gpu"], "the runs differ in hardware or number format"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, cli, tmp_path):
    write_run(tmp_path, "runs/one", rows=falling([1.0]), environment=ENVIRONMENT)
    write_run(tmp_path, "gpu/one", rows=falling([1.0]), environment=GPU)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    answer = cli(["compare", *arguments])
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert answer.err.startswith("gnewton: ")
    assert "Traceback" not in answer.err
    assert sorted(tmp_path.rglob("*")) == before


def test_mixed_hardware_if_asked_for(cli, tmp_path):
    write_run(tmp_path, "one", rows=falling([1.0]), environment=ENVIRONMENT)
    write_run(tmp_path, "two", rows=falling([1.0]), environment=GPU)
    answer = cli(["compare", ".", "--no-plots", "--mixed-hardware"])
    assert answer.code == 0
    assert "sgd hardware=cpu Test Processor" in answer.out
    assert "sgd hardware=cuda Test GPU" in answer.out
    assert "their times mean little beside each other" in answer.out


def test_left_out_runs_are_reported(cli, tmp_path):
    write_run(tmp_path, "good", rows=falling([1.0]))
    (write_run(tmp_path, "bad") / "result.json").write_text("{")
    answer = cli(["compare", ".", "--no-plots"])
    assert answer.code == 0
    assert "- left out: " in answer.out


def test_each_command_loads_only_what_it_needs(tmp_path):
    write_run(tmp_path, "runs/one", rows=falling([1.0]))
    commands = [  # in one process, the one that needs least first
        (["compare", "--help"], ["torch", "pandas", "matplotlib", "hydra", "omegaconf", "numpy"]),
        (["compare", "--target", "x"], ["torch", "matplotlib", "hydra"]),
        (["compare", "runs", "--no-plots"], ["torch", "matplotlib", "hydra", "omegaconf"]),
        (["compare", "runs", "--html"], ["torch", "hydra", "omegaconf"]),
    ]
    assert loaded_by(commands, tmp_path) == [[]] * len(commands)
