"""Loggers get the rows of the CSV files, end no run, and are refused where a package is missing."""

from __future__ import annotations

import logging
import re
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image

from gnewton.errors import Diverged, InputError
from gnewton.experiment.folder import config_hash
from gnewton.experiment.resume import trajectory_hash
from gnewton.loggers import LOGGERS, GuardedLoggers, Logger, RunCard
from gnewton.loggers.trackers import MlflowLogger, TensorBoardLogger, WandbLogger
from gnewton.report.plots.training_plots import write_run_plots
from gnewton.report.runs import read_run
from gnewton.report.setups import group_runs
from gnewton.runfiles import RESULT_FILE
from tests.conftest import SMALL

SHORT = [*SMALL, "trainer.epochs=2", "trainer.log_every=2"]
PNG = b"\x89PNG\r\n\x1a\n"
LOGGED = ("train_loss", "validation_accuracy", "lr")


class Kept(Logger):
    """Keeps every row."""

    def __init__(self):
        self.cards, self.metric_rows, self.step_rows, self.rate_rows, self.ends = [], [], [], [], []
        self.images = []

    def start(self, card):
        self.cards.append(card)

    def metrics(self, row):
        self.metric_rows.append(dict(row))

    def steps(self, row):
        self.step_rows.append(dict(row))

    def rates(self, rows):
        self.rate_rows.extend(map(dict, rows))

    def image(self, name, file, step):
        self.images.append((name, file.read_bytes()[:8], step))

    def finish(self, ended_well):
        self.ends.append(ended_well)


class Broken(Kept):
    """A logger one of whose methods fails."""

    def __init__(self, method):
        super().__init__()
        self.calls = 0

        def fail(*arguments, **options):
            self.calls += 1
            raise ConnectionError("the service is away\nand more")

        setattr(self, method, fail)


@pytest.fixture
def with_loggers(monkeypatch):
    """Put these loggers in place of those of the configuration."""

    def put(**loggers):
        monkeypatch.setattr("gnewton.experiment.run.GuardedLoggers", lambda _: GuardedLoggers(loggers))

    return put


def values(frame, column):
    return [None if pd.isna(value) else value for value in frame[column]]


def test_loggers_get_the_rows_of_the_csv_files(run, with_loggers):
    kept = Kept()
    with_loggers(kept=kept)
    report = run(SHORT)
    (card,) = kept.cards
    assert (card.folder, card.step, card.experiment) == (report.folder, 0, "mlp-digits-grouped_newton")
    assert card.config["optimizer.curvature.batch_size"] == 20
    metrics, rates = (pd.read_csv(report.folder / f"{name}.csv") for name in ("metrics", "rates"))
    for column in metrics:
        assert [row.get(column) for row in kept.metric_rows] == pytest.approx(values(metrics, column)), column
    steps = pd.read_csv(report.folder / "steps.csv")
    for column in steps:
        assert [row[column] for row in kept.step_rows] == values(steps, column)
    assert len(kept.rate_rows) == len(rates) > 0
    for column in ("step", "group", "rate", "gradient", "status"):
        assert [row[column] for row in kept.rate_rows] == values(rates, column)
    assert kept.ends == [True]


@pytest.mark.parametrize("method", ["start", "metrics", "steps", "rates", "image", "finish"])
def test_a_logger_that_fails_affects_nothing_else(run, with_loggers, caplog, method):
    broken, kept = Broken(method), Kept()
    with_loggers(broken=broken, kept=kept)
    with caplog.at_level(logging.WARNING, "gnewton"):
        report = run(SHORT, draw=write_run_plots)
    assert report.outcome.status == "done"
    assert broken.calls == 1
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    message = "logger broken failed and is left out from here on: the service is away"
    assert warning.getMessage() == message
    assert message in (report.folder / "train.log").read_text()
    assert len(kept.metric_rows) == 3
    assert kept.ends == [True]


def test_loggers_get_the_rates_of_a_run_as_a_plot(run, with_loggers):
    kept = Kept()
    with_loggers(kept=kept)
    run(SHORT, draw=write_run_plots)
    assert kept.images == [("plots/rates", PNG, 6)]
    adam = [option for option in SHORT if "curvature" not in option]
    run([*adam, "optimizer=adam"], draw=write_run_plots)
    assert len(kept.images) == 1  # it has no rates of groups


