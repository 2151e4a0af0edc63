"""Reads the files that a configuration names into it, so that the saved configuration is complete."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gnewton.errors import InputError
from gnewton.optim.options.baselines import read_rates

RATES = "optimizer.rates"


def inlined(config: DictConfig) -> DictConfig:
    """The configuration with the content of a file of learning rates in place of its path.

    Raises:
        InputError: if the file cannot be read.
    """
    path = OmegaConf.select(config, RATES)
    if not isinstance(path, str):
        return config
    try:
        rates = read_rates(Path(path).expanduser())
    except InputError as error:
        raise InputError(f"{RATES}={path}: {error}") from error
    config = config.copy()
    OmegaConf.update(config, RATES, rates, merge=False)
    return config
