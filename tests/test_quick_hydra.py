"""What this suite spares Hydra changes no configuration."""

from __future__ import annotations

import pytest
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from omegaconf import OmegaConf, base

CONFIGURATIONS = (
    ["optimizer=sgd", "optimizer.lr=0.3", "optimizer/schedule=cosine"],
    ["optimizer=grouped_newton", "optimizer/direction=kfac", "partition=blocks", "partition.k=2"],
    ["experiment=lenet_cifar10", "optimizer=adam", "seed=4"],
)


@pytest.mark.parametrize("overrides", CONFIGURATIONS, ids=" ".join)
def test_a_configuration_is_what_hydra_alone_composes(overrides, compose, monkeypatch):
    quick = [compose(overrides) for _ in range(2)]  # the second from the choices of the first
    OmegaConf.update(quick[0], "seed", 99)  # which a caller may change
    quick.append(compose(overrides))
    for owner, name in (
        (config_loader_impl, "create_defaults_list"),
        (ConfigLoaderImpl, "_compose_config_from_defaults_list"),
        (CachingConfigRepository, "__init__"),
        (defaults_list, "_create_interpolation_map"),
        (base, "parse"),
    ):
        monkeypatch.setattr(owner, name, _plain(getattr(owner, name)))
    plain = compose(overrides)
    assert quick[1] == quick[2] == plain
    assert OmegaConf.is_struct(quick[1])
    for section in plain:
        assert OmegaConf.get_type(quick[1], section) is OmegaConf.get_type(plain, section)


def _plain(quick):
    assert quick.__wrapped__ is not quick
    return quick.__wrapped__
