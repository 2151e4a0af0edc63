"""``gnewton train``: one run, or with ``--multirun`` one for each combination, by Hydra's command line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gnewton.cli.composer import for_resumed_run, only_shows, run_jobs, split_flags
from gnewton.cli.explain import REFUSALS, explain
from gnewton.errors import FULL_ERROR, GnewtonError, InputError, Interrupted
from gnewton.experiment.overrides import Override
from gnewton.experiment.places import config_folder
from gnewton.experiment.schema import register_schemas

log = logging.getLogger("gnewton")


def run(arguments: list[str]) -> int:
    """Train as configured by the overrides in ``arguments``; returns 0 or raises."""
    if "-h" in arguments or "--help" in arguments:
        from gnewton.cli.option_help import help_on_options

        print(help_on_options(arguments) or _help())
        return 0

    def train(config: DictConfig, overrides: list[str]) -> None:
        from gnewton.experiment.prepare import prepare

        prepared = prepare(config, overrides)  # a bad option is answered before torch is loaded
        if "torch" not in sys.modules:
            log.info("%s: model %s, data %s, optimizer %s; loading torch", *_parts(config))
        from gnewton.experiment.run import run as run_experiment

        run_experiment(prepared, ["gnewton", "train", *arguments], _draw)

    run_hydra(arguments, train)
    return 0


def _draw(folder: Path, place: Path) -> dict[str, Path]:
    """The plots of a run for its loggers; Matplotlib is loaded for a run that has loggers."""
    from gnewton.report.plots.training_plots import write_run_plots

    return write_run_plots(folder, place)


def _parts(config: DictConfig) -> tuple[str, ...]:
    return (str(config.name), *(str(config[part].name) for part in ("model", "data", "optimizer")))


def _help() -> str:
    from gnewton.cli.choices import describe_choices
    from gnewton.cli.option_help import help_on_settings

    return f"""usage: gnewton train [GROUP=CHOICE ...] [OPTION=VALUE ...] [--multirun]

Trains a model and leaves a run folder with metrics.csv, steps.csv, rates.csv, train.log and checkpoints.

examples:
  gnewton train                                              GroupedNewton on the embedded digits
  gnewton train model=mlp data=cifar10 optimizer=sgd optimizer.lr=0.01
  gnewton train experiment=mlp_mnist trainer=quick           an experiment, cut short
  gnewton train --multirun optimizer=sgd,adam seed=0,1,2     one run for each combination
  gnewton train resume=outputs/NAME/RUN                      continue a run that was stopped or killed

The choices in each group, the default marked by *:

{describe_choices(details=True)}
The options of a choice, each with its default, are listed beside it:

  gnewton train optimizer=adam trainer=default --help

Options that belong to no choice:

{help_on_settings()}

flags:
  --cfg job            print the composed configuration, every option of which can be set, and stop
  --info [WHAT]        say how the configuration was composed, and stop
  -m, --multirun       run every combination of comma-separated values
  -sc install=bash     print the shell's completion script: eval "$(gnewton train -sc install=bash)"
  --hydra-help         the remaining flags, all of them Hydra's"""


Task = Callable[[DictConfig, list[str]], None]

_WITHOUT_EFFECT = ("hydra.run", "hydra.sweep", "hydra.output_subdir", "hydra.job.chdir")
"""Options of Hydra that move the outputs of its own programs; a run makes its folder itself."""


def run_hydra(arguments: list[str], task: Task) -> None:
    """Compose a configuration from ``arguments`` and hand it to ``task`` with the overrides.

    Hydra's flags (``--cfg``, ``--info``, ``--multirun``, ``-sc``, …) work as documented by Hydra. The
    configuration of a run is composed once; Hydra's own command line would compose it a second time.

    With ``--multirun`` the other jobs run on when one ends in a :class:`GnewtonError`, unless a signal ended
    it; the errors are raised at the end.

    Raises:
        InputError: for what Hydra or OmegaConf refuses.
        GnewtonError: what ``task`` raised.
    """
    register_schemas()
    overrides, flags = split_flags(arguments)
    _require_effect(overrides)
    overrides = for_resumed_run(overrides)
    ended: list[GnewtonError] = []
    defects: list[Exception] = []

    def job(config: DictConfig) -> None:
        if any(isinstance(error, Interrupted) for error in ended):
            return
        try:  # kept for later, since Hydra would print a second message of its own
            task(config, list(HydraConfig.get().overrides.task))
        except GnewtonError as error:
            ended.append(error)
        except OmegaConfBaseException as error:  # values are resolved when they are read
            if full_error == "1":
                raise
            ended.append(explain(error, overrides))
        except Exception as error:
            defects.append(error)
            raise

    main = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)
    argv, full_error = sys.argv, os.environ.get(FULL_ERROR)
    # Overrides first: Hydra's parser knows no flag between two of them.
    sys.argv = ["gnewton", *(override.text for override in overrides), *flags]
    os.environ[FULL_ERROR] = "1"  # Hydra raises its errors, instead of printing them and exiting
    try:
        if only_shows(flags):
            main()
        else:
            run_jobs(overrides, flags, job)
    except REFUSALS as error:
        if full_error == "1" or error in defects:
            raise
        raise explain(error, overrides) from error
    finally:
        sys.argv = argv
        if full_error is None:
            os.environ.pop(FULL_ERROR, None)
        else:
            os.environ[FULL_ERROR] = full_error
    if ended:
        raise _combined(ended)


def _require_effect(overrides: Iterable[Override]) -> None:
    for override in overrides:
        if override.value is not None and override.is_within(*_WITHOUT_EFFECT):
            raise InputError(f"{override.text}: has no effect, a run makes its folder under output_root")


def _combined(errors: list[GnewtonError]) -> GnewtonError:
    """One error for all jobs: a signal, else the first, with the messages of all."""
    first = next((error for error in errors if isinstance(error, Interrupted)), errors[0])
    if len(errors) > 1:
        first.args = ("\n".join(dict.fromkeys(str(error) for error in errors)),)
    return first
