"""Configurations composed in this process, without Hydra's own command line. Hydra's internals end here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from gnewton.cli.choices import COMMAND_GROUPS, config_groups
from gnewton.cli.explain import explained
from gnewton.errors import InputError
from gnewton.experiment.folder import config_hash
from gnewton.experiment.overrides import Override, expand_home, parse_overrides
from gnewton.experiment.own_parts import imports_of, use_imports
from gnewton.experiment.places import config_folder, inlined
from gnewton.experiment.prepare import missing, settings_from
from gnewton.experiment.resume import require_same_run, saved_config
from gnewton.experiment.schema import REGISTRIES, register_schemas
from gnewton.loggers import LOGGERS
from gnewton.options import user_path, validate
from gnewton.registry import Registry, imported
from gnewton.runfiles import CONFIG_FILE
from gnewton.sweep.manifest import Job

NOT_SWEPT = {
    "resume": "a sweep makes new runs; continue one with gnewton {command} --resume DIR",
    "hydra": "has no effect, each run is a process of its own",
}
"""Options of ``gnewton train`` that a sweep refuses, and why."""


@dataclass(frozen=True)
class Composed:
    """A configuration that has passed all checks, and the job that runs it."""

    job: Job
    config: DictConfig


class Composer:
    """Composes configurations as ``gnewton train`` does, one or many.

    Args:
        config_dir: a folder with the user's own files, as Hydra's ``--config-dir``.

    Raises:
        InputError: if there is no such folder.
    """

    def __init__(self, config_dir: Path | None = None) -> None:
        register_schemas()
        setup_globals()  # the resolvers that Hydra offers in configurations
        self._loader = ConfigLoaderImpl(_search_path(config_dir))

    def compose(self, overrides: Sequence[Override]) -> DictConfig:
        """The configuration of one run, with the files that it names read into it.

        Raises:
            InputError: naming the override, its value and what is allowed.
        """
        with explained(overrides):
            return inlined(self._load("config", overrides))

    def require_same(self, run: Path, job: Job) -> None:
        """Make sure that a run, found in the folder of a job, has the configuration of the job.

        Raises:
            InputError: as :func:`~gnewton.experiment.resume.require_same_run`.
        """
        require_same_run(run, self.compose([Override.parse(text) for text in job.overrides]))

    def split(
        self, overrides: Sequence[Override], groups: Sequence[str]
    ) -> tuple[list[Override], list[Override]]:
        """The overrides of the runs, and those of the command itself: of ``groups`` and their options.

        Raises:
            InputError: for what is no override, and for several values of an override of the command.
        """
        of_runs, of_command = [], []
        for override, parsed in zip(overrides, self._parsed(overrides), strict=True):
            if not override.is_within(*groups):
                of_runs.append(override)
            elif parsed.is_sweep_override():
                raise InputError(f"{override.text}: one value is allowed, it is not of the runs")
            else:
                of_command.append(override)
        return of_runs, of_command

    def expand(self, overrides: Sequence[Override], command: str) -> list[list[Override]]:
        """The overrides of every run: each combination of the values of Hydra's sweeps.

        Raises:
            InputError: for what is no override, or means nothing in a sweep.
        """
        parsed = self._parsed(overrides)
        for override, choice in zip(overrides, parsed, strict=True):
            for name, reason in NOT_SWEPT.items():
                if override.is_within(name):
                    raise InputError(f"{override.text}: {reason.format(command=command)}")
            if choice.is_sweep_override() and not choice.is_discrete_sweep():
                raise InputError(f"{override.text}: must be a list of values, range(…) or choice(…)")
            if override.is_within("output_root") and choice.is_sweep_override():
                raise InputError(f"{override.text}: all runs of a sweep are in one folder")
        with explained(overrides):
            combinations: list[list[str]] = BasicSweeper.split_arguments(parsed, None)[0]
        return [[Override.parse(text) for text in combination] for combination in combinations]

    def check(self, combinations: Iterable[Sequence[Override]]) -> list[Composed]:
        """Compose and check every run.

        Returns:
            one for each configuration, in order; of equal ones the first.

        Raises:
            InputError: with what is wrong with any of them, each message once.
        """
        composed: dict[str, Composed] = {}
        problems: dict[str, None] = {}
        for overrides in combinations:
            try:
                run = self._checked(overrides)
                composed.setdefault(run.job.digest, run)
            except InputError as error:  # noqa: PERF203
                problems |= dict.fromkeys(str(error).splitlines())
        if problems:
            raise InputError("\n".join(problems))
        return list(composed.values())

    def choices(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], DictConfig]:
        """Choices of groups of runs and commands, each as ``(group, name)``, without any override."""
        places = {pair: f"choice_{number}" for number, pair in enumerate(pairs)}
        _register_of_commands(group for group, _ in places if group in COMMAND_GROUPS)
        defaults = [{f"{group}@{place}": name} for (group, name), place in places.items()]
        ConfigStore.instance().store(name="choices", node={"defaults": [*defaults, "_self_"]})
        config = self._load("choices", [])
        return {pair: config[place] for pair, place in places.items()}

    def command_config(self, name: str, groups: Sequence[str], overrides: Sequence[Override]) -> DictConfig:
        """The composed options of the command itself, see :meth:`options`."""
        _register_of_commands(groups)
        defaults = [{group: COMMAND_GROUPS[group].default} for group in groups]
        ConfigStore.instance().store(name=f"command_{name}", node={"defaults": [*defaults, "_self_"]})
        with explained(overrides):
            return self._load(f"command_{name}", overrides)

    def options(self, name: str, groups: Sequence[str], overrides: Sequence[Override]) -> dict[str, Any]:
        """The options of the command itself: one choice of each group.

        Args:
            name: of the command.
            groups: of :data:`~gnewton.cli.choices.COMMAND_GROUPS`.
            overrides: those that :meth:`split` assigned to the command.

        Returns:
            the checked recipe of each group.

        Raises:
            InputError: naming the option, its value and what is allowed.
        """
        config = self.command_config(name, groups, overrides)
        with explained(overrides):
            if problem := next(missing(config), None):
                raise InputError(problem)
            settings = {group: OmegaConf.to_object(config[group]) for group in groups}
        for group, group_options in settings.items():
            validate(group_options, group)
        return settings

    def _checked(self, overrides: Sequence[Override]) -> Composed:
        with explained(overrides):
            config = self._load("config", overrides)
            settings_from(config, overrides)
            return Composed(Job(config_hash(config), _texts(overrides)), config)

    def _parsed(self, overrides: Sequence[Override]) -> list[HydraOverride]:
        with explained(overrides):
            parser = OverridesParser.create(config_loader=self._loader)
            return parser.parse_overrides(list(_texts(overrides)))

    def _load(self, name: str, overrides: Sequence[Override]) -> DictConfig:
        if (imports := imports_of(overrides)) is not None:
            use_imports(imports)
        config = self._loader.load_configuration(name, list(_texts(overrides)), RunMode.RUN, from_shell=False)
        with open_dict(config):
            del config["hydra"]
        return config


class _JobLoader(ConfigLoaderImpl):
    """Composes each job of ``--multirun`` once.

    Hydra's sweeper composes all jobs to check them, and its launcher composes each again to run it.
    """

    def __init__(self, search_path: ConfigSearchPath) -> None:
        super().__init__(search_path)
        self._jobs: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The configuration of a job, a new copy of it at every call."""
        key = tuple(sweep_overrides)
        if key not in self._jobs:
            self._jobs[key] = super().load_sweep_config(master_config, sweep_overrides)
        return copy.deepcopy(self._jobs[key])


