"""Data sets by name. A new one is a :class:`DataRecipe` in a module here and a YAML under configs/data."""

from gnewton.data.recipe import DATA, DataRecipe

__all__ = ["DATA", "DataRecipe"]
