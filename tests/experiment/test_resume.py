"""A resumed run is the run that was never interrupted, row by row and bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zipfile

import pytest
import torch
import yaml

from gnewton.backend import compiler_failure
from gnewton.errors import InputError, Interrupted
from gnewton.runfiles import LAST, PREVIOUS
from gnewton.training.checkpoint import load_checkpoint
from tests.conftest import SMALL, SMALL_BASELINE
from tests.experiment.interruptions import (
    after_step,
    assert_same_run,
    in_evaluation,
    killed,
    rows,
    send,
)

GROUPED = (*SMALL, "optimizer.period=2", "data.augment.flip=true")
BASELINE = (*SMALL_BASELINE, "data.augment.flip=true")

RUNS: dict[str, tuple[str, ...]] = {
    "sgd": ("optimizer=sgd", "optimizer.momentum=0.9", *BASELINE),
    "sgd cosine": ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer/schedule=cosine", *BASELINE),
    "sgd step": ("optimizer=sgd", "optimizer/schedule=step", "optimizer.schedule.every=1", *BASELINE),
    "sgd plateau": (
        "optimizer=sgd",
        "optimizer/schedule=plateau",
        "optimizer.schedule.patience=0",
        *BASELINE,
    ),
    "adam": ("optimizer=adam", *BASELINE),
    "adamw": ("optimizer=adamw", "trainer.microbatch=7", *BASELINE),
    "nadam clipped": ("optimizer=nadam", "trainer.clip_norm=0.1", *BASELINE),
    "rmsprop": ("optimizer=rmsprop", *BASELINE),
    "muon cosine": ("optimizer=muon", "optimizer/schedule=cosine", *BASELINE),
    "prodigy": ("optimizer=prodigy", *BASELINE),
    "dadapt_adam": ("optimizer=dadapt_adam", *BASELINE),
    "dog": ("optimizer=dog", "optimizer.initial=0.01", *BASELINE),
    "schedule_free": ("optimizer=schedule_free", *BASELINE),
    "lbfgs": ("optimizer=lbfgs", *SMALL_BASELINE[:2]),
    "kfac": ("optimizer=kfac", *BASELINE),
    "kfac ekfac": ("optimizer=kfac", "optimizer.preconditioner=ekfac", *BASELINE),
    "grouped_newton": ("optimizer=grouped_newton", *GROUPED),
    "grouped_newton float64": ("optimizer=grouped_newton", "trainer.dtype=float64", *GROUPED),
    "grouped_newton paper": ("optimizer=grouped_newton_paper", *GROUPED),
    "grouped_newton noiseless": ("optimizer=grouped_newton_noiseless", *BASELINE),
    "grouped_newton training batch": (
        *("optimizer=grouped_newton", *GROUPED),
        *("optimizer.curvature.source=training", "optimizer.curvature.batch_size=null"),
    ),
    "grouped_newton full batch": ("optimizer=grouped_newton_full_batch", *SMALL_BASELINE[:2]),
    "grouped_newton pair": (
        *("optimizer=grouped_newton", "optimizer/direction=pair", *GROUPED),
        *("optimizer/controller=progress", "optimizer.cap=0.1"),
    ),
    "grouped_newton ridge": (
        *("optimizer=grouped_newton", "optimizer.solver=ridge", *GROUPED),
        *("optimizer/controller=constant", "optimizer.negative_rates=constrain"),
    ),
    "grouped_newton newton": (
        *("optimizer=grouped_newton", "optimizer.solver=newton", *GROUPED),
        *("optimizer.cap=0.1", "optimizer.shrinkage=0"),
    ),
} | {
    f"grouped_newton {kind} {name}": ("optimizer=grouped_newton", f"optimizer/{kind}={name}", *GROUPED)
    for kind, names in (
        ("averaging", ("none", "exponential", "static", "uniform")),
        ("direction", ("adam", "adamw", "average", "gradient", "kfac", "muon", "nadam", "rmsprop", "sgd")),
    )
    for name in names
}
"""Every optimizer, schedule, direction and averaging, tiny."""

LENGTH = ("trainer.epochs=3", "trainer.log_every=2")


@pytest.fixture
def uninterrupted(finished):
    """uninterrupted(overrides) -> the folder of an uninterrupted run."""
    return lambda overrides: finished([*overrides, *LENGTH])


@pytest.fixture
def broken_off(run, tmp_path):
    """broken_off(overrides) -> the folder of a run that a signal ends."""

    def started(overrides):
        with pytest.raises(Interrupted):
            run([*overrides, *LENGTH], tmp_path / "interrupted")
        (folder,) = (tmp_path / "interrupted").glob("*/*")
        return folder

    return started


@pytest.fixture
def resumed(compose):
    def again(folder, *overrides):
        from gnewton.experiment.prepare import prepare
        from gnewton.experiment.run import run as run_experiment

        overrides = [f"resume={folder}", *overrides]
        return run_experiment(prepare(compose(overrides), overrides))

    return again


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_within_an_epoch(name, uninterrupted, broken_off, resumed, monkeypatch):
    reference = uninterrupted(RUNS[name])
    step = 2 if name in ("lbfgs", "grouped_newton full batch") else 5  # those make one step an epoch
    with after_step(monkeypatch, step, send(signal.SIGTERM)):
        folder = broken_off(RUNS[name])
    assert load_checkpoint(folder / "checkpoint" / LAST)["step"] == step
    torch.rand(3)  # the streams of this process are not those of the run
    assert resumed(folder).folder == folder
    assert_same_run(reference, folder)


@pytest.mark.slow
def test_interrupted_with_compiled_summaries(uninterrupted, broken_off, resumed, monkeypatch):
    if reason := compiler_failure(torch.device("cpu")):
        pytest.skip(reason)
    # without third derivatives, whose code takes most of the compiler's time
    overrides = (*RUNS["grouped_newton newton"], "optimizer.curvature.engine=compiled")
    reference = uninterrupted(overrides)
    with after_step(monkeypatch, 5, send(signal.SIGTERM)):
        folder = broken_off(overrides)
    torch.compiler.reset()  # the code is loaded anew, as in another process
    resumed(folder)
    assert_same_run(reference, folder)


@pytest.mark.filterwarnings("error::UserWarning:gnewton")
@pytest.mark.parametrize("name", ["sgd", "lbfgs", "kfac", "grouped_newton"])
def test_interrupted_again_and_again(name, uninterrupted, broken_off, resumed, monkeypatch):
    """After a step, as an evaluation begins, at the end of an epoch, and within the last evaluation."""
    reference = uninterrupted(RUNS[name])
    with in_evaluation(monkeypatch, 1, send(signal.SIGTERM)):  # before the row of step 0
        folder = broken_off(RUNS[name])
    assert len(rows(folder / "metrics.csv")) == 1
    with in_evaluation(monkeypatch, 2, send(signal.SIGINT)), pytest.raises(Interrupted):
        resumed(folder)
    assert len(rows(folder / "metrics.csv")) == 2
    per_epoch = 1 if name == "lbfgs" else 3
    for block in (
        after_step(monkeypatch, 1, send(signal.SIGUSR1)),
        after_step(monkeypatch, per_epoch - 1 or 1, send(signal.SIGTERM)),
        in_evaluation(monkeypatch, 1, send(signal.SIGTERM)),
    ):
        with block, pytest.raises(Interrupted):
            resumed(folder)
    assert resumed(folder).outcome.status == "done"
    assert_same_run(reference, folder)


@pytest.mark.parametrize("name", ["adam", "grouped_newton"])
@pytest.mark.parametrize("every", ["1 steps", "2 steps", "2 epochs", "0.001 s"])
def test_killed_at_every_step(name, every, uninterrupted, run, resumed, monkeypatch, tmp_path):
    """SIGKILL after the first step of each process; what the process made since its checkpoint is lost."""
    overrides = (*RUNS[name], f"trainer.checkpoint_every={every}")
    reference = uninterrupted(RUNS[name])  # when checkpoints are written changes no step
    with after_step(monkeypatch, 4, send(signal.SIGKILL)):
        assert killed(lambda: run([*overrides, *LENGTH], tmp_path / "killed")) == signal.SIGKILL
    (folder,) = (tmp_path / "killed").glob("*/*")
    with after_step(monkeypatch, 2, send(signal.SIGKILL)):
        assert killed(lambda: resumed(folder)) == signal.SIGKILL
    assert resumed(folder).outcome.status == "done"
    assert_same_run(reference, folder)


@pytest.mark.parametrize("name", ["soap", "shampoo"])
def test_optimizers_of_an_extra_are_resumed(name, uninterrupted, broken_off, resumed, monkeypatch):
    pytest.importorskip("pytorch_optimizer")
    overrides = (f"optimizer={name}", "optimizer.period=2", *BASELINE)
    reference = uninterrupted(overrides)
    with after_step(monkeypatch, 4, send(signal.SIGTERM)):
        folder = broken_off(overrides)
    resumed(folder)
    assert_same_run(reference, folder)


def test_killed_in_an_evaluation(uninterrupted, run, resumed, monkeypatch, tmp_path):
    reference = uninterrupted(RUNS["grouped_newton"])
    with in_evaluation(monkeypatch, 3, send(signal.SIGKILL)):
        assert killed(lambda: run([*RUNS["grouped_newton"], *LENGTH], tmp_path / "killed")) == signal.SIGKILL
    (folder,) = (tmp_path / "killed").glob("*/*")
    resumed(folder)
    assert_same_run(reference, folder)


def test_killed_before_the_first_checkpoint(uninterrupted, run, resumed, monkeypatch, tmp_path):
    from gnewton.training.runlog import RunLog

    reference = uninterrupted(RUNS["adam"])
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "checkpoint", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert killed(lambda: run([*RUNS["adam"], *LENGTH], tmp_path / "killed")) == signal.SIGKILL
    (folder,) = (tmp_path / "killed").glob("*/*")
    assert list((folder / "checkpoint").iterdir()) == []
    resumed(folder)
    assert_same_run(reference, folder)


def test_without_any_checkpoint_the_logs_start_anew(uninterrupted, stopped, resumed):
    reference, folder = uninterrupted(RUNS["grouped_newton"]), stopped
    shutil.rmtree(folder / "checkpoint")
    resumed(folder)
    assert_same_run(reference, folder)


def test_rates_reach_the_log_once(stopped, resumed):
    folder = stopped
    resumed(folder)
    table = rows(folder / "rates.csv")
    keys = [(row[0], row[2]) for row in table[1:]]
    assert len(keys) == len(set(keys)) > 0


def test_a_run_made_longer(run, resumed, tmp_path):
    endless = (*RUNS["grouped_newton"], "optimizer/schedule=constant", "optimizer/controller=progress")
    long = run([*endless, "trainer.epochs=4"], tmp_path / "long").folder
    short = run([*endless, "trainer.epochs=2"], tmp_path / "short").folder
    assert resumed(short, "trainer.epochs=4").outcome.status == "done"
    assert_same_run(long, short)


def test_a_finished_run_has_nothing_left_to_do(uninterrupted, resumed, tmp_path):
    folder = shutil.copytree(uninterrupted(RUNS["sgd"]), tmp_path / "name" / "run")
    before = {title: (folder / title).read_bytes() for title in ("metrics.csv", "config.yaml")}
    assert resumed(folder).outcome.status == "done"
    assert {title: (folder / title).read_bytes() for title in before} == before


@pytest.fixture(scope="module")
def stopped_once(compose, tmp_path_factory):
    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run

    root = tmp_path_factory.mktemp("stopped")
    overrides = [f"output_root={root}", "trainer.device=cpu", *RUNS["grouped_newton"], *LENGTH]
    with (
        pytest.MonkeyPatch.context() as patch,
        after_step(patch, 5, send(signal.SIGTERM)),
        pytest.raises(Interrupted),
    ):
        run(prepare(compose(overrides), overrides))
    (folder,) = root.glob("*/*")
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """The folder of a run of GroupedNewton that a signal ended after step 5 of 9; a copy for each test."""
    return shutil.copytree(stopped_once, tmp_path / "stopped" / "name" / stopped_once.name)


def _damage(path, way):
    whole = path.read_bytes()
    if way == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "one bit":
        with zipfile.ZipFile(path) as file:  # in a record: what lies between them does no harm
            record = file.read(max(file.infolist(), key=lambda entry: entry.file_size))
        place = whole.index(record) + len(record) // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif way == "gone":
        path.unlink()


@pytest.mark.parametrize("way", ["truncated", "empty", "one bit", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(way, uninterrupted, resumed, stopped):
    reference = uninterrupted(RUNS["grouped_newton"])
    folder = stopped
    _damage(folder / "checkpoint" / LAST, way)
    resumed(folder)
    said = (folder / "train.log").read_text(encoding="utf-8")
    assert f"resumed from {folder / 'checkpoint' / PREVIOUS}: epoch 1, step 3" in said
    assert ("the one before it is taken" in said) == (way != "gone")
    assert_same_run(reference, folder)


IDENTITIES = {
    "version": ("0.0.1", "it was written by gnewton 0.0.1, this is "),
    "format": ("1", "it is of checkpoint format 1, this program writes format "),
    "config": ("deadbeef", "it belongs to another configuration \\(deadbeef, not "),
    "device": ("cuda", "it was written on cuda, this run is on cpu"),
    "processes": ("2", "it was written by 2 processes, these are 1"),
}


@pytest.mark.parametrize("key", IDENTITIES)
def test_a_foreign_checkpoint_is_refused(key, resumed, stopped):
    value, reason = IDENTITIES[key]
    folder = stopped
    before = {title: (folder / title).read_bytes() for title in ("metrics.csv", "rates.csv")}
    for name in (LAST, PREVIOUS):
        state = load_checkpoint(folder / "checkpoint" / name)
        state["identity"][key] = value
        torch.save(state, folder / "checkpoint" / name)
    with pytest.raises(InputError, match=f"last.pt: {reason}") as caught:
        resumed(folder)
    assert "previous.pt: " in str(caught.value)
    assert {title: (folder / title).read_bytes() for title in before} == before


def test_the_checkpoint_of_another_run_is_refused(run, resumed, tmp_path, stopped):
    folder = stopped
    other = run([*RUNS["grouped_newton"], *LENGTH, "optimizer.period=1"], tmp_path / "other").folder
    shutil.copy(other / "checkpoint" / LAST, folder / "checkpoint" / LAST)
    resumed(folder)
    said = (folder / "train.log").read_text(encoding="utf-8")
    assert "it belongs to another configuration" in said
    assert "the one before it is taken" in said


@pytest.mark.parametrize(
    "key", ["optimizer", "scheduler", "meter", "logs", "random", "step", "outcome", "updates"]
)
def test_a_checkpoint_that_lacks_a_part_is_refused(key, resumed, stopped):
    folder = stopped
    for name in (LAST, PREVIOUS):
        state = load_checkpoint(folder / "checkpoint" / name)
        del state[key]
        torch.save(state, folder / "checkpoint" / name)
    with pytest.raises(InputError, match=f"last.pt: it lacks or garbles a part .*{key}"):
        resumed(folder)


def test_logs_that_have_lost_rows_are_noticed(resumed, stopped):
    folder = stopped
    for title in ("metrics.csv", "rates.csv"):
        text = (folder / title).read_text()
        (folder / title).write_text(text.splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="metrics.csv has lost rows"):
        resumed(folder)


def test_a_half_written_row_is_removed(uninterrupted, resumed, stopped):
    reference = uninterrupted(RUNS["grouped_newton"])
    folder = stopped
    for title in ("metrics.csv", "rates.csv"):
        with (folder / title).open("a") as file:
            file.write("7,8,0.1")
    resumed(folder)
    assert_same_run(reference, folder)


def test_the_folder_says_that_the_run_went_on(resumed, stopped):
    folder = stopped
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    resumed(folder)
    environment = json.loads((folder / "environment.json").read_text())
    assert [entry["step"] for entry in environment["resumed"]] == [5]
    assert json.loads((folder / "result.json").read_text())["status"] == "done"


REFUSED = {
    "optimizer.period=3": "a resumed run keeps the steps it would have made",
    "seed=3": "a resumed run keeps the steps it would have made",
    "optimizer=sgd": "a resumed run keeps the steps it would have made",
    "trainer.epochs=1": "a resumed run can only be made longer; it has 3",
    "output_root=elsewhere": "has no effect, a resumed run stays in its folder",
}


@pytest.mark.parametrize("override", REFUSED)
def test_options_that_would_change_the_steps_are_refused(override, resumed, stopped):
    folder = stopped
    with pytest.raises(InputError, match=f"{override}: {REFUSED[override]}"):
        resumed(folder, override)


def test_a_schedule_keeps_its_length(uninterrupted, resumed):
    folder = uninterrupted(RUNS["sgd cosine"])
    with pytest.raises(InputError, match="optimizer/schedule=cosine was laid out for 3 epochs"):
        resumed(folder, "trainer.epochs=5")


@pytest.mark.parametrize("what", ["no folder", "empty", "yaml", "json", "recipe"])
def test_a_folder_that_is_no_run_is_refused(what, uninterrupted, resumed, tmp_path):
    folder = tmp_path / "x"
    if what != "no folder":
        folder.mkdir()
    if what in ("yaml", "json", "recipe"):
        shutil.copytree(uninterrupted(RUNS["sgd"]), folder, dirs_exist_ok=True)
    if what == "yaml":
        (folder / "config.yaml").write_text("optimizer: [")
    if what == "json":
        (folder / "environment.json").write_text("{")
    if what == "recipe":
        environment = json.loads((folder / "environment.json").read_text())
        environment["recipes"]["optimizer"] = "os.system"
        (folder / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(InputError, match=f"resume={folder}: "):
        resumed(folder)


def test_a_run_with_a_former_name_of_an_option_says_so(run, resumed):
    folder = run([*RUNS["grouped_newton"], "trainer.epochs=1"]).folder
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8")
    assert "step_size:" in text
    path.write_text(text.replace("step_size:", "damping:"), encoding="utf-8")
    with pytest.raises(InputError, match="optimizer.damping has been renamed to step_size; rename it there"):
        resumed(folder)


@pytest.mark.parametrize(
    "change", [{"rate_median": 3}, {"controller": {"name": "overshoot", "target": -0.45}}]
)
def test_a_run_with_an_option_that_is_gone_says_so(run, resumed, change):
    folder = run([*RUNS["grouped_newton"], "trainer.epochs=1"]).folder
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["optimizer"] |= change
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    gone = "rate_median" if "rate_median" in change else "target"
    with pytest.raises(InputError, match=f"^resume={folder}: .*{gone}.*$"):
        resumed(folder)