def split_flags(arguments: Sequence[str]) -> tuple[list[Override], list[str]]:
    """The overrides and the flags of ``gnewton train``, whose flags are Hydra's.

    Raises:
        InputError: for a flag that Hydra does not know, and for an override that names no option.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        dashed = next((text for text in arguments if text.startswith("--") and "=" in text), None)
        hint = f"; options are given without dashes, as {dashed.lstrip('-')}" if dashed else ""
        hint = hint if "unrecognized" in message else ""
        raise InputError(f"train: {message}{hint}; see gnewton train --help")

    parser.error = refuse  # type: ignore[method-assign]
    overrides: list[str] = parser.parse_intermixed_args(arguments).overrides
    flags = list(arguments)
    for text in overrides:
        flags.remove(text)
    return parse_overrides(overrides), [_with_home(flag) for flag in flags]


def only_shows(flags: Sequence[str]) -> bool:
    """Whether Hydra's flags ask for something else than a run, such as ``--cfg``: Hydra answers by itself."""
    parsed = get_args_parser().parse_args(list(flags))
    shown = (parsed.cfg, parsed.info, parsed.experimental_rerun)
    return parsed.hydra_help or parsed.shell_completion or parsed.resolve or any(shown)


def run_jobs(overrides: Sequence[Override], flags: Sequence[str], task: Callable[[DictConfig], None]) -> None:
    """Run ``task`` as a job of Hydra on each configuration, with its logging and :class:`HydraConfig`.

    Hydra's command line composes a configuration once more before, to learn ``hydra.mode``. Here the mode is
    that of the flags and overrides; no file sets it. Of several jobs each is composed once, before the first
    runs, besides the configuration of the sweeper.

    Args:
        overrides: of one run, or with ``--multirun`` or ``hydra.mode=MULTIRUN`` of several.
        flags: those of Hydra with which it runs something, see :func:`only_shows`.
        task: what to do with a configuration.

    Raises:
        InputError: for folders of ``flags`` that do not exist.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    parsed = get_args_parser().parse_args(list(flags))
    if parsed.run and parsed.multirun:
        raise InputError("--run: does not go with --multirun; leave one of them out")
    config_dir = None if parsed.config_dir is None else Path(parsed.config_dir)
    modes = [override.value for override in overrides if override.key == "hydra.mode"]
    several = parsed.multirun or (modes[-1:] == [RunMode.MULTIRUN.name])
    texts = list(_texts(overrides))
    if parsed.multirun or not modes:
        texts.append(f"hydra.mode={(RunMode.MULTIRUN if several else RunMode.RUN).name}")
    version.setbase("1.3")
    search_path = _search_path(config_dir, parsed.config_path)
    hydra = Hydra.create_main_hydra2("gnewton", search_path)
    hydra.config_loader = _JobLoader(search_path)
    try:
        (hydra.multirun if several else hydra.run)(parsed.config_name or "config", task, texts)
    finally:
        GlobalHydra.instance().clear()


def with_choices_of(folder: Path, overrides: Sequence[Override]) -> list[Override]:
    """The overrides for a run that there is, with the choices of its groups that their options belong to.

    ``data.path=FILE`` belongs to ``data=npz``, which the run has chosen already.

    Raises:
        InputError: if it is no run folder.
    """
    chosen = {override.key for override in overrides}
    groups = [
        registry.kind
        for registry in REGISTRIES
        if registry is not LOGGERS
        and registry.kind not in chosen
        and any(override.key.startswith(f"{registry.kind}.") for override in overrides)
    ]
    if not groups:
        return list(overrides)
    config = saved_config(folder, f"resume={folder}", imports_of(overrides))
    names = {group: str(config[group].name) for group in groups}
    known = {group: {choice.name for choice in choices} for group, choices in config_groups().items()}
    added = [Override.parse(f"{group}={name}") for group, name in names.items() if name in known[group]]
    return [*added, *overrides]


def for_resumed_run(overrides: Sequence[Override]) -> list[Override]:
    """The overrides of ``gnewton train``; where they continue a run, see :func:`with_choices_of`."""
    resume = next((override for override in overrides if override.key == "resume"), None)
    if resume is None or resume.value in (None, "", "null"):
        return list(overrides)
    folder = user_path(resume.values()[0])
    return with_choices_of(folder, overrides) if (folder / CONFIG_FILE).is_file() else list(overrides)


def _register_of_commands(groups: Iterable[str]) -> None:
    """Put the schemas of groups in :data:`COMMAND_GROUPS` into Hydra's ConfigStore."""
    for group in groups:
        recipes = imported(COMMAND_GROUPS[group].recipes)
        for name, recipe in recipes.items() if isinstance(recipes, Registry) else [(group, recipes)]:
            ConfigStore.instance().store(group=f"schema/{group}", name=name, node=recipe)


