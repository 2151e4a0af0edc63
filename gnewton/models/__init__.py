"""Networks by name. A new one is a recipe in ``network_options``, its builder, and a YAML file."""

from gnewton.models.network_options import MODELS, ModelRecipe

__all__ = ["MODELS", "ModelRecipe"]
