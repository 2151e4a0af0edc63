"""Networks by name. A new one is a :class:`ModelRecipe` in ``options`` and a YAML file in configs/model."""

from gnewton.models.options import MODELS, ModelRecipe

__all__ = ["MODELS", "ModelRecipe"]
