"""``gnewton train``: one run, or with ``--multirun`` one for each combination of values."""

from __future__ import annotations

import logging
import sys

from omegaconf import DictConfig

log = logging.getLogger("gnewton")


def run(arguments: list[str]) -> int:
    """Train as configured by the overrides in ``arguments``; returns 0 or raises."""
    if "-h" in arguments or "--help" in arguments:
        from gnewton.cli.option_help import help_on_options

        print(help_on_options(arguments) or _help())
        return 0
    from gnewton.cli.hydra_app import run_hydra

    def train(config: DictConfig, overrides: list[str]) -> None:
        from gnewton.experiment.prepare import prepare

        prepared = prepare(config, overrides)  # a bad option is answered before torch is loaded
        if "torch" not in sys.modules:
            log.info("%s: model %s, data %s, optimizer %s; loading torch", *_parts(config))
        from gnewton.experiment.run import run as run_experiment

        run_experiment(prepared, ["gnewton", "train", *arguments])

    run_hydra(arguments, train)
    return 0


def _parts(config: DictConfig) -> tuple[str, ...]:
    return (str(config.name), *(str(config[part].name) for part in ("model", "data", "optimizer")))


def _help() -> str:
    from gnewton.cli.choices import describe_choices
    from gnewton.cli.option_help import help_on_settings

    return f"""usage: gnewton train [GROUP=CHOICE ...] [OPTION=VALUE ...] [--multirun]

Trains a model and leaves a run folder with metrics.csv, rates.csv, train.log and checkpoints.

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
