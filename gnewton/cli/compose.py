"""Compose one configuration outside of Hydra's own command line."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gnewton.cli.explain import explain
from gnewton.errors import InputError
from gnewton.experiment.inline import inlined
from gnewton.experiment.locate import config_folder
from gnewton.experiment.schema import register_schemas


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration that ``gnewton train OVERRIDES`` would run.

    Raises:
        InputError: naming the override, its value and what is allowed.
    """
    register_schemas()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return inlined(compose("config", overrides=list(overrides)))
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, overrides) from error
