"""Runs: a prepared run is built, trained and leaves a run folder behind; short ones try learning rates."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import gnewton
from gnewton.backend import describe_environment, require_compiler
from gnewton.errors import Diverged, GnewtonError, InputError, first_line
from gnewton.experiment.build import Parts, build_parts, choose_device, prepare_torch, problem_of
from gnewton.experiment.folder import (
    config_hash,
    create_run_folder,
    disk_errors_explained,
    dotted,
    failure_recorded,
    held,
    log_file,
    write_json,
    write_text,
)
from gnewton.experiment.own_parts import digests
from gnewton.experiment.prepare import Prepared, prepare
from gnewton.experiment.resume import recipes_of, recorded_digest, trajectory_hash
from gnewton.loggers import GuardedLoggers, RunCard
from gnewton.options import user_path
from gnewton.runfiles import CONFIG_FILE, DATA_DIGEST, ENVIRONMENT_FILE, RESULT_FILE
from gnewton.training.ending import Outcome
from gnewton.training.runlog import RateLog
from gnewton.training.trainer import Trainer
from gnewton.training.world import World, join_world

log = logging.getLogger("gnewton")

CHECKPOINT_FORMAT = "11"
"""Changes with the content of a checkpoint: one of another format cannot be continued."""


@dataclass(frozen=True)
class Report:
    """Where a run left its files (None in a process that writes none), and how it ended."""

    folder: Path | None
    outcome: Outcome


Draw = Callable[[Path, Path], Mapping[str, Path]]
"""draw(run folder, where to put them) -> plots of a run that has ended, PNG files by name."""


def run(prepared: Prepared, command: Sequence[str] | None = None, draw: Draw | None = None) -> Report:
    """Run one experiment.

    Args:
        prepared: see :func:`gnewton.experiment.prepare.prepare`.
        command: the command line for environment.json, by default that of this process.
        draw: makes the plots that the loggers get at the end; None: they get none.

    Returns:
        the run folder and the outcome.

    Raises:
        InputError: if a file, the machine or the combination of the chosen parts is not what it should be;
            no run folder is left then.
        Diverged, Interrupted: see :meth:`gnewton.training.trainer.Trainer.fit`.
    """
    settings, resumed = prepared.settings, prepared.resumed
    with join_world(settings.trainer.device) as world:
        device = choose_device(settings.trainer.device, world.local_rank)
        prepare_torch(settings.trainer, settings.seed)
        for option, instead in settings.compiled():
            require_compiler(device, option, instead)
        parts = build_parts(settings, device, world)
        _require_same_data(parts, resumed)
        torch.manual_seed(settings.seed + world.rank)  # dropout differs between processes
        rate_log = RateLog() if parts.partition is not None else None
        record = rate_log.record if rate_log is not None else None
        optimizer = settings.optimizer.build(problem_of(settings, parts, world, record))
        environment = describe_environment(
            device, command or sys.argv, prepared.overrides, gnewton.__version__
        )
        environment |= {"processes": world.size, "recipes": recipes_of(prepared.config)}
        environment |= {"imports": digests(settings.imports)} if settings.imports else {}
        environment |= {DATA_DIGEST: parts.data.digest} if parts.data.digest is not None else {}
        loggers = GuardedLoggers({name: recipe.build() for name, recipe in settings.logger.items()})
        folder = (resumed or _start_folder(prepared, environment)) if world.writes else None
        with (
            disk_errors_explained(folder),
            held(folder) if folder is not None else nullcontext(),
            log_file(folder),
        ):
            log.info("run folder %s", folder)
            _describe(parts, device, world)
            trainer = Trainer(
                model=parts.model,
                data=parts.data,
                optimizer=optimizer,
                recipe=settings.optimizer,
                settings=settings.trainer,
                folder=folder,
                rate_log=rate_log,
                identity=_identity(prepared, device, world),
                world=world,
                logger=loggers if world.writes else None,
            )
            if resumed is not None:
                trainer.resume(resumed)
                world.barrier(device)  # every process reads before one of them writes
                if folder is not None:
                    _continue_folder(folder, prepared, environment, trainer.state.step)
            with (
                failure_recorded(folder, lambda: trainer.state.step),
                _reporting(loggers, folder, prepared, trainer.state.step),
            ):
                outcome = trainer.fit()
                if folder is not None:
                    write_json(folder / RESULT_FILE, asdict(outcome))
                if folder is not None and draw is not None and loggers:
                    _send_plots(loggers, draw, folder, trainer.state.step)
            log.info("%s: results in %s", outcome.status, folder)
    return Report(folder, outcome)


def _require_same_data(parts: Parts, resumed: Path | None) -> None:
    """A run that is continued keeps its data, wherever they are now.

    Raises:
        InputError: if they are others.
    """
    before = recorded_digest(resumed) if resumed is not None else None
    if before not in (None, parts.data.digest):
        raise InputError(
            f"resume={resumed}: data={parts.data.name} holds other data than when the run was begun "
            f"(digest {parts.data.digest}, not {before})"
        )


def _start_folder(prepared: Prepared, environment: dict[str, Any]) -> Path:
    """A new run folder that says what is run, and on what."""
    settings, config = prepared.settings, prepared.config
    folder = create_run_folder(user_path(settings.output_root) / settings.name, config_hash(config))
    try:
        with disk_errors_explained(folder):
            write_json(folder / ENVIRONMENT_FILE, environment)
            write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
    except GnewtonError:  # without these files the folder is of no use
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _continue_folder(folder: Path, prepared: Prepared, environment: dict[str, Any], step: int) -> None:
    """Note in a run folder that the run continues: from which step, on what, and with which options."""
    (folder / RESULT_FILE).unlink(missing_ok=True)
    config = prepared.config.copy()
    config.resume = None
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
    first = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    again = {"step": step, **environment}
    write_json(folder / ENVIRONMENT_FILE, first | {"resumed": [*first.get("resumed", []), again]})


def _identity(prepared: Prepared, device: torch.device, world: World) -> dict[str, str]:
    """What a checkpoint must agree on so that continuing it gives the run it was taken from."""
    follows_length = prepared.settings.optimizer.schedule.follows_length
    return {
        "format": CHECKPOINT_FORMAT,
        "version": gnewton.__version__,
        "config": trajectory_hash(prepared.config, follows_length),
        "device": device.type,
        "processes": str(world.size),
    }


def _describe(parts: Parts, device: torch.device, world: World) -> None:
    data = parts.data
    size = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    log.info("device %s, %s parameters", device, f"{size:,}")
    if world.size > 1:
        log.info("%s processes share every batch", world.size)
    sizes = tuple(len(split) for split in (data.train, data.validation, data.test))
    log.info("data %s: %s training, %s validation, %s test samples", data.name, *(f"{n:,}" for n in sizes))
    for remark in data.remarks:
        log.warning("%s", remark)
    if parts.partition is not None:
        log.info("partition: %s", parts.partition.describe())


def _send_plots(loggers: GuardedLoggers, draw: Draw, folder: Path, step: int) -> None:
    """Plots of a run that has ended to its loggers; one that cannot be drawn costs no run."""
    with tempfile.TemporaryDirectory() as place:
        try:
            plots = draw(folder, Path(place))
        except Exception as error:  # Matplotlib may raise any
            log.warning("the loggers get no plots: %s", first_line(error))
            return
        for name, file in plots.items():
            loggers.image(name, file, step)


def _reporting(
    loggers: GuardedLoggers, folder: Path | None, prepared: Prepared, step: int
) -> AbstractContextManager[None]:
    """The loggers of a run, in the process that writes it."""
    if folder is None:
        return nullcontext()
    return loggers.reporting(RunCard(folder, str(prepared.config.name), dotted(prepared.config), step))


METRICS = ("train_loss", "validation_loss", "validation_accuracy")
"""The metrics by which short runs are compared."""


@dataclass(frozen=True)
class RateChoice:
    """Learning rates to try: ``lr`` for all parameters without one of their own in ``rates``."""

    name: str
    lr: float
    rates: Mapping[str, float] | None = None


@dataclass(frozen=True)
class ShortRuns:
    """The result of one choice of rates.

    Attributes:
        choice: the rates.
        metrics: by name, one value per seed that did not diverge; none where the task has no such metric.
        diverged: how many seeds diverged.
    """

    choice: RateChoice
    metrics: Mapping[str, Sequence[float]]
    diverged: int

    def median(self, metric: str) -> float | None:
        """The median of a metric over the seeds; None where no seed has it."""
        values = self.metrics[metric]
        return statistics.median(values) if values else None


def try_rates(
    config: DictConfig, choices: Sequence[RateChoice], *, steps: int, seeds: Sequence[int], samples: int
) -> list[ShortRuns]:
    """Train from the initial weights for a few steps with each choice; nothing stays on the disk.

    Args:
        config: of the runs; its optimizer has ``lr`` and ``rates``.
        choices: the rates to try.
        steps: training steps of each run.
        seeds: those of the runs of each choice.
        samples: how many samples of each split the metrics are evaluated on.
    """
    results = []
    for choice in choices:
        values: dict[str, list[float]] = {metric: [] for metric in METRICS}
        diverged = 0
        for seed in seeds:
            with tempfile.TemporaryDirectory(prefix="gnewton-check-") as folder:
                try:
                    report = run(prepare(_configured(config, choice, steps, seed, samples, folder)))
                except Diverged:
                    diverged += 1
                    continue
            for metric in METRICS:
                value = report.outcome.metrics.get(metric)
                if value is not None:
                    values[metric].append(float(value))
        results.append(ShortRuns(choice, values, diverged))
    return results


def _configured(
    config: DictConfig, choice: RateChoice, steps: int, seed: int, samples: int, folder: str
) -> DictConfig:
    config = config.copy()
    changes = {
        "name": "check",
        "output_root": folder,
        "resume": None,
        "logger": {},
        "seed": seed,
        "optimizer.lr": choice.lr,
        "optimizer.rates": dict(choice.rates) if choice.rates is not None else None,
        "trainer.epochs": steps,  # the limit of steps ends it
        "trainer.max_steps": steps,
        "trainer.max_seconds": None,
        "trainer.target.value": None,
        "trainer.checkpoint_every": f"{steps + 1} steps",
        "trainer.progress": "lines",
        "trainer.evaluation.every": steps,
        "trainer.evaluation.train": True,
        "trainer.evaluation.max_samples": samples,
    }
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False)
    return config
