"""Registries: names are taken once, and a wrong one is answered with the right ones."""

from __future__ import annotations

import pytest

from gnewton.errors import InputError
from gnewton.experiment.schema import REGISTRIES
from gnewton.registry import Registry


class Base:
    pass


@pytest.fixture
def registry():
    return Registry("fruit", "gnewton.cubic", Base)  # a package without recipes


def test_register_and_find(registry):
    @registry.register("apple")
    class Apple(Base):
        pass

    assert registry["apple"] is Apple
    assert registry.names() == ["apple"]
    assert registry.items() == [("apple", Apple)]


def test_a_name_is_taken_once(registry):
    registry.register("apple")(type("A", (Base,), {}))
    with pytest.raises(ValueError, match="fruit 'apple' is registered twice"):
        registry.register("apple")(type("B", (Base,), {}))


def test_only_its_own_kind(registry):
    with pytest.raises(TypeError, match="fruit 'stone' must derive from Base"):
        registry.register("stone")(object)


def test_unknown_name(registry):
    registry.register("apple")(type("A", (Base,), {}))
    with pytest.raises(InputError, match="fruit=appel: must be one of apple; did you mean 'apple'?"):
        registry["appel"]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_every_shipped_registry_holds_something(registry):
    assert registry.names() == sorted(registry.names())
    assert registry.names()