@pytest.mark.parametrize("kind", [InputError, ValueError, ImportError])
def test_a_plot_that_cannot_be_drawn_costs_no_run(run, with_loggers, caplog, kind):
    def draw(folder, place):
        raise kind("rates.csv cannot be read\nand more")

    kept = Kept()
    with_loggers(kept=kept)
    assert run(SHORT, draw=draw).outcome.status == "done"
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.getMessage() == "the loggers get no plots: rates.csv cannot be read"
    assert (kept.images, kept.ends) == ([], [True])


def test_a_command_draws_for_loggers_only(cli, monkeypatch):
    kept = Kept()
    monkeypatch.setattr("gnewton.loggers.trackers.TensorBoardRecipe.build", lambda self: kept)
    assert cli(["train", *SHORT, "logger=tensorboard"]).code == 0
    assert [name for name, *_ in kept.images] == ["plots/rates"]
    monkeypatch.setattr("gnewton.report.plots.training_plots.write_run_plots", None)
    assert cli(["train", *SHORT]).code == 0


def test_plots_of_an_inspection_go_to_the_loggers_of_the_run(cli, monkeypatch, tmp_path):
    kept, chosen = Kept(), Kept()
    for name, logger in (("tensorboard", kept), ("mlflow", chosen)):
        monkeypatch.setattr(LOGGERS[name], "conflicts", lambda self: iter(()))
        monkeypatch.setattr(LOGGERS[name], "build", lambda self, logger=logger: logger)
    assert cli(["train", *SHORT, "trainer.epochs=1", "logger=tensorboard"]).code == 0
    (folder,) = (tmp_path / "outputs").glob("*/*")
    kept.__init__()
    sent = [(f"inspection/{name}", PNG, 3) for name in ("hessian", "rates", "spectrum", "distances")]
    assert cli(["inspect", str(folder)]).code == 0
    (card,) = kept.cards
    assert (card.folder, card.step, card.trains) == (folder, 3, False)
    assert (kept.images, kept.ends, kept.metric_rows) == (sent, [True], [])
    assert cli(["inspect", str(folder), "logger=mlflow"]).code == 0
    assert (chosen.images, len(kept.images)) == (sent, 4)
    assert cli(["inspect", str(folder), "--no-plots"]).code == 0
    assert len(kept.images) == 4
    answer = cli(["inspect", "logger=tensorboard"])
    assert (answer.code, answer.err) == (
        2,
        "gnewton: logger=tensorboard: has no effect on gnewton inspect\n",
    )


def test_loggers_learn_that_a_run_has_diverged(run, with_loggers):
    kept = Kept()
    with_loggers(kept=kept)
    baseline = [option for option in SHORT if "curvature" not in option]
    with pytest.raises(Diverged):
        run([*baseline, "optimizer=sgd", "optimizer.lr=1e30"])
    assert kept.ends == [False]


def test_a_resumed_run_goes_on_under_the_loggers_it_has(run, with_loggers):
    first, second = Kept(), Kept()
    with_loggers(kept=first)
    folder = run([*SHORT, "optimizer/schedule=constant", "trainer.epochs=1"]).folder
    with_loggers(kept=second)
    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    run_experiment(prepare(_resumed(folder, "trainer.epochs=2"), [f"resume={folder}", "trainer.epochs=2"]))
    assert second.cards[0].step == 3
    assert [row["step"] for row in second.metric_rows] == [6]


def _resumed(folder, *overrides):
    from gnewton.cli.composer import Composer
    from gnewton.experiment.overrides import parse_overrides

    return Composer().compose(parse_overrides([f"resume={folder}", *overrides]))


def test_none_is_the_default_and_several_can_be_chosen(compose):
    assert dict(compose().logger) == {}
    chosen = compose(["logger=[wandb,tensorboard]", "logger.wandb.project=mine"]).logger
    assert sorted(chosen) == ["tensorboard", "wandb"]
    assert chosen.wandb.project == "mine"


