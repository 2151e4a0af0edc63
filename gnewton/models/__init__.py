"""Networks by name. A new one is a recipe in ``network_options``, a function that builds it, and a YAML file."""

from gnewton.models.network_options import MODELS, ModelRecipe

__all__ = ["MODELS", "ModelRecipe"]
