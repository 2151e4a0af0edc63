"""Recipes as the YAML files and overrides make them, one configuration group at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from gnewton.experiment.schema import register_schemas
from gnewton.options import validate
from gnewton.registry import Registry

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def recipe(registry: Registry, default: str, choice: str, *overrides: str) -> Any:
    """What ``gnewton train KIND=choice`` and ``overrides`` make of the YAML, checked; the registry's KIND."""
    register_schemas()  # of the groups inside this one
    store, kind = ConfigStore.instance(), registry.kind
    for name, schema in registry.items():
        store.store(group=f"schema/{kind}", name=name, node=schema)
    store.store(name=f"probe_{kind}", node={"defaults": [{kind: default}, "_self_"]})
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(f"probe_{kind}", overrides=[f"{kind}={choice}", *overrides])
    built = OmegaConf.to_object(config[kind])
    validate(built, kind)
    return built
