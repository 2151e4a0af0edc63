"""Data sets by name. A new one is a recipe in ``dataset_options``, its builder, and a YAML file."""

from gnewton.data.dataset_options import DATA, DataRecipe

__all__ = ["DATA", "DataRecipe"]
