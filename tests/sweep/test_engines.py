"""The launchers that need optional packages: submitit's local executor, and a Ray started by the test."""

from __future__ import annotations

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from gnewton.cli.composer import Composer
from gnewton.experiment.overrides import parse_overrides
from gnewton.sweep.launchers import LAUNCHERS
from gnewton.sweep.manifest import Job
from gnewton.sweep.worker import JobTask, StopRequest
from tests.sweep.test_sweep import FAULTS

SLURM = ["launcher=slurm", "launcher.cluster=local", "launcher.gpus=0", "launcher.threads=1"]


def test_slurm_through_the_local_executor_of_submitit(cli, sweeps, behave):
    pytest.importorskip("submitit")
    behave({seed: FAULTS[seed] for seed in (1, 2, 3)})
    answer = cli(["sweep", "seed=range(5)", *SLURM, "launcher.jobs=2"])
    assert answer.code == 4
    assert sweeps.statuses() == ["done", "failed", "failed", "failed", "done"]
    assert "  job 3  seed=2: failed, killed by SIGKILL" in answer.err.splitlines()
    assert {entry["threads"] for entry in sweeps.starts()} == {"1"}
    behave()
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert (answer.code, sweeps.statuses()) == (0, ["done"] * 5)
    assert sum(entry["resumed"] for entry in sweeps.starts()) == 3


def test_slurm_jobs_are_stopped_with_the_sweep(start, sweeps, behave):
    pytest.importorskip("submitit")
    behave({0: "wait", 1: "wait"})
    process = start("sweep", "seed=0,1", *SLURM, "launcher.jobs=1")
    sweeps.wait_for_starts(1)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert sorted(sweeps.statuses()) == ["interrupted", "pending"]


def test_slurm_asks_the_cluster_for_what_it_was_told():
    from gnewton.sweep.launchers import SlurmLauncher

    launcher = SlurmLauncher(
        name="slurm",
        cluster="slurm",
        jobs=3,
        threads=4,
        gpus=2,
        memory_gib=8.0,
        minutes=90,
        partition="fast",
        options={"account": "mine"},
    )
    assert launcher._parameters(9) == {
        "name": "gnewton",
        "nodes": 1,
        "tasks_per_node": 1,
        "cpus_per_task": 4,
        "gpus_per_node": 2,
        "timeout_min": 90,
        "mem_gb": 8.0,
        "slurm_array_parallelism": 3,
        "slurm_partition": "fast",
        "slurm_additional_parameters": {"account": "mine"},
    }


def test_without_slurm_the_error_says_so(cli, monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = cli(["sweep", "seed=0", "launcher=slurm"])
    assert (answer.code, "there is no Slurm on this machine" in answer.err) == (2, True)


def test_ray(cli, sweeps, behave):
    pytest.importorskip("ray")
    behave({seed: FAULTS[seed] for seed in (1, 2)})
    answer = cli(["sweep", "seed=range(4)", "launcher=ray"])
    assert answer.code == 4
    assert sweeps.statuses() == ["done", "failed", "failed", "done"]
    answer = cli(["sweep", "--resume", str(sweeps.folder), "launcher.threads=1000"])
    assert (answer.code, "launcher.threads=1000: must be <= " in answer.err) == (2, True)


@pytest.mark.parametrize(
    ("override", "head"),
    [("", "launcher=ray"), ("launcher.address=10.0.0.1:1", "launcher.address=10.0.0.1:1")],
)
def test_a_ray_that_does_not_start_is_one_message(cli, monkeypatch, override, head):
    def init(address, **options):
        raise Exception("The current node timed out during startup.\nThis could happen because …")

    ended = []
    ray = SimpleNamespace(init=init, shutdown=lambda: ended.append(True))
    monkeypatch.setattr("gnewton.sweep.launchers.require_package", lambda *names: ray)
    answer = cli(["sweep", "seed=0", "launcher=ray", *override.split()])
    assert answer.code == 2
    assert answer.err == f"gnewton: {head}: Ray does not start: The current node timed out during startup.\n"
    assert ended


@pytest.mark.parametrize("launcher", ["local", "ray", "slurm"])
def test_every_launcher_knows_how_many_jobs_at_a_time(launcher):
    options = Composer().options(
        "test", {"launcher": LAUNCHERS}, parse_overrides([f"launcher={launcher}", "launcher.jobs=3"])
    )["launcher"]
    assert options.jobs == 3
    assert "3 at a time" in options.describe()


def test_ray_runs_at_most_so_many_jobs_at_a_time(monkeypatch, tmp_path):
    """A Ray that finishes the latest task first, one at a time."""
    most = [0]
    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=RuntimeError), get=lambda reference: reference)
    ray.init = lambda *arguments, **options: None
    ray.shutdown = lambda: None
    ray.cluster_resources = lambda: {"CPU": 4}
    ray.remote = lambda **options: lambda function: SimpleNamespace(remote=lambda task: task.job.digest)

    def wait(waiting, timeout):
        most[0] = max(most[0], len(waiting))
        return waiting[-1:], waiting[:-1]

    ray.wait = wait
    monkeypatch.setitem(sys.modules, "ray", ray)
    stop = StopRequest.of(tmp_path)
    tasks = [JobTask(Job(str(number), ()), tmp_path, tmp_path, stop) for number in range(5)]
    for jobs, expected in ((2, 2), (None, 5)):
        most[0] = 0
        launcher = LAUNCHERS["ray"](name="ray", address=None, threads=1, gpus=0, jobs=jobs)
        assert sorted(launcher.run(tasks, tmp_path, stop)) == ["0", "1", "2", "3", "4"]
        assert most[0] == expected


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_engine_is_named_with_its_extra(cli, monkeypatch, tmp_path, launcher, package):
    monkeypatch.setitem(sys.modules, package, None)
    answer = cli(["sweep", "seed=0,1", f"launcher={launcher}"])
    assert answer.code == 2
    assert answer.err == (
        f"gnewton: launcher={launcher}: needs the package {package}; "
        f"install it with pip install 'gnewton[{launcher}]'\n"
    )
    assert not (tmp_path / "outputs").exists()