def test_loggers_do_not_change_a_run(compose, run, tmp_path):
    plain, logged = compose(), compose(["logger=[mlflow,wandb]"])
    assert config_hash(plain) == config_hash(logged)
    assert trajectory_hash(plain, False) == trajectory_hash(logged, False)
    pytest.importorskip("tensorboard")
    folders = [run([*SHORT, *extra]).folder for extra in ([], ["logger=tensorboard"])]
    setups, _ = group_runs(map(read_run, folders))
    assert len(setups) == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_refused_before_any_work(cli, monkeypatch, tmp_path, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    answer = cli(["train", f"logger={name}"])
    assert answer.code == 2
    package = LOGGERS[name].package
    assert answer.err == (
        f"gnewton: logger.{name}.name={name}: needs the package {package}: "
        f"pip install 'gnewton[{LOGGERS[name].extra}]'\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logger=tensorbord"], "logger=tensorbord: must be one of mlflow, tensorboard, wandb; did you mean"),
        (["logger=[wandb,x]"], "logger=x: must be one of mlflow, tensorboard, wandb"),
        (["logger=wandb", "logger.wandb.mode=off"], "logger.wandb.mode=off: must be one of online, offline"),
        (["logger.wandb.mode=offline"], "no such option; choose it first, with logger=wandb"),
        (["logger=tensorboard", "logger.tensorboard.flush_seconds=0"], "must be a whole number >= 1"),
        (["logger=wandb", "logger.wandb.name=x"], "logger.wandb.name=x: a label of the chosen file"),
    ],
)
def test_bad_options_are_refused(cli, monkeypatch, overrides, message):
    monkeypatch.setattr("gnewton.loggers.LoggerRecipe.conflicts", lambda self: iter(()))
    answer = cli(["train", *overrides])
    assert answer.code == 2
    assert message in answer.err


def check_scalars(report, scalars):
    """``scalars(name)`` must give the (step, value) pairs of the CSV files."""
    metrics, rates = (pd.read_csv(report.folder / f"{name}.csv") for name in ("metrics", "rates"))
    for column in LOGGED:
        steps, logged = zip(*scalars(column), strict=True)
        known = metrics[metrics[column].notna()]  # the running loss begins after step 0
        assert list(steps) == known["step"].tolist()
        assert list(logged) == pytest.approx(known[column].tolist(), rel=1e-6)  # some keep float32
    by_step = pd.read_csv(report.folder / "steps.csv")
    for column in ("loss", "lr"):
        steps, logged = zip(*scalars(f"step/{column}"), strict=True)
        assert list(steps) == by_step["step"].tolist()
        assert list(logged) == pytest.approx(by_step[column].tolist(), rel=1e-6)
    for group, rows in rates.groupby("group"):
        steps, logged = zip(*scalars(f"rate/{group}"), strict=True)
        assert list(steps) == rows["step"].tolist()
        assert list(logged) == pytest.approx(rows["rate"].tolist(), rel=1e-6)


def add_image(logger, folder, step):
    """Add an image of 3 × 2 pixels to a run that has ended; the file is gone when the logger closes."""
    file = folder / "small.png"
    Image.new("RGB", (3, 2), "red").save(file)
    logger.start(RunCard(folder, "name", {}, step, trains=False))
    logger.image("inspection/small", file, step)
    file.unlink()
    logger.finish(True)


