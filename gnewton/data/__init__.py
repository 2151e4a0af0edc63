"""Data sets by name. A new one is a :class:`DataRecipe` in ``options`` and a YAML file in configs/data."""

from gnewton.data.options import DATA, DataRecipe

__all__ = ["DATA", "DataRecipe"]
