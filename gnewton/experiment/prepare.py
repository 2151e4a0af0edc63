"""From a composed configuration to a run whose options are checked. Torch-free: bad options fail at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from gnewton.experiment.check import settings_from
from gnewton.experiment.overrides import parse_overrides
from gnewton.experiment.own_parts import absolute_imports, use_imports
from gnewton.experiment.places import with_absolute_places
from gnewton.experiment.resume import effective_config
from gnewton.experiment.schema import Settings


@dataclass(frozen=True)
class Prepared:
    """A run whose options have been checked; nothing of it is built.

    Attributes:
        config: the configuration as the run folder keeps it: files read into it, places absolute.
        settings: the same, typed.
        overrides: the command line's overrides, for environment.json.
        resumed: the run folder to continue; None for a new run.
    """

    config: DictConfig
    settings: Settings
    overrides: tuple[str, ...]
    resumed: Path | None


def prepare(config: DictConfig, overrides: Sequence[str] = ()) -> Prepared:
    """Check a configuration; with ``resume=RUN_DIR``, that of the run to continue.

    Args:
        config: a configuration composed by Hydra from the schemas of this package.
        overrides: the command line's overrides, see :func:`gnewton.experiment.check.settings_from`.

    Raises:
        InputError: if an option, a file or their combination is not what it should be.
    """
    parsed = parse_overrides(overrides)
    config = effective_config(_with_own_parts(config), parsed)
    settings = settings_from(config, parsed)
    resumed = Path(settings.resume) if settings.resume is not None else None
    return Prepared(with_absolute_places(config), settings, tuple(overrides), resumed)


def _with_own_parts(config: DictConfig) -> DictConfig:
    """The configuration with absolute paths of the imports, which are loaded."""
    if config.imports:
        config = config.copy()
        config.imports = [entry for text in config.imports for entry in absolute_imports(text)]
        use_imports(config.imports)
    return config