def _search_path(config_dir: Path | None, config_path: str | None = None) -> ConfigSearchPath:
    """Where configuration files are looked up: in the package's folder, then in the user's own.

    Args:
        config_dir: the user's own folder, as Hydra's ``--config-dir``.
        config_path: a folder or ``pkg://…`` in the place of the package's, as Hydra's ``--config-path``.

    Raises:
        InputError: if there is no such folder.
    """
    if config_path is not None and "://" not in config_path:
        config_path = str(_existing("--config-path", Path(config_path)))
    search_path = create_config_search_path(config_path or str(config_folder()))
    if config_dir is not None:
        address = f"file://{_existing('--config-dir', config_dir)}"
        search_path.prepend("command-line", address, SearchPathQuery(provider="schema"))
    return search_path


def _existing(flag: str, folder: Path) -> Path:
    """The absolute path of a folder that a flag names."""
    if not folder.is_dir():
        raise InputError(f"{flag} {folder}: no such folder")
    return folder.resolve()


def _texts(overrides: Sequence[Override]) -> tuple[str, ...]:
    return tuple(override.text for override in overrides)


def _with_home(flag: str) -> str:
    """``~`` in the value of a flag, which no shell expands after an equals sign."""
    name, equals, value = flag.partition("=")
    return f"{name}={expand_home(value)}" if equals and value.startswith("~") else flag
