"""The configuration of a run that is resumed or repeated. Torch-free: settled before torch is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from gnewton.errors import InputError, first_line
from gnewton.experiment.folder import digest_of, resolved
from gnewton.experiment.overrides import Override
from gnewton.experiment.own_parts import OPTION, imports_of, use_saved_imports
from gnewton.experiment.places import absolute, find_places, inlined, places, require_places
from gnewton.experiment.schema import REGISTRIES, Settings, options_with, schema_of_saved
from gnewton.options import Role, present_name, show, user_path
from gnewton.registry import Registry
from gnewton.runfiles import CONFIG_FILE, DATA_DIGEST, ENVIRONMENT_FILE
from gnewton.training.settings import TrainerSettings


def effective_config(config: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """The configuration to run: ``config`` itself, or with ``resume=RUN_DIR`` that of the run to continue.

    Files that it names are read into it.

    Args:
        config: as Hydra composed it.
        overrides: of the command line. With ``resume``, resumable options (see :class:`gnewton.options.Role`)
            and paths are taken over, and options that repeat those of the run change nothing.

    Raises:
        InputError: if there is no such run, or an override would change the steps it makes.
    """
    config = inlined(config)
    if config.resume is None:
        return config
    folder = user_path(str(config.resume))
    saved = saved_config(folder, f"resume={folder}", imports_of(overrides))
    problems = [_apply(override, config, saved) for override in overrides]
    if any(problems):
        raise InputError("\n".join(problem for problem in problems if problem))
    require_places(saved, f"resume={folder}")
    saved.resume = str(folder)
    return saved


def changed(
    folder: Path, composed: DictConfig, overrides: Sequence[Override], allowed: Sequence[str], argument: str
) -> DictConfig:
    """The configuration of a run with some parts taken from another one.

    Args:
        folder: the run folder.
        composed: as Hydra composed it from ``overrides`` and the choices of the run.
        overrides: the changes. An option leaves the others of its group as the run has them, unless the
            group is chosen as well.
        allowed: groups and options that may change, beside paths.
        argument: the part of the command line that named the run, for messages.

    Raises:
        InputError: naming an override that is not allowed, or a file that is missing.
    """
    config = saved_config(folder, argument, imports_of(overrides))
    movable = [name for name in places(config) if name != "output_root"]
    for override in overrides:
        key = override.option
        if key == OPTION:
            continue
        if key in movable:
            OmegaConf.update(config, key, absolute(str(OmegaConf.select(composed, key))), merge=False)
            continue
        if key == "data" and composed.data.get("name") == config.data.get("name"):
            continue
        part = next((name for name in allowed if override.is_within(name)), None)
        if part is None:
            raise InputError(
                f"{override.text}: a run keeps its configuration; only these can be chosen: "
                + ", ".join([*allowed, *movable])
            )
        chosen = any(other.key == part for other in overrides)
        chosen = chosen or _name_of(composed, part) != _name_of(config, part)
        where = part if chosen else key
        OmegaConf.update(config, where, OmegaConf.select(composed, where), merge=False)
    require_places(config, argument)
    return config


def _name_of(config: DictConfig, part: str) -> Any:
    """The choice of a group; None for an option."""
    node = OmegaConf.select(config, part)
    return node.get("name") if isinstance(node, DictConfig) else None


def recipes_of(config: DictConfig) -> dict[str, str]:
    """The name of the registered recipe of each part of a composed configuration, by the place of the part.

    The name may differ from that of the choice, since several YAML files may start from one recipe. The place
    is that of the group, such as ``optimizer/direction``, or lies within it if a choice consists of others.
    """
    recipes: dict[str, str] = {}
    known = {recipe: name for registry in REGISTRIES for name, recipe in registry.items()}

    def visit(node: DictConfig, place: str) -> None:
        kind = OmegaConf.get_type(node)
        if place and kind in known:
            recipes[place] = known[kind]
        for key in node:
            if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
                visit(node[key], "/".join(filter(None, (place, str(key)))))

    visit(config, "")
    return recipes


def _registry_of(place: str) -> Registry:
    """The registry of the recipe at a place, see :func:`recipes_of`.

    Raises:
        KeyError: if there is none.
    """
    fitting = [r for r in REGISTRIES if f"{place}/".startswith(f"{r.kind}/")]
    if not fitting:
        raise KeyError(place)
    return max(fitting, key=lambda registry: len(registry.kind))


def trajectory_hash(config: DictConfig, follows_length: bool) -> str:
    """Eight hexadecimal digits that change with every option that decides the steps of a run.

    Args:
        config: the configuration.
        follows_length: whether the schedule, and so the steps, depend on ``trainer.epochs``.
    """
    kept = resolved(config)
    apart = options_with(Role.OUTPUT | Role.LABEL | Role.RESUMABLE)
    for key in dict.fromkeys((*apart, *places(config))):
        if key != "trainer.epochs" or not follows_length:
            *path, last = key.split(".")
            node = kept
            for part in path:
                node = node[part]
            node.pop(last)
    return digest_of(kept)


def saved_config(folder: Path, argument: str, imports: Sequence[str] | None = None) -> DictConfig:
    """The typed configuration that a run folder's config.yaml was written from.

    The own parts of the run are loaded.

    Args:
        folder: the run folder.
        argument: the part of the command line that named the folder, such as ``resume=FOLDER``.
        imports: files and modules given anew, see :func:`~gnewton.experiment.own_parts.use_saved_imports`.

    Raises:
        InputError: if it is not a run folder, this program cannot use its files, or an import is missing.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        reason = f"it holds no {CONFIG_FILE}" if folder.is_dir() else "there is no such folder"
        raise InputError(f"{argument}: {reason}; give the folder of a run, OUTPUT_ROOT/NAME/…")
    entries = use_saved_imports(path, argument, imports)
    try:
        saved = OmegaConf.load(path)
        if not isinstance(saved, DictConfig):
            raise InputError("it is not a mapping")
        config = schema_of_saved(Settings)
        config.trainer = schema_of_saved(TrainerSettings)
        recipes = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))["recipes"]
        for place in sorted(recipes):  # a group stands before the groups within it
            schema = schema_of_saved(_registry_of(place)[str(recipes[place])])
            OmegaConf.update(config, place.replace("/", "."), schema, force_add=True)  # a logger is new
        merged = OmegaConf.merge(config, saved)
        assert isinstance(merged, DictConfig)
        merged[OPTION] = entries
        find_places(merged, folder)
        return merged
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, KeyError, TypeError) as error:
        reason = first_line(error, with_type=isinstance(error, (KeyError, TypeError)))
        if isinstance(error, ConfigKeyError) and (name := present_name(error.object_type, str(error.key))):
            reason = f"{error.full_key} has been renamed to {name}; rename it there, or start a new run"
        raise InputError(
            f"{argument}: its {CONFIG_FILE} and {ENVIRONMENT_FILE} cannot be used: {reason}"
        ) from error


