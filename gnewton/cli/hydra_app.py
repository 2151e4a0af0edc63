"""Hydra's own command line behind ``gnewton train``: its flags work, and its errors become ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gnewton.cli.composer import for_resumed_run, split_flags
from gnewton.cli.explain import REFUSALS, explain
from gnewton.errors import FULL_ERROR, GnewtonError, InputError, Interrupted
from gnewton.experiment.overrides import Override
from gnewton.experiment.places import config_folder
from gnewton.experiment.schema import register_schemas

Task = Callable[[DictConfig, list[str]], None]

_WITHOUT_EFFECT = ("hydra.run", "hydra.sweep", "hydra.output_subdir", "hydra.job.chdir")
"""Options of Hydra that move the outputs of its own programs; a run makes its folder itself."""


def run_hydra(arguments: list[str], task: Task) -> None:
    """Let Hydra compose a configuration from ``arguments`` and hand it to ``task`` with the overrides.

    Hydra's flags (``--cfg``, ``--info``, ``--multirun``, ``-sc``, …) work as documented by Hydra.

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
        main()
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