def test_tensorboard(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = run([*SHORT, "logger=tensorboard"], draw=write_run_plots)
    add_image(TensorBoardLogger(30), report.folder, step=3)  # of a checkpoint before the end
    events = EventAccumulator(str(report.folder / "tensorboard"))
    events.Reload()
    check_scalars(report, lambda name: [(event.step, event.value) for event in events.Scalars(name)])
    ((rates,), (added,)) = (events.Images(name) for name in ("plots/rates", "inspection/small"))
    assert (rates.step, added.step, added.width, added.height) == (6, 3, 3, 2)
    assert rates.width > 500


def test_tensorboard_of_a_resumed_run(run):
    """Rows written after the checkpoint count once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    folder = run([*SHORT, "optimizer/schedule=constant", "trainer.epochs=1", "logger=tensorboard"]).folder
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["logger"] == {"tensorboard": {"name": "tensorboard", "flush_seconds": 30}}
    overrides = [f"resume={folder}", "trainer.epochs=3"]
    report = run_experiment(prepare(_resumed(folder, "trainer.epochs=3"), overrides))
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    check_scalars(report, lambda name: [(event.step, event.value) for event in events.Scalars(name)])


def test_mlflow(run, tmp_path):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    store = [f"logger.mlflow.tracking_uri={tmp_path / 'store'}", "logger.mlflow.experiment=mine"]
    folder = run([*SHORT, "optimizer/schedule=constant", "trainer.epochs=1", "logger=mlflow", *store]).folder
    overrides = [f"resume={folder}", "trainer.epochs=2"]
    report = run_experiment(prepare(_resumed(folder, "trainer.epochs=2"), overrides))
    client = MlflowClient(str(tmp_path / "store"))
    (entry,) = client.search_runs(
        [client.get_experiment_by_name("mine").experiment_id]
    )  # one, resumed or not
    assert entry.info.run_name == folder.name
    assert entry.info.status == "FINISHED"
    assert entry.data.params["optimizer.period"] == "10"

    def history(name):
        return [(metric.step, metric.value) for metric in client.get_metric_history(entry.info.run_id, name)]

    check_scalars(report, history)
    client.set_terminated(entry.info.run_id, "FAILED")
    add_image(MlflowLogger(str(tmp_path / "store"), "mine"), folder, step=3)
    (entry,) = client.search_runs([entry.info.experiment_id])
    assert entry.info.status == "FAILED"  # an addition leaves it as it was
    images = client.list_artifacts(entry.info.run_id, "images")
    (png,) = [file.path for file in images if file.path.endswith(".png")]
    assert "small" in png
    assert "3" in re.split(r"\W+", png)
    with Image.open(client.download_artifacts(entry.info.run_id, png)) as image:
        assert (image.size, image.getpixel((0, 0))) == ((3, 2), (255, 0, 0))


@pytest.mark.parametrize(
    ("overrides", "mode", "project"),
    [
        ((), None, "of-the-environment"),  # W&B looks for WANDB_MODE itself
        (("logger.wandb.mode=online", "logger.wandb.project=mine"), "online", "mine"),
    ],
)
def test_the_environment_of_wandb_counts_where_nothing_is_set(
    overrides, mode, project, compose, monkeypatch, tmp_path
):
    given = {}
    fake = SimpleNamespace(init=lambda **options: given.update(options), Settings=lambda **options: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "of-the-environment")
    recipe = OmegaConf.to_object(compose(["logger=wandb", *overrides]).logger.wandb)
    recipe.build().start(RunCard(tmp_path, "name", {}, 0))
    assert (given["mode"], given["project"], given["entity"]) == (mode, project, None)


@pytest.mark.parametrize(
    ("result", "code"), [('{"status": "done"}', 0), ('{"status": "diverged"}', 1), ("{", 1), (None, 1)]
)
@pytest.mark.parametrize("sent", [True, False])
def test_an_addition_leaves_wandb_the_options_and_the_end_of_the_run(
    result, code, sent, monkeypatch, tmp_path
):
    calls, codes = [], []
    wandb_run = SimpleNamespace(finish=lambda exit_code: codes.append(exit_code))

    def init(**options):
        calls.append(options)
        return wandb_run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **options: None))
    if result is not None:
        (tmp_path / RESULT_FILE).write_text(result)
    logger = WandbLogger(None, None, None)
    for trains in (False, True):
        logger.start(RunCard(tmp_path, "name", {"seed": 1}, 3, trains=trains))
        logger.finish(sent)
    assert [options["config"] for options in calls] == [None, {"seed": 1}]
    assert codes == [code, 0 if sent else 1]


def test_wandb_offline(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    report = run([*SHORT, "logger=wandb", "logger.wandb.mode=offline"])
    (file,) = (report.folder / "wandb").rglob("*.wandb")
    words = (b"validation_accuracy", b"rate/hidden1.weight", report.folder.name.encode())
    last = time.monotonic() + 20  # the process of W&B writes the file after the run has ended
    while not all(word in file.read_bytes() for word in words):
        assert time.monotonic() < last
        time.sleep(0.1)
    add_image(WandbLogger(None, None, "offline"), report.folder, step=3)
    (image,) = (report.folder / "wandb").rglob("media/images/**/*.png")
    with Image.open(image) as stored:
        assert stored.size == (3, 2)
