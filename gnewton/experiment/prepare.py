"""From a composed configuration to a run whose options are checked. Torch-free: bad options fail at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gnewton.data.dataset_options import NoData
from gnewton.errors import InputError
from gnewton.experiment.overrides import Override, parse_overrides
from gnewton.experiment.own_parts import absolute_imports, use_imports
from gnewton.experiment.places import with_absolute_places
from gnewton.experiment.resume import effective_config
from gnewton.experiment.schema import REGISTRIES, Settings, options_with
from gnewton.loggers import LOGGERS
from gnewton.options import Role, did_you_mean, listing, validate


def settings_from(config: DictConfig, overrides: Sequence[Override] = ()) -> Settings:
    """Check a composed configuration and turn it into typed settings.

    Args:
        config: what Hydra composed.
        overrides: those of the command line, so that one without effect can be refused.

    Raises:
        InputError: with one line per problem, each naming the option, its value and what is allowed.
    """
    problems = [*_unknown_keys(config, overrides), *missing(config)]
    if problems:
        raise InputError("\n".join(problems))
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, Settings)
    validate(settings)
    ineffective = list(_ineffective(settings, overrides))
    if ineffective:
        raise InputError("\n".join(ineffective))
    return settings


def _unknown_keys(node: DictConfig, overrides: Sequence[Override], path: str = "") -> Iterator[str]:
    """Keys that no schema has, which ``+key=value`` can add."""
    kind = OmegaConf.get_type(node)
    known = [entry.name for entry in fields(kind)] if kind is not None and is_dataclass(kind) else None
    for key in node:
        where = f"{path}.{key!s}" if path else str(key)
        if known is not None and key not in known:
            text = next((override.text for override in overrides if override.is_within(where)), where)
            yield f"{text}: no such option{did_you_mean(str(key), known)} (options: {listing(known, 20)})"
        elif isinstance(child := node._get_node(key), DictConfig):  # one without a value has no keys
            yield from _unknown_keys(child, overrides, where)


def missing(config: DictConfig) -> Iterator[str]:
    """One message for each option that has no value."""
    for key in sorted(OmegaConf.missing_keys(config)):
        yield f"{key}: has no value; give it one with {key}=…"


def _ineffective(settings: Settings, overrides: Sequence[Override]) -> Iterator[str]:
    optimizer, target = settings.optimizer, settings.trainer.target
    labels = {f"{registry.kind.replace('/', '.')}.name": registry.kind for registry in REGISTRIES}
    labels["trainer.name"] = "trainer"
    labels |= {f"logger.{name}.name": "logger" for name in LOGGERS.names()}
    without_effect = {f"optimizer.{name}": reason for name, reason in optimizer.ineffective()}
    samples = options_with(Role.SAMPLES)
    for override in overrides:
        key, text = override.key, override.text
        if key in labels:
            yield f"{text}: a label of the chosen file; choose another one with {labels[key]}=…"
        if override.is_within("partition") and not optimizer.uses_partition:
            yield f"{text}: has no effect, optimizer={optimizer.name} uses no partition"
        if key in without_effect:
            yield f"{text}: has no effect, {without_effect[key]}"
        if key == "trainer.batch_size" and optimizer.full_batch:
            yield f"{text}: has no effect, optimizer={optimizer.name} always takes all training samples"
        if key in samples and isinstance(settings.data, NoData):
            yield f"{text}: has no effect, data={settings.data.name} has no samples"
        if key == "trainer.max_recoveries" and settings.trainer.on_nonfinite == "stop":
            yield f"{text}: has no effect with trainer.on_nonfinite=stop"
        if key == "trainer.rollback_factor" and settings.trainer.on_nonfinite != "rollback":
            yield f"{text}: has no effect without trainer.on_nonfinite=rollback"
        if key == "trainer.target.metric" and target.value is None:
            yield f"{text}: has no effect without trainer.target.value"
        if key == "trainer.early_stop.metric" and not settings.trainer.early_stop.watches:
            yield f"{text}: has no effect without trainer.early_stop.patience or bounds"


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
        overrides: the command line's overrides, see :func:`gnewton.experiment.prepare.settings_from`.

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
