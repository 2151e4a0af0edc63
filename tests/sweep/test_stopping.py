"""Sweeps that are stopped or killed, and then resumed. The runs are stand-ins."""

from __future__ import annotations

import os
import signal

import pytest

from tests.sweep.conftest import until


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_jobs_write_a_checkpoint(start, cli, sweeps, behave, number, code):
    behave({0: "done", 1: "wait", 2: "wait"})
    process = start("sweep", "seed=range(4)", "launcher.jobs=2")
    sweeps.wait_for_starts(3)
    os.killpg(process.pid, number)  # as a terminal does: all processes of the sweep get it
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    counts = "4 jobs: 1 done, 2 interrupted, 1 pending"
    assert err == f"gnewton: stopped by {signal.Signals(number).name}: {counts}\n"
    assert sweeps.statuses() == ["done", "interrupted", "interrupted", "pending"]
    behave()
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert (answer.code, sweeps.statuses()) == (0, ["done"] * 4)
    resumed = {entry["seed"]: entry["resumed"] for entry in sweeps.starts()[3:]}
    assert resumed == {"1": True, "2": True, "3": False}
    assert not list(sweeps.folder.glob(".stop*"))


def test_a_second_interrupt_kills(start, sweeps, behave):
    behave({0: "stubborn"})
    process = start("sweep", "seed=0,1")
    (job,) = sweeps.wait_for_starts(1)
    process.send_signal(signal.SIGINT)
    with pytest.raises(AssertionError):
        until(lambda: not _alive(job["pid"]), seconds=1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not _alive(job["pid"])
    assert sweeps.statuses() == ["interrupted", "pending"]


def test_a_killed_sweep_is_resumed_and_runs_nothing_twice(start, sweeps, behave):
    behave({1: "wait", 2: "wait"})
    process = start("sweep", "seed=range(4)", "launcher.jobs=2")
    jobs = sweeps.wait_for_starts(3)
    until(lambda: sweeps.statuses() == ["done", "pending", "pending", "pending"])
    process.kill()
    process.communicate()
    assert all(_alive(job["pid"]) for job in jobs if job["seed"] != "0"), "its jobs go on"
    again = start("sweep", "--resume", str(sweeps.folder), "launcher.jobs=2")
    with pytest.raises(AssertionError):
        until(lambda: len(sweeps.starts()) > 3, seconds=3)  # both places are taken by those that go on
    sweeps.go()
    _, err = again.communicate(timeout=60)
    assert (again.returncode, err) == (0, "")
    assert sweeps.statuses() == ["done"] * 4
    assert sorted(entry["seed"] for entry in sweeps.starts()) == ["0", "1", "2", "3"]


def test_a_killed_sweep_with_killed_jobs_continues_them(start, cli, sweeps, behave):
    behave({0: "wait"})
    process = start("sweep", "seed=0,1")
    (job,) = sweeps.wait_for_starts(1)
    process.kill()
    process.communicate()
    os.kill(job["pid"], signal.SIGKILL)
    behave()
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert (answer.code, sweeps.statuses()) == (0, ["done", "done"])
    assert [entry["resumed"] for entry in sweeps.starts()] == [False, True, False]


def test_a_job_that_ended_after_the_kill_is_recorded(start, cli, sweeps, behave):
    behave({0: "wait"})
    process = start("sweep", "seed=0")
    sweeps.wait_for_starts(1)
    process.kill()
    process.communicate()
    sweeps.go()
    until(lambda: list(sweeps.folder.rglob("result.json")))
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert (answer.code, sweeps.statuses(), len(sweeps.starts())) == (0, ["done"], 1)


def test_a_running_sweep_cannot_be_resumed(start, cli, sweeps, behave):
    behave({0: "wait"})
    process = start("sweep", "seed=0")
    sweeps.wait_for_starts(1)
    answer = cli(["sweep", "--resume", str(sweeps.folder)])
    assert (answer.code, "still under way in another process" in answer.err) == (2, True)
    sweeps.go()
    process.communicate(timeout=60)
    assert process.returncode == 0
