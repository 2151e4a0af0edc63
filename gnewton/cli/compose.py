"""Compose one configuration outside of Hydra's own command line."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from gnewton.cli.explain import explained
from gnewton.cli.overrides import prepared
from gnewton.experiment.inline import inlined
from gnewton.experiment.locate import config_folder
from gnewton.experiment.schema import register_schemas


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration that ``gnewton train OVERRIDES`` would run.

    Raises:
        InputError: naming the override, its value and what is allowed.
    """
    register_schemas()
    overrides = prepared(overrides)
    with explained(overrides), initialize_config_dir(str(config_folder()), version_base="1.3"):
        return inlined(compose("config", overrides=list(overrides)))
