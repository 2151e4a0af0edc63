"""The composition root: builds everything from settings, trains, and leaves a run folder behind."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import gnewton
from gnewton.compilation import require_compiler
from gnewton.errors import Diverged, GnewtonError, InputError, Interrupted
from gnewton.experiment.build import Parts, build_parts, problem_of
from gnewton.experiment.check import settings_from
from gnewton.experiment.device import choose_device, prepare_torch
from gnewton.experiment.environment import describe_environment
from gnewton.experiment.folder import config_hash, create_run_folder, dotted, held, write_json, write_text
from gnewton.experiment.places import with_absolute_places
from gnewton.experiment.resume import effective_config, recipes_of, recorded_digest, trajectory_hash
from gnewton.experiment.schema import Settings
from gnewton.loggers import GuardedLoggers, RunCard
from gnewton.runfiles import (
    CONFIG_FILE,
    DATA_DIGEST,
    DIVERGED,
    ENVIRONMENT_FILE,
    FAILED,
    INTERRUPTED,
    LOG_FILE,
    RESULT_FILE,
)
from gnewton.training.outcome import Outcome
from gnewton.training.ratelog import RateLog
from gnewton.training.resume import resume
from gnewton.training.trainer import Trainer
from gnewton.training.world import World, join_world

log = logging.getLogger("gnewton")

CHECKPOINT_FORMAT = "6"
"""Changes with what a checkpoint holds: one of another format cannot be continued."""

_STATUS = {Diverged: DIVERGED, Interrupted: INTERRUPTED, KeyboardInterrupt: INTERRUPTED}


@dataclass(frozen=True)
class Report:
    """Where a run left its files (None in a process that writes none), and how it ended."""

    folder: Path | None
    outcome: Outcome


def run(config: DictConfig, overrides: Sequence[str] = (), command: Sequence[str] | None = None) -> Report:
    """Run one experiment.

    Args:
        config: a configuration composed by Hydra from the schemas of this package.
        overrides: the command line's overrides, see :func:`gnewton.experiment.check.settings_from`.
        command: the command line for environment.json, by default that of this process.

    Returns:
        the run folder and the outcome.

    Raises:
        InputError: if an option, a file or the combination of the chosen parts is not what it should be;
            no run folder is left then.
        Diverged, Interrupted: see :meth:`gnewton.training.trainer.Trainer.fit`.
    """
    config = effective_config(config, overrides)
    settings = settings_from(config, overrides)
    config = with_absolute_places(config)
    place = Path(settings.resume) if settings.resume is not None else None
    with join_world(settings.trainer.device) as world:
        device = choose_device(settings.trainer.device, world.local_rank)
        prepare_torch(settings.trainer, settings.seed)
        for option, instead in settings.compiled():
            require_compiler(device, option, instead)
        parts = build_parts(settings, device, world)
        _require_same_data(parts, place)
        torch.manual_seed(settings.seed + world.rank)  # the processes drop out units of their own
        rate_log = RateLog() if parts.partition is not None else None
        record = rate_log.record if rate_log is not None else None
        optimizer = settings.optimizer.build(problem_of(settings, parts, world, record))
        environment = describe_environment(device, command or sys.argv, overrides)
        loggers = GuardedLoggers({name: recipe.build() for name, recipe in settings.logger.items()})
        environment |= {"processes": world.size, "recipes": recipes_of(config)}
        environment |= {DATA_DIGEST: parts.data.digest} if parts.data.digest is not None else {}
        folder = (place or _start_folder(config, settings, environment)) if world.writes else None
        with _disk_explained(folder), _held(folder), _log_file(folder):
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
                identity=_identity(config, settings, device, world),
                world=world,
                logger=loggers if world.writes else None,
            )
            if place is not None:
                resume(trainer, place)
                world.agree(0, device)  # all of them have read before one of them writes
                if folder is not None:
                    _continue_folder(folder, config, environment, trainer.step)
            with _failure_recorded(folder, trainer), _reporting(loggers, folder, config, trainer.step):
                outcome = trainer.fit()
                if folder is not None:
                    write_json(folder / RESULT_FILE, asdict(outcome))
            log.info("%s: results in %s", outcome.status, folder)
    return Report(folder, outcome)


def _require_same_data(parts: Parts, place: Path | None) -> None:
    """A run that is continued keeps its data, wherever they are now.

    Raises:
        InputError: if they are others.
    """
    before = recorded_digest(place) if place is not None else None
    if before not in (None, parts.data.digest):
        raise InputError(
            f"resume={place}: data={parts.data.name} holds other data than when the run was begun "
            f"(digest {parts.data.digest}, not {before})"
        )


def _start_folder(config: DictConfig, settings: Settings, environment: dict[str, Any]) -> Path:
    """A new run folder that says what is run, and on what."""
    folder = create_run_folder(Path(settings.output_root).expanduser() / settings.name, config_hash(config))
    try:
        with _disk_explained(folder):
            write_json(folder / ENVIRONMENT_FILE, environment)
            write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
    except GnewtonError:  # a folder that says nothing is of no use
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _continue_folder(folder: Path, config: DictConfig, environment: dict[str, Any], step: int) -> None:
    """Note in a run folder that the run goes on, from which step, on what, and with which options."""
    (folder / RESULT_FILE).unlink(missing_ok=True)
    saved = config.copy()
    saved.resume = None
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(saved, resolve=True))
    first = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    again = {"step": step, **environment}
    write_json(folder / ENVIRONMENT_FILE, first | {"resumed": [*first.get("resumed", []), again]})


def _identity(config: DictConfig, settings: Settings, device: torch.device, world: World) -> dict[str, str]:
    """What a checkpoint must agree on so that continuing it gives the run it was taken from."""
    return {
        "format": CHECKPOINT_FORMAT,
        "version": gnewton.__version__,
        "config": trajectory_hash(config, settings.optimizer.schedule.follows_length),
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


@contextmanager
def _failure_recorded(folder: Path | None, trainer: Trainer) -> Iterator[None]:
    """result.json and train.log say how a run failed, whatever the reason."""
    try:
        yield
    except BaseException as error:
        if folder is None:
            raise
        status = next((name for kind, name in _STATUS.items() if isinstance(error, kind)), FAILED)
        message = str(error) or type(error).__name__
        with suppress(OSError):  # the disk may be what failed
            write_json(folder / RESULT_FILE, {"status": status, "step": trainer.step, "message": message})
            log.error("%s: %s", status, message)
        raise


def _reporting(
    loggers: GuardedLoggers, folder: Path | None, config: DictConfig, step: int
) -> AbstractContextManager[None]:
    """The loggers of a run, in the process that writes it."""
    if folder is None:
        return nullcontext()
    return loggers.reporting(RunCard(folder, str(config.name), dotted(config), step))


@contextmanager
def _disk_explained(folder: Path | None) -> Iterator[None]:
    """One message for an error of the file system: a full disk, missing permissions, a folder that is gone.

    Raises:
        GnewtonError: in its place, naming the run folder, or the file where it lies elsewhere.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or folder is None:
            raise
        name = error.filename
        elsewhere = name is not None and not Path(str(name)).absolute().is_relative_to(folder.absolute())
        where, what = (name, "cannot be read") if elsewhere else (folder, "cannot be written")
        raise GnewtonError(f"{where}: {what} ({error.strerror})") from error


def _held(folder: Path | None) -> AbstractContextManager[None]:
    return held(folder) if folder is not None else nullcontext()


class _LogFile(logging.FileHandler):
    """train.log; its lines may be lost on a full disk, where what matters more fails by itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing, where logging itself would print a traceback for each line."""

    def close(self) -> None:
        """Close, whatever is left to write."""
        with suppress(OSError):
            super().close()


@contextmanager
def _log_file(folder: Path | None) -> Iterator[None]:
    """The log goes to train.log too, whatever is shown; without a folder nothing is logged at all."""
    if folder is None:
        log.disabled = True
        try:
            yield
        finally:
            log.disabled = False
        return
    handler = _LogFile(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()
