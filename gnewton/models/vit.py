"""Vision transformer of torchvision, sized by its options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.models import demands
from gnewton.models.network import NetworkRecipe
from gnewton.models.recipe import MODELS
from gnewton.options import option

if TYPE_CHECKING:
    from torch import nn

    from gnewton.tasks import Task


@MODELS.register("vit")
@dataclass(kw_only=True)
class VisionTransformer(NetworkRecipe):
    """torchvision's VisionTransformer: square images (N, C, H, H) -> (N, outputs).

    Dosovitskiy et al., "An image is worth 16×16 words" (2021). Its attention is spelled out in matrix
    products, which can be differentiated as often as one likes, in training and in evaluation.

    Attributes:
        patch_size: pixels on a side of a patch; it must divide H.
        depth: number of transformer blocks.
        heads: attention heads, which share ``width`` evenly.
        width: features of a token.
        mlp_width: hidden units of the perceptron in each block.
        dropout: probability of zeroing a feature of a token, in training.
        attention_dropout: probability of zeroing an attention weight, in training.
    """

    patch_size: int = option(at_least=1)
    depth: int = option(at_least=1)
    heads: int = option(at_least=1)
    width: int = option(at_least=1)
    mlp_width: int = option(at_least=1)
    dropout: float = option(at_least=0, below=1)
    attention_dropout: float = option(at_least=0, below=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A width that the heads cannot share evenly."""
        if self.heads >= 1 and self.width % self.heads:
            yield "width", f"must be a multiple of heads={self.heads}"

    def network(self, task: Task) -> nn.Module:
        """Layers named as torchvision names them, ``in_proj`` being a linear layer."""
        from gnewton.models.nets.transformer import vision_transformer

        channels, height, width = demands.image_shape(self.name, task)
        if height != width or height % self.patch_size:
            needs = f"square images whose side is a multiple of model.patch_size={self.patch_size}"
            raise demands.mismatch(self.name, needs, task)
        return vision_transformer(
            channels=channels,
            outputs=task.outputs,
            image_size=height,
            patch_size=self.patch_size,
            depth=self.depth,
            heads=self.heads,
            width=self.width,
            mlp_width=self.mlp_width,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
        )