def require_same_run(folder: Path, config: DictConfig) -> None:
    """Make sure that a run, found where one of ``config`` is to be continued, has that configuration.

    Paths, outputs and labels are left out: they decide no number.

    Raises:
        InputError: naming the first option that differs, a choice before its options, with both values.
    """
    try:
        saved = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise InputError(f"{folder}: its {CONFIG_FILE} cannot be used: {first_line(error)}") from error
    expected = resolved(inlined(config))
    apart = [*options_with(Role.OUTPUT | Role.LABEL), *places(config), OPTION]
    present = {key: saved[key] for key in expected if key in saved} if isinstance(saved, dict) else {}
    differences = _differences({key: expected[key] for key in present}, present, "")
    for option, value, other in differences:
        if not any(f"{option}.".startswith(f"{name}.") for name in apart):
            # the option that chooses "optimizer.name" is "optimizer"
            chosen = option.removesuffix(".name").replace(".", "/") if option.endswith(".name") else option
            raise InputError(
                f"{chosen}={show(value)}: {folder} holds a run with {chosen}={show(other)}, which cannot be "
                "continued as another; use another folder, or remove that run"
            )


def _differences(ours: Any, theirs: Any, option: str) -> Iterator[tuple[str, Any, Any]]:
    """The options in which two configurations differ, with both values; choices come first."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        # as text: a value that is not a number equals itself
        if json.dumps(ours, sort_keys=True) != json.dumps(theirs, sort_keys=True):
            yield option, ours, theirs
        return
    for key in sorted({**ours, **theirs}, key=lambda key: key != "name"):
        where = f"{option}.{key}" if option else str(key)
        yield from _differences(ours.get(key), theirs.get(key), where)


def recorded_digest(folder: Path) -> str | None:
    """The digest of the data with which the run in ``folder`` was started; None if it recorded none."""
    try:
        digest = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8")).get(DATA_DIGEST)
    except (OSError, ValueError, AttributeError):
        return None
    return str(digest) if digest is not None else None


def _apply(override: Override, config: DictConfig, saved: DictConfig) -> str | None:
    """Apply one override to the configuration of the run; returns why it cannot be applied, or None."""
    key, resumable = override.key, options_with(Role.RESUMABLE)
    if key in ("resume", OPTION):
        return None
    if key == "output_root":
        return f"{override.text}: has no effect, a resumed run stays in its folder"
    if override.is_within("logger"):
        OmegaConf.update(saved, "logger", config.logger, merge=False)
        return None
    if key in places(saved):
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if value is not None:
            OmegaConf.update(saved, key, absolute(str(value)), merge=False)
            return None
    if key in resumable:
        return _change(override, config, saved)
    value, before = (
        OmegaConf.select(node, override.option, throw_on_missing=False) for node in (config, saved)
    )
    if isinstance(value, DictConfig) and "name" in value:
        value, before = value["name"], before["name"] if isinstance(before, DictConfig) else None
    if value is not None and value == before:
        return None
    return (
        f"{override.text}: a resumed run keeps the steps it would have made; only these can change: "
        + ", ".join([*resumable, *(name for name in places(saved) if name != "output_root")])
    )


def _change(override: Override, config: DictConfig, saved: DictConfig) -> str | None:
    """Set a resumable option; returns why it cannot have this value, or None."""
    key = override.key
    value, before = OmegaConf.select(config, key), OmegaConf.select(saved, key)
    if key == "trainer.epochs" and value != before:
        if value < before:
            return f"{override.text}: a resumed run can only be made longer; it has {before}"
        schedule = saved.optimizer.schedule
        if OmegaConf.get_type(schedule).follows_length:  # type: ignore[union-attr]
            return (
                f"{override.text}: optimizer/schedule={schedule.name} was laid out for {before} epochs; "
                "start a new run of this length, or one with optimizer/schedule=constant, which can go on"
            )
    OmegaConf.update(saved, key, value)
    return None
