"""Networks by name. A new one is a :class:`ModelRecipe` in a module here and a YAML under configs/model."""

from gnewton.models.recipe import MODELS, ModelRecipe

__all__ = ["MODELS", "ModelRecipe"]
