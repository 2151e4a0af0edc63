"""Recipes by name: a new model, data set, partition or optimizer is one class and one YAML file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gnewton.errors import InputError
from gnewton.options import did_you_mean, listing

RecipeT = TypeVar("RecipeT")


def imported(function: str) -> Callable[..., Any]:
    """The function ``module:name``, imported on use, since options are checked before torch is loaded."""
    module, _, name = function.partition(":")
    target: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return target


class Registry(Generic[RecipeT]):
    """The recipes of one kind, found by importing the module or package that registers them.

    Args:
        kind: what the recipes build, also the name of their configuration group, such as ``"model"``.
        home: the module or package that registers recipes of this kind.
        base: the class each recipe derives from.
    """

    def __init__(self, kind: str, home: str, base: type[RecipeT]) -> None:
        self.kind = kind
        self._home = home
        self._base = base
        self._recipes: dict[str, type[RecipeT]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[type[RecipeT]], type[RecipeT]]:
        """Class decorator: make a recipe known under ``name``. A name is taken once."""

        def add(recipe: type[RecipeT]) -> type[RecipeT]:
            if name in self._recipes:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            if not issubclass(recipe, self._base):
                raise TypeError(f"{self.kind} '{name}' must derive from {self._base.__name__}")
            self._recipes[name] = recipe
            return recipe

        return add

    def forget(self, name: str) -> None:
        """Make ``name`` free again: what was registered from outside is taken back."""
        self._recipes.pop(name, None)

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self._load())

    def items(self) -> list[tuple[str, type[RecipeT]]]:
        """All (name, recipe class) pairs, sorted by name."""
        return sorted(self._load().items())

    def __getitem__(self, name: str) -> type[RecipeT]:
        recipes = self._load()
        if name not in recipes:
            known = sorted(recipes)
            raise InputError(
                f"{self.kind}={name}: must be one of {listing(known)}{did_you_mean(name, known)}"
            )
        return recipes[name]

    def _load(self) -> dict[str, type[RecipeT]]:
        if not self._loaded:
            home = importlib.import_module(self._home)
            for module in pkgutil.iter_modules(getattr(home, "__path__", ())):
                importlib.import_module(f"{self._home}.{module.name}")
            self._loaded = True
        return self._recipes


@dataclass(frozen=True)
class OwnPart:
    """A choice of the user's own: its registry, its name and its recipe."""

    registry: Registry
    name: str
    recipe: type

    @property
    def description(self) -> str:
        """The first line of its docstring; empty for none, or for the one that a dataclass writes itself."""
        text = (self.recipe.__doc__ or "").strip()
        return "" if text.startswith(f"{self.recipe.__name__}(") else text.partition("\n")[0]


OWN_PARTS: list[OwnPart] = []
"""The choices that files and packages of the user have registered, see gnewton/experiment/own_parts.py."""
