"""Hydra composes the same configuration at less cost, since most tests of this suite compose one."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def speed_up(patch: pytest.MonkeyPatch) -> None:
    """Spare Hydra what it does twice within a process; commands in processes of their own are untouched.

    Before it composes the configuration of a run, Hydra composes all of it for ``hydra.mode`` alone, which no
    file and no test here sets. YAML files are read again only when they have changed, and a schema is stored
    once.
    """
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.core_plugins.importlib_resources_config_source import (
        ImportlibResourcesConfigSource,
    )
    from hydra._internal.hydra import Hydra
    from hydra.core.config_store import ConfigStore

    patch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: None)

    for source in (FileConfigSource, ImportlibResourcesConfigSource):
        patch.setattr(source, "load_config", _once(source.load_config))

    store = ConfigStore.store
    stored: dict[tuple[Any, ...], Any] = {}

    def store_once(self: ConfigStore, name: str, node: Any, group: str | None = None, **others: Any) -> None:
        key = (name, group, *sorted(others.items()))
        if not (isinstance(node, type) and stored.get(key) is node):
            store(self, name=name, node=node, group=group, **others)
            stored[key] = node

    patch.setattr(ConfigStore, "store", store_once)


def _once(load: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """``load_config`` of a source, whose result is kept as long as the file stays as it is."""
    results: dict[tuple[Any, ...], Any] = {}

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
