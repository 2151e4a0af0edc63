"""`gnewton sweep`: isolation, the manifest, retries, exit codes. The runs are stand-ins."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gnewton.cli.choices import all_groups
from gnewton.cli.composer import Composer
from gnewton.experiment.overrides import parse_overrides
from gnewton.options import quoted
from gnewton.sweep.launchers import LAUNCHERS
from gnewton.sweep.manifest import Job, Manifest

FAULTS = {1: "raise", 2: "kill", 3: "exit", 4: "exit0", 5: "diverge"}


def test_every_combination_is_run_once(cli, sweeps):
    answer = cli(["sweep", "optimizer=sgd,adam", "seed=range(2)", "trainer.max_steps=3"])
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[-1] == "4 jobs: 4 done"
    assert "[4/4] done, " in answer.out
    assert "(validation accuracy 0.5)" in answer.out
    manifest = sweeps.manifest()
    assert manifest["status"].tolist() == ["done"] * 4
    assert manifest["overrides"].tolist() == [
        f"optimizer={optimizer} seed={seed} trainer.max_steps=3"
        for optimizer in ("sgd", "adam")
        for seed in (0, 1)
    ]
    assert manifest["hash"].is_unique
    for run in manifest["run"]:
        assert (sweeps.folder / run / "result.json").is_file()
    assert [entry["seed"] for entry in sweeps.starts()] == ["0", "1", "0", "1"]


def test_a_failed_run_leaves_the_others_alone(cli, sweeps, behave):
    behave(FAULTS)
    answer = cli(["sweep", "seed=range(7)", "launcher.jobs=2"])
    assert answer.code == 4
    assert sweeps.statuses() == ["done", *["failed"] * 4, "diverged", "done"]
    lines = answer.err.splitlines()
    assert lines[0] == "gnewton: 7 jobs: 2 done, 1 diverged, 4 failed"
    assert lines[1:] == [
        "  job 2  seed=1: failed, exit code 1; last line: RuntimeError: a defect",
        "  job 3  seed=2: failed, killed by SIGKILL",
        "  job 4  seed=3: failed, exit code 7; last line: started 3",
        "  job 5  seed=4: failed, exit code 0 before the end of the run; last line: started 4",
        "  job 6  seed=5: diverged, the loss is nan at step 3",
    ]
    manifest = sweeps.manifest()
    assert manifest["exit_code"].tolist() == [0, 1, -9, 7, 0, 3, 0]
    assert "RuntimeError: a defect" in manifest["error"][2]
    assert manifest["attempts"].tolist() == [1] * 7


def test_resume_runs_what_is_left_and_continues_what_was_begun(cli, sweeps, behave):
    behave(FAULTS)
    cli(["sweep", "seed=range(7)", "launcher.jobs=2"])
    before = sweeps.manifest()
    behave()
    answer = cli(["sweep", "--resume", str(sweeps.folder), "launcher.jobs=1"])
    assert answer.code == 4, "a diverged run stays what it is"
    assert answer.out.startswith("4 of 7 jobs left, 1 at a time")
    assert sweeps.statuses() == ["done"] * 5 + ["diverged", "done"]
    again = sweeps.starts()[7:]
    assert [entry["seed"] for entry in again] == ["1", "2", "3", "4"]
    assert all(entry["resumed"] for entry in again)
    manifest = sweeps.manifest()
    assert manifest["run"].tolist() == before["run"].tolist()
    assert manifest["attempts"].tolist() == [1, 2, 2, 2, 2, 1, 1]
    assert manifest["error"][2] == ""


def test_a_finished_sweep_has_nothing_left_to_run(cli, sweeps):
    cli(["sweep", "seed=0,1"])
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert (answer.code, answer.out.splitlines()[-1]) == (0, "2 jobs: 2 done")
    assert len(sweeps.starts()) == 2


def test_retries_continue_a_failed_run(cli, sweeps, behave):
    behave({0: "flaky", 1: "raise", 2: "diverge", 3: "bad_input"})
    answer = cli(["sweep", "seed=range(4)", "--retries", "2"])
    assert answer.code == 4
    assert sweeps.statuses() == ["done", "failed", "diverged", "failed"]
    assert sweeps.manifest()["attempts"].tolist() == [2, 3, 1, 1]
    assert [entry["resumed"] for entry in sweeps.starts() if entry["seed"] == "1"] == [False, True, True]
    assert "gnewton: seed: not today" in answer.err


def test_fail_fast_stops_the_others(cli, sweeps, behave):
    behave({0: "wait", 1: "raise"})
    answer = cli(["sweep", "seed=range(5)", "launcher.jobs=2", "--fail-fast"])
    assert answer.code == 4
    assert sweeps.statuses()[:2] == ["interrupted", "failed"]
    assert "pending" in sweeps.statuses()[2:]
    assert "--fail-fast: the other jobs are asked to stop" in answer.out
    behave()
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert (answer.code, sweeps.statuses()) == (0, ["done"] * 5)


def test_dry_run_prints_commands_that_work(cli, sweeps, tmp_path):
    answer = cli(["sweep", "optimizer=sgd,adam", "seed=0,1", "--dry-run"])
    assert answer.code == 0
    *lines, last = answer.out.splitlines()
    assert last == "# 4 jobs, 1 at a time, 1 thread each"
    assert lines[1] == "gnewton train optimizer=sgd seed=1"
    assert not (tmp_path / "outputs").exists()
    for line in lines:
        assert cli([*shlex.split(line)[1:], "--cfg", "job"]).code == 0


def test_dry_run_of_a_resumed_sweep_prints_the_open_jobs(cli, sweeps, behave):
    behave({1: "raise"})
    cli(["sweep", "seed=0,1,2"])
    answer = cli(["sweep", "--resume", str(sweeps.folder), "--dry-run"])
    assert answer.out.splitlines() == ["gnewton train seed=1", "# 1 job, 1 at a time, 1 thread each"]
    assert len(sweeps.starts()) == 3


def test_equal_configurations_are_run_once(cli, sweeps):
    answer = cli(["sweep", "seed=0,1", "optimizer=grouped_newton,grouped_newton"])
    assert answer.code == 0
    assert len(sweeps.starts()) == len(sweeps.statuses()) == 2


def test_a_job_is_named_by_what_differs_and_long_values_are_cut(tmp_path):
    manifest = Manifest(tmp_path)
    numbers = ",".join(map(str, range(50)))
    manifest.add([Job("a", ("seed=1", "lr=2", f"model.widths=[{numbers}]")), Job("b", ("seed=1", "lr=3"))])
    first, second = map(manifest.title, manifest.entries)
    assert second == "job 2  lr=3"
    assert first.startswith("job 1  lr=2 'model.widths=[0,1,2,3,")
    assert len(first.partition("'")[2].rstrip("'")) == 60
    assert numbers in (tmp_path / "manifest.csv").read_text()


def test_jobs_share_cores_and_gpus(cli, sweeps, behave, monkeypatch):
    monkeypatch.setattr("gnewton.sweep.launchers.cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS")
    behave({0: "wait", 1: "wait"})
    sweeps.go()
    answer = cli(["sweep", "seed=range(4)"])
    assert answer.code == 0
    assert "4 jobs, 2 at a time, 4 threads each, 2 GPUs" in answer.out
    assert {entry["threads"] for entry in sweeps.starts()} == {"4"}
    assert {entry["gpu"] for entry in sweeps.starts()} == {"3", "5"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "2 at a time, 3 threads each" in cli(["sweep", "seed=0", "--dry-run"]).out
    assert "4 at a time, 2 threads each" in cli(["sweep", "seed=0", "launcher.jobs=4", "--dry-run"]).out
    answer = cli(["sweep", "seed=0", "launcher.jobs=4", "launcher.threads=3"])
    assert (answer.code, answer.err.startswith("gnewton: launcher.threads=3: must be <= 2")) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer=sgd,foo"], "optimizer=foo: must be one of"),
        (["optimizer=adam,sgd", "optimizer.momentum=0.9"], "optimizer.momentum=0.9: no such option"),
        (["seed=0,1", "trainer.epochs=1,0"], "trainer.epochs=0: must be a whole number >= 1"),
        (["optimizer=grouped_newton,sgd", "partition=blocks"], "partition=blocks: has no effect"),
        (["resume=a,b"], "continue one with gnewton sweep --resume DIR"),
        (["seed=0", "hydra.run.dir=x"], "hydra.run.dir=x: has no effect"),
        (["seed=interval(0,1)"], "must be a list of values"),
        (["output_root=a,b"], "all runs of a sweep are in one folder"),
        (["launcher=foo"], "launcher=foo: must be one of local, ray, slurm"),
        (["launcher.jobs=0"], "launcher.jobs=0: must be a whole number >= 1"),
        (["launcher.jobs=1,2"], "launcher.jobs=1,2: one value is allowed"),
        (["launcher.job=1"], "did you mean 'launcher.jobs'?"),
        (["launcher=local", "launcher.gpus=1"], "launcher.gpus=1: no such option"),
        (["seed=0", "--retries=x"], "--retries: x: must be a whole number >= 0"),
        (["seed=0", "--multirun"], "unrecognized arguments: --multirun"),
        (["seed=0", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["--resume", "nowhere"], "no sweep there"),
        (["seed"], "seed: not of the form option=value"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(cli, sweeps, tmp_path, arguments, message):
    answer = cli(["sweep", *arguments])
    assert answer.code == 2
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_options_without_meaning_for_a_resumed_sweep_are_refused(cli, sweeps, monkeypatch):
    cli(["sweep", "seed=0", "data=mnist"])
    folder = str(sweeps.folder)
    answer = cli(["sweep", "--resume", folder, "seed=1"])
    assert (answer.code, "seed=1: a resumed sweep keeps its runs" in answer.err) == (2, True)
    answer = cli(["sweep", "--resume", folder, "--config-dir", "."])
    assert (answer.code, "has no effect with --resume" in answer.err) == (2, True)
    (sweeps.folder / "manifest.csv").write_text("job,hash\n1,2\n")
    answer = cli(["sweep", "--resume", folder])
    assert (answer.code, "manifest.csv: cannot be read" in answer.err) == (2, True)


def test_a_job_whose_configuration_has_changed_is_refused(cli, sweeps, behave, monkeypatch):
    behave({0: "raise"})
    cli(["sweep", "seed=0", "data=mnist"])
    monkeypatch.setenv("GNEWTON_DATA", "/some/where/else")
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert (answer.code, "an environment variable has changed" in answer.err) == (2, True)
    assert len(sweeps.starts()) == 1


def test_files_of_the_user_are_found(cli, sweeps, tmp_path):
    own = tmp_path / "mine" / "experiment"
    own.mkdir(parents=True)
    (own / "tiny.yaml").write_text("# @package _global_\nname: tiny\ntrainer:\n  epochs: 2\n")
    answer = cli(["sweep", "experiment=tiny", "seed=0,1", "--config-dir", "mine", "--dry-run"])
    assert answer.out.splitlines()[0] == f"gnewton train --config-dir {tmp_path}/mine experiment=tiny seed=0"
    assert cli(["sweep", "experiment=tiny", "seed=0,1", "--config-dir", "mine"]).code == 0
    assert cli(["sweep", "--resume", str(sweeps.folder)]).code == 0


@pytest.mark.parametrize(
    "name", ["it's", "a b", "a,b", "a=b", "ü", 'say "a"', "1e5", "ends\\", '\\"', "a\\b", "${x}"[1:], "null"]
)
def test_folders_of_any_name_are_quoted(name):
    (parsed,) = OverridesParser.create().parse_overrides([f"output_root={quoted(f'/x/{name}')}"])
    assert parsed.value() == f"/x/{name}"
    (parsed,) = OverridesParser.create().parse_overrides([f"name={quoted(name)}"])
    assert parsed.value() == name


@pytest.mark.parametrize("choice", [choice.name for choice in all_groups()["launcher"]])
def test_every_launcher_has_a_file_that_composes(choice):
    launcher = Composer().options("test", ["launcher"], parse_overrides([f"launcher={choice}"]))["launcher"]
    assert launcher.name == choice
    assert type(launcher) is LAUNCHERS[choice]
    assert sorted(LAUNCHERS.names()) == sorted(known.name for known in all_groups()["launcher"])


def test_help_works(cli):
    with pytest.raises(SystemExit) as ended:
        cli(["sweep", "--help"])
    assert ended.value.code == 0
