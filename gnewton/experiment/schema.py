"""The typed schema of the whole configuration, made known to Hydra. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from gnewton.data.dataset_options import DATA, DataRecipe
from gnewton.loggers import LOGGERS, LoggerRecipe
from gnewton.models import MODELS, ModelRecipe
from gnewton.optim.options import AVERAGINGS, CONTROLLERS, DIRECTIONS, OPTIMIZERS, SCHEDULES, OptimizerRecipe
from gnewton.options import ABSENT, Role, declaration, default_of, option
from gnewton.partition import PARTITIONS, PartitionRecipe
from gnewton.registry import Registry
from gnewton.training.settings import TrainerSettings

REGISTRIES: tuple[Registry, ...] = (
    MODELS,
    DATA,
    PARTITIONS,
    OPTIMIZERS,
    SCHEDULES,
    DIRECTIONS,
    AVERAGINGS,
    CONTROLLERS,
    LOGGERS,
)


@dataclass(kw_only=True)
class Settings:
    """Everything a run depends on."""

    name: str = option(
        "${model.name}-${data.name}-${optimizer.name}",
        help="folder of the run under output_root",
        role=Role.LABEL,
    )
    seed: int = option(
        0,
        help="decides the initial weights, the order of the samples and every other random draw",
        at_least=0,
        below=2**32,
    )
    output_root: str = option("outputs", help="where run folders are made", role=Role.PLACE | Role.OUTPUT)
    resume: str | None = option(
        None,
        help="a run folder: continue that run, as its config.yaml has it; null: start a new one",
        role=Role.PATH | Role.OUTPUT,
    )
    imports: list[str] = option(
        [],
        help="files and modules with parts of your own, loaded before choices are looked up; on the command "
        "line import=FILE.py",
        before=[],
        role=Role.RESUMABLE,
    )
    model: ModelRecipe = option(help="the network, or the function to minimise")
    data: DataRecipe = option(help="the data set")
    partition: PartitionRecipe = option(help="the groups of parameters that share a rate", role=Role.VIEW)
    optimizer: OptimizerRecipe = option(help="the method and its parts")
    trainer: TrainerSettings = option(help="lengths, batches, evaluation, device")
    logger: dict[str, LoggerRecipe] = option(
        {}, help="services that also receive the rows, any number of them", before={}, role=Role.OUTPUT
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The name is a folder directly under ``output_root``."""
        if not self.name.strip() or self.name in (".", "..") or any(c in self.name for c in "/\\\0\n"):
            yield "name", "must be the name of one folder, without slashes"
        if not self.output_root.strip():
            yield "output_root", "must be a folder; for the current one give ."
        optimizer = self.optimizer
        if self.trainer.precision != "full" and optimizer.why_full_precision:
            reason = optimizer.why_full_precision
            yield "trainer.precision", f"must be full with optimizer={optimizer.name}, {reason}"
        if self.trainer.compile and optimizer.why_uncompiled:
            reason = optimizer.why_uncompiled
            yield "trainer.compile", f"must be false with optimizer={optimizer.name}, {reason}"

        if self.trainer.clip_norm is not None and optimizer.why_unclipped:
            reason = optimizer.why_unclipped
            yield "trainer.clip_norm", f"must be null with optimizer={optimizer.name}, {reason}"
        if self.trainer.ema is not None and optimizer.evaluates_elsewhere:
            reason = "which is evaluated at an average of its own"
            yield "trainer.ema", f"must be null with optimizer={optimizer.name}, {reason}"

    def compiled(self) -> Iterator[tuple[str, str]]:
        """What needs torch.compile: the option with its value, and the value that does without."""
        if self.trainer.compile:
            yield "trainer.compile=true", "false"
        if self.optimizer.compiled_engine():
            yield "optimizer.curvature.engine=compiled", "auto"


@dataclass(frozen=True)
class DeclaredOption:
    """An option of a run, or a part of it that holds several: its full name, type and role."""

    name: str
    type: Any
    role: Role


@cache
def declared_options() -> tuple[DeclaredOption, ...]:
    """Every option of every choice, those of the trainer before those of the groups.

    An option of several choices of a group appears once for each.
    """
    parts: list[tuple[str, type]] = [("", Settings)]
    for registry in REGISTRIES:
        for name, recipe in registry.items():
            part = f"logger.{name}" if registry is LOGGERS else registry.kind.replace("/", ".")
            parts.append((f"{part}.", recipe))
    options = []
    while parts:
        prefix, kind = parts.pop(0)
        hints = get_type_hints(kind)
        for entry in fields(kind):  # type: ignore[arg-type]
            hint = hints[entry.name]
            options.append(DeclaredOption(f"{prefix}{entry.name}", hint, declaration(entry).role))
            if is_dataclass(hint):
                parts.append((f"{prefix}{entry.name}.", hint))  # type: ignore[arg-type]
    return tuple(options)


def options_with(role: Role) -> tuple[str, ...]:
    """The full names of the options with any of the given roles, each once, in the order of the schema."""
    return tuple(dict.fromkeys(option.name for option in declared_options() if option.role & role))


def register_schemas() -> None:
    """Put every schema into Hydra's ConfigStore under ``schema/<group>/<name>``.

    A YAML file that starts from another choice but is built by a derived recipe takes
    ``recipe/<group>/<name>`` instead: the class alone, which leaves the options as the other choice has them.
    """
    store = ConfigStore.instance()
    store.store(group="schema", name="settings", node=Settings)
    store.store(group="schema", name="trainer", node=TrainerSettings)
    for registry in REGISTRIES:
        for name, recipe in registry.items():
            store_schema(registry, name, recipe)


def store_schema(registry: Registry, name: str, recipe: type) -> None:
    """Put the schema of one recipe into Hydra's ConfigStore, see :func:`register_schemas`."""
    store = ConfigStore.instance()
    store.store(group=f"schema/{registry.kind}", name=name, node=recipe)
    store.store(group=f"recipe/{registry.kind}", name=name, node=_without_options(recipe))


def schema_of_saved(recipe: type) -> DictConfig:
    """The schema for reading the configuration of an older run, which has an option's ``before``, or none."""
    schema: DictConfig = OmegaConf.structured(recipe)
    _set_before(schema, recipe)
    return schema


def _set_before(node: DictConfig, recipe: type) -> None:
    for entry in fields(recipe):  # type: ignore[arg-type]
        if is_dataclass(part := default_of(entry)):
            _set_before(node[entry.name], type(part))
        else:
            before = declaration(entry).before
            node[entry.name] = "???" if before is ABSENT else before


def _without_options(recipe: type) -> DictConfig:
    node = OmegaConf.create()
    node._metadata.object_type = recipe
    return node
