"""Hydra as the engine of a command: it composes, sweeps, explains; its errors become ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gnewton.cli.explain import REFUSALS, explain
from gnewton.cli.overrides import for_resumed_run, prepared, require_effect
from gnewton.errors import FULL_ERROR, GnewtonError, InputError, Interrupted
from gnewton.experiment.locate import config_folder
from gnewton.experiment.schema import register_schemas

Task = Callable[[DictConfig, list[str]], None]


def run_hydra(arguments: list[str], task: Task) -> None:
    """Let Hydra compose a configuration from ``arguments`` and hand it to ``task`` with the overrides.

    Hydra's own flags (``--cfg``, ``--info``, ``--multirun``, ``-sc``, …) work as documented by Hydra.

    With ``--multirun`` a job that ends in an error of ours does not keep the others from running, a signal
    does; the errors are raised at the end.

    Raises:
        InputError: for what Hydra or OmegaConf refuses.
        GnewtonError: what ``task`` raised.
    """
    register_schemas()
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
            if asked == "1":
                raise
            ended.append(explain(error, arguments))
        except Exception as error:
            defects.append(error)
            raise

    require_effect(arguments)
    arguments = _flags_last(for_resumed_run(prepared(arguments)))
    main = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)
    before, asked = sys.argv, os.environ.get(FULL_ERROR)
    # Hydra prints errors and exits on its own unless it is asked for the exception itself.
    sys.argv, os.environ[FULL_ERROR] = ["gnewton", *arguments], "1"
    try:
        main()
    except REFUSALS as error:
        if asked == "1" or error in defects:
            raise
        raise explain(error, arguments) from error
    finally:
        sys.argv = before
        if asked is None:
            os.environ.pop(FULL_ERROR, None)
        else:
            os.environ[FULL_ERROR] = asked
    if ended:
        raise _combined(ended)


def _flags_last(arguments: list[str]) -> list[str]:
    """The overrides, then the flags: Hydra's parser knows no flag between two overrides.

    Raises:
        InputError: for a flag that Hydra does not know, one message instead of its usage.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        dashed = next(
            (argument for argument in arguments if argument.startswith("--") and "=" in argument), None
        )
        hint = f"; options are given without dashes, as {dashed.lstrip('-')}" if dashed else ""
        hint = hint if "unrecognized" in message else ""
        raise InputError(f"train: {message}{hint}; see gnewton train --help")

    parser.error = refuse  # type: ignore[method-assign]
    overrides: list[str] = parser.parse_intermixed_args(arguments).overrides
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    return [*overrides, *flags]


def _combined(errors: list[GnewtonError]) -> GnewtonError:
    """One error for all jobs: a signal, else the first, with the messages of all."""
    first = next((error for error in errors if isinstance(error, Interrupted)), errors[0])
    if len(errors) > 1:
        first.args = ("\n".join(dict.fromkeys(str(error) for error in errors)),)
    return first
