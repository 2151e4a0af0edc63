"""Hydra composes the same configuration at less cost, since most tests of this suite compose one."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def speed_up(patch: pytest.MonkeyPatch) -> None:
    """Spare Hydra what it does twice within a process; commands in processes of their own are untouched.

    YAML files are read again only when they have changed, and a schema is stored once. Files and schemas of
    the same choices are merged once.
    """
    from hydra.core.plugins import Plugins

    Plugins.instance()  # executes the modules of the sources anew: patches made before would have no effect
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.core_plugins.importlib_resources_config_source import (
        ImportlibResourcesConfigSource,
    )

    for source in (FileConfigSource, ImportlibResourcesConfigSource):
        patch.setattr(source, "load_config", _once(source.load_config))
    _store_once(patch)
    _compose_once(patch)
    _resolve_less(patch)


def _once(load: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """``load_config`` of a source, whose result is kept as long as the file stays as it is."""
    results: dict[tuple[Any, ...], Any] = {}

    @functools.wraps(load)
    def load_once(self: Any, config_path: str) -> Any:
        name = self._normalize_file_name(config_path)
        path = Path(self.path) / name  # of the source within Hydra's package: no file, and never changed
        try:
            status = path.stat()
            key = (os.path.realpath(path), status.st_mtime_ns, status.st_size)
        except OSError:
            key = (self.scheme(), self.path, name)
            if self.scheme() == "file":
                return load(self, config_path)
        if key not in results:
            results[key] = load(self, config_path)
        result = copy.copy(results[key])
        result.config, result.header = copy.deepcopy(result.config), dict(result.header)
        result.path, result.provider = f"{self.scheme()}://{self.path}", self.provider
        return result

    return load_once


def _store_once(patch: pytest.MonkeyPatch) -> None:
    """A schema that the store holds already is not stored again."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig

    store = ConfigStore.store
    stored: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, DictConfig) and isinstance(b, DictConfig):
            return a._metadata.object_type is b._metadata.object_type and a == b
        return a is b or (type(a) is type(b) is dict and a == b)

    def store_once(self: ConfigStore, name: str, node: Any, group: str | None = None, **others: Any) -> None:
        key = (name, group, *sorted(others.items()))
        before, entry = stored.get(key, (None, None))
        if entry is None or not same(before, node) or _entry(self.repo, name, group) is not entry:
            store(self, name=name, node=node, group=group, **others)
            stored[key] = (copy.copy(node), _entry(self.repo, name, group))

    patch.setattr(ConfigStore, "store", store_once)


def _entry(repository: dict[str, Any], name: str, group: str | None) -> Any:
    """What Hydra's store holds under a name; None: nothing."""
    for step in group.split("/") if group else ():
        repository = repository.get(step, {})
    return repository.get(name if name.endswith(".yaml") else f"{name}.yaml")


def _entries(repository: dict[str, Any]) -> Iterator[Any]:
    """The schemas in all groups of Hydra's store."""
    for value in repository.values():
        if isinstance(value, dict):
            yield from _entries(value)
        else:
            yield value


def _compose_once(patch: pytest.MonkeyPatch) -> None:
    """Configurations of the same choices, whose files and schemas are the same, are merged once."""
    from hydra._internal import config_loader_impl
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
    from hydra._internal.defaults_list import DefaultsList, Overrides

    from gnewton.experiment.places import config_folder

    @functools.wraps(CachingConfigRepository.__init__)
    def cached(self: CachingConfigRepository, delegate: IConfigRepository) -> None:
        self.delegate = copy.copy(delegate)  # its list of sources is replaced, never changed
        self.cache = {}

    choose, merge = (
        config_loader_impl.create_defaults_list,
        ConfigLoaderImpl._compose_config_from_defaults_list,
    )
    chosen: dict[tuple[Any, ...], tuple[DefaultsList, list[Any]]] = {}
    merged: dict[int, Any] = {}
    """By the identity of a list in ``chosen``."""

    @functools.wraps(choose)
    def choose_once(
        repo: IConfigRepository, config_name: Any, overrides_list: list[Any], **options: Any
    ) -> DefaultsList:
        def make() -> DefaultsList:
            return choose(repo=repo, config_name=config_name, overrides_list=overrides_list, **options)

        sources = [(source.scheme(), source.path) for source in repo.get_sources()]
        own_files = [path for scheme, path in sources if scheme == "file" and path != str(config_folder())]
        if config_name is None or own_files:  # files in the folder of a test change
            return make()
        repository = repo.get_schema_source().store.repo
        groups = {name: value for name, value in repository.items() if isinstance(value, dict)}
        schemas = [*_entries(groups), repository.get(f"{config_name}.yaml")]
        overrides = Overrides(repo=repo, overrides_list=overrides_list)
        values = set(map(id, overrides.config_overrides))
        choices = tuple(entry.input_line for entry in overrides_list if id(entry) not in values)
        key = (*sources, config_name, choices, *sorted(options.items()), *map(id, schemas))
        if key not in chosen:
            chosen[key] = (make(), schemas)  # the schemas are kept, so that no other gets the id of one
            merged[id(chosen[key][0].defaults)] = None
        first, _ = chosen[key]
        return dataclasses.replace(first, config_overrides=overrides.config_overrides)

    @functools.wraps(merge)
    def merge_once(self: ConfigLoaderImpl, defaults: list[Any], repo: IConfigRepository) -> Any:
        if id(defaults) not in merged:
            return merge(self, defaults=defaults, repo=repo)
        if merged[id(defaults)] is None:
            merged[id(defaults)] = merge(self, defaults=defaults, repo=repo)
        return copy.deepcopy(merged[id(defaults)])

    patch.setattr(CachingConfigRepository, "__init__", cached)
    patch.setattr(config_loader_impl, "create_defaults_list", choose_once)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)


def _resolve_less(patch: pytest.MonkeyPatch) -> None:
    """A text is parsed once; a map of all choices is made only for a list of defaults that refers to one."""
    from hydra._internal import defaults_list
    from omegaconf import _utils, base, grammar_parser

    parse = functools.lru_cache(maxsize=None)(grammar_parser.parse)
    for module in (base, _utils):
        patch.setattr(module, "parse", parse)

    make = defaults_list._create_interpolation_map

    @functools.wraps(make)
    def make_if_needed(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
        refers = any("${" in str(vars(default)) for default in defaults)
        return make(overrides, defaults, self_added) if refers else None

    patch.setattr(defaults_list, "_create_interpolation_map", make_if_needed)
