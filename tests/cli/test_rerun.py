"""`gnewton rerun`: a run is repeated and compared with the original."""

from __future__ import annotations

import json

import pytest

from tests.conftest import SMALL, SMALL_BASELINE


def _trained(cli, tmp_path, overrides):
    cli(["train", *overrides, "trainer.device=cpu"])
    (folder,) = (tmp_path / "outputs").glob("*/*")
    return folder


def test_a_run_is_reproduced_to_the_last_bit(cli, tmp_path):
    folder = _trained(cli, tmp_path, [*SMALL, "trainer.epochs=4", "optimizer.period=3", "seed=5"])
    answer = cli(["rerun", str(folder), "--output-root", "again"])
    assert answer.code == 0
    (again,) = (tmp_path / "again").glob("*/*")
    assert again.name.rpartition("_")[2] == folder.name.rpartition("_")[2], "the same configuration"
    assert json.loads((again / "environment.json").read_text())["command"][:2] == ["gnewton", "rerun"]
    assert answer.out.splitlines()[2:] == [
        "environment:",
        "  the same",
        "metrics.csv: 5 rows, 11 of 11 columns the same",
        "steps.csv: 0 rows, 3 of 3 columns the same",  # fewer steps than a period has
        *[line for line in answer.out.splitlines() if line.startswith("rates.csv: ")],
        "reproduced: every value is the same",
    ]
    assert "rates.csv: " in answer.out


def test_a_run_that_was_stopped_and_extended_is_reproduced(cli, tmp_path):
    folder = _trained(cli, tmp_path, ["optimizer=sgd", *SMALL_BASELINE, "trainer.max_steps=5"])
    assert cli(["train", f"resume={folder}", "trainer.max_steps=8"]).code == 0
    answer = cli(["rerun", str(folder)])
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == "reproduced: every value is the same"
    assert "  step 5: only where that run was stopped and went on later" in answer.out


def test_a_change_is_found(cli, tmp_path):
    folder = _trained(cli, tmp_path, ["optimizer=sgd", *SMALL_BASELINE, "trainer.epochs=2"])
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    environment = json.loads((folder / "environment.json").read_text())
    environment["packages"]["torch"] = "1.0"
    (folder / "environment.json").write_text(json.dumps(environment))
    answer = cli(["rerun", str(folder)])
    assert answer.code == 5
    assert "packages.torch: 1.0 → " in answer.out
    assert "train_loss: 2 rows differ, from step 3 on, by up to " in answer.out
    assert answer.err.splitlines()[-1].startswith("gnewton: not reproduced: ")


def test_a_diverged_run_diverges_again_at_the_same_step(cli, tmp_path):
    overrides = ["optimizer=sgd", "optimizer.lr=1e12", "model.activation=relu", *SMALL_BASELINE]
    folder = _trained(cli, tmp_path, [*overrides, "trainer.log_every=1"])
    answer = cli(["rerun", str(folder)])
    assert (answer.code, answer.out.splitlines()[-1]) == (
        0,
        "reproduced: every value is the same, as far as that run (diverged) came",
    )
    (folder / "result.json").write_text('{"status": "diverged", "message": "at another step"}')
    answer = cli(["rerun", str(folder)])
    assert (answer.code, "end: diverged at another step → diverged the " in answer.out) == (5, True)


def test_a_run_without_rows_is_refused(cli, tmp_path):
    folder = _trained(cli, tmp_path, [*SMALL, "trainer.max_steps=1"])
    (folder / "result.json").unlink()
    (folder / "metrics.csv").unlink()
    answer = cli(["rerun", str(folder)])
    assert (answer.code, "it has no row in metrics.csv to compare with" in answer.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such folder"),
        (["."], "it holds no config.yaml"),
        ([], "the following arguments are required: DIR"),
        ([".", "--tolerance", "2"], "must be a number >= 0 and < 1"),
        ([".", "--tolerance", "nan"], "must be a number >= 0 and < 1"),
    ],
)
def test_bad_input(cli, arguments, message):
    answer = cli(["rerun", *arguments])
    assert answer.code == 2
    assert message in answer.err
