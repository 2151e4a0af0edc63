"""Compose many configurations in one process, to check all runs of a sweep before the first one starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from gnewton.cli.choices import OWN_GROUPS
from gnewton.cli.explain import explained
from gnewton.cli.overrides import prepared
from gnewton.errors import InputError
from gnewton.experiment.check import settings_from
from gnewton.experiment.folder import config_hash
from gnewton.experiment.locate import config_folder
from gnewton.experiment.schema import register_schemas
from gnewton.options import validate
from gnewton.registry import Registry
from gnewton.sweep.job import Job

NOT_SWEPT = {
    "resume": "a sweep makes new runs; continue one with gnewton {command} --resume DIR",
    "hydra": "has no effect, each run is a process of its own",
}
"""Options of ``gnewton train`` that a sweep refuses, by the first part of their name, and why."""


@dataclass(frozen=True)
class Composed:
    """A configuration that has passed all checks, and the job that runs it."""

    job: Job
    config: DictConfig


class Composer:
    """Composes and checks configurations as ``gnewton train`` would.

    Args:
        config_dir: a folder with the user's own files, as Hydra's ``--config-dir``.

    Raises:
        InputError: if it is not there.
    """

    def __init__(self, config_dir: Path | None = None) -> None:
        register_schemas()
        search_path = create_config_search_path(str(config_folder()))
        if config_dir is not None:
            if not config_dir.is_dir():
                raise InputError(f"--config-dir {config_dir}: no such folder")
            search_path.prepend("command-line", f"file://{config_dir.resolve()}")
        setup_globals()  # the resolvers that Hydra offers in configurations
        self._loader = ConfigLoaderImpl(search_path)

    def split(self, overrides: Sequence[str], groups: Sequence[str]) -> tuple[list[str], list[str]]:
        """Those of the runs, and those of the command itself: of the given groups and their options.

        Raises:
            InputError: for what is no override.
        """
        overrides = prepared(overrides)
        with explained(overrides):
            parsed = self._parser().parse_overrides(overrides)
        own = [each.key_or_group.partition(".")[0] in groups for each in parsed]
        for each, mine in zip(parsed, own, strict=True):
            if mine and each.is_sweep_override():
                raise InputError(f"{each.input_line}: one value is allowed, it is not of the runs")
        pairs = list(zip(overrides, own, strict=True))
        return [text for text, mine in pairs if not mine], [text for text, mine in pairs if mine]

    def expand(self, overrides: Sequence[str], command: str) -> list[list[str]]:
        """The overrides of every run: each combination of the values of Hydra's sweeps.

        Raises:
            InputError: for what is no override, or means nothing in a sweep.
        """
        with explained(overrides):
            parsed = self._parser().parse_overrides(list(overrides))
            for each in parsed:
                key = each.key_or_group.split(".")[0]
                if key in NOT_SWEPT:
                    raise InputError(f"{each.input_line}: {NOT_SWEPT[key].format(command=command)}")
                if each.is_sweep_override() and not each.is_discrete_sweep():
                    raise InputError(f"{each.input_line}: must be a list of values, range(…) or choice(…)")
                if key == "output_root" and each.is_sweep_override():
                    raise InputError(f"{each.input_line}: all runs of a sweep are in one folder")
            combinations: list[list[str]] = BasicSweeper.split_arguments(parsed, None)[0]
        return combinations

    def check(self, combinations: Iterable[Sequence[str]]) -> list[Composed]:
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
                found = self._checked(overrides)
                composed.setdefault(found.job.digest, found)
            except InputError as error:  # noqa: PERF203
                problems |= dict.fromkeys(str(error).splitlines())
        if problems:
            raise InputError("\n".join(problems))
        return list(composed.values())

    def options(self, name: str, groups: dict[str, Registry[Any] | type], overrides: Sequence[str]) -> Any:
        """The options of the command itself: one choice of each group.

        Args:
            name: of the command.
            groups: for each group its recipes; a group of one recipe is given that class.
            overrides: those that :meth:`split` found.

        Returns:
            a dictionary of the recipes, checked.

        Raises:
            InputError: naming the option, its value and what is allowed.
        """
        store = ConfigStore.instance()
        for group, recipes in groups.items():
            for choice, recipe in recipes.items() if isinstance(recipes, Registry) else [(group, recipes)]:
                store.store(group=f"schema/{group}", name=choice, node=recipe)
        defaults = [{group: OWN_GROUPS[group]} for group in groups]
        store.store(name=f"command_{name}", node={"defaults": [*defaults, "_self_"]})
        with explained(overrides):
            config = self._compose(f"command_{name}", overrides)
            missing = sorted(OmegaConf.missing_keys(config))
            if missing:
                raise InputError(f"{missing[0]}: has no value; give it one with {missing[0]}=…")
            found = {group: OmegaConf.to_object(config[group]) for group in groups}
        for group, settings in found.items():
            validate(settings, group)
        return found

    def _checked(self, overrides: Sequence[str]) -> Composed:
        with explained(overrides):
            config = self._compose("config", overrides)
            settings_from(config, overrides)
            return Composed(Job(config_hash(config), tuple(overrides)), config)

    def _parser(self) -> OverridesParser:
        return OverridesParser.create(config_loader=self._loader)

    def _compose(self, name: str, overrides: Sequence[str]) -> DictConfig:
        config = self._loader.load_configuration(name, list(overrides), RunMode.RUN, from_shell=False)
        with open_dict(config):
            del config["hydra"]
        return config
