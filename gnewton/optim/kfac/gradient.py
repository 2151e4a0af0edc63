"""The gradient of a layer as a matrix, and its product with a matrix from either side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = tuple[Tensor, Tensor | None]
"""Gradient-like numbers of a layer: (outputs, fan_in) for its weight, (outputs,) for its bias."""


class LayerGradient(ABC):
    """∇W (outputs, inputs), the gradient of the weight, flattened, with that of the bias as last column."""

    @abstractmethod
    def sandwich(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Two matrices whose product is leftᵀ ∇W right."""


@dataclass(frozen=True)
class DenseGradient(LayerGradient):
    """∇W as a full matrix."""

    matrix: Tensor

    @staticmethod
    def of(weight: Tensor, bias: Tensor | None) -> DenseGradient:
        """Join the gradients of weight and bias, in the factors' precision."""
        matrix = weight.flatten(1)
        if bias is not None:
            matrix = torch.cat([matrix, bias.unsqueeze(1)], dim=1)
        return DenseGradient(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))

    def sandwich(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """(leftᵀ ∇W, right): o²i multiplications now, oi² for the product."""
        return left.T @ self.matrix, right


@dataclass(frozen=True)
class LowRankGradient(LayerGradient):
    """∇W = Σ_n g_n ā_nᵀ of a linear layer, by its R rows.

    Attributes:
        inputs: (R, fan_in).
        outputs: (R, outputs), the gradients of the mean loss with respect to the layer's outputs.
        bias: whether the layer has a bias, whose input is 1.
    """

    inputs: Tensor
    outputs: Tensor
    bias: bool

    def sandwich(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """((g left)ᵀ, ā right): R(o² + i²) multiplications now, R·o·i for the product."""
        projected = torch.addmm(right[-1], self.inputs, right[:-1]) if self.bias else self.inputs @ right
        return (self.outputs @ left).T, projected

    @staticmethod
    def pays(samples: int, inputs: int, outputs: int) -> bool:
        """Whether so few rows make the products cheaper than those of the full matrix."""
        by_rows = samples * (inputs**2 + outputs**2 + inputs * outputs)
        return by_rows < inputs * outputs * (inputs + outputs)


def product(left: Tensor, right: Tensor, bias: bool) -> Parts:
    """left right, its last column apart where that belongs to the bias; both parts contiguous."""
    if not bias:
        return left @ right, None
    return left @ right[:, :-1], left @ right[:, -1]
