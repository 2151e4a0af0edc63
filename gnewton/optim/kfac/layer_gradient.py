"""The gradient of a layer, as a matrix or by its rows, and the step that is made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

Parts = tuple[Tensor, Tensor | None]
"""A gradient or step of a layer: (outputs, fan_in) for its weight, (outputs,) for its bias."""


class Symmetric(Protocol):
    """A symmetric matrix S, (n, n), given by its products."""

    def of_rows(self, rows: Tensor) -> Tensor:
        """X S, for X of shape (k, n)."""

    def of_columns(self, columns: Tensor) -> Tensor:
        """S X, for X of shape (n, k)."""


class LayerStep(ABC):
    """V of a layer, (outputs, inputs), perhaps not multiplied out."""

    @abstractmethod
    def parts(self) -> Parts:
        """V for weight and bias, contiguous."""

    @abstractmethod
    def along(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """⟨V, ∇W⟩, a scalar; ``weight`` and ``bias`` are the parts of ∇W, where there are any."""

    @abstractmethod
    def scale(self, factor: Tensor) -> None:
        """V ← factor · V."""


@dataclass
class WholeStep(LayerStep):
    """V as a matrix, with the column of the bias apart."""

    weight: Tensor
    bias: Tensor | None

    def parts(self) -> Parts:
        """V itself."""
        return self.weight, self.bias

    def along(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The sum of the products of entries."""
        pairs = ((self.weight, weight), (self.bias, bias))
        products = [
            v.flatten() @ g.flatten().to(v.dtype) for v, g in pairs if v is not None and g is not None
        ]
        return torch.stack(products).sum()

    def scale(self, factor: Tensor) -> None:
        """In place."""
        self.weight.mul_(factor)
        if self.bias is not None:
            self.bias.mul_(factor)


@dataclass
class StepByRows(LayerStep):
    """V = Σ_n p_n q_nᵀ, which can be added to a matrix in the pass that multiplies it out.

    Attributes:
        outputs: p, (R, outputs).
        inputs: q, (R, inputs).
        gradient: that from which V was made.
    """

    outputs: Tensor
    inputs: Tensor
    gradient: LowRankGradient

    def parts(self) -> Parts:
        """The product."""
        return product(self.outputs.T, self.inputs, self.gradient.bias)

    def along(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Σ_nm (p_n · g_m)(q_n · ā_m): R²(o + i) multiplications, and no pass over V."""
        return torch.sum((self.outputs @ self.gradient.outputs.T) * (self.inputs @ self.gradient.extended.T))

    def scale(self, factor: Tensor) -> None:
        """By the rows of the outputs."""
        self.outputs = self.outputs * factor

    def average_into(self, weight: Tensor, bias: Tensor | None, momentum: float) -> None:
        """m ← momentum · m + V in place, one pass over m; ``weight`` is (outputs, fan_in)."""
        fan_in = weight.shape[1]
        weight.addmm_(self.outputs.T, self.inputs[:, :fan_in], beta=momentum)
        if bias is not None:
            bias.addmv_(self.outputs.T, self.inputs[:, fan_in], beta=momentum)


class LayerGradient(ABC):
    """∇W, (outputs, inputs): the flattened gradient of the weight, with that of the bias as last column."""

    bias: bool

    @abstractmethod
    def sandwich(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Two matrices whose product is leftᵀ ∇W right."""

    @abstractmethod
    def between(self, left: Symmetric, right: Symmetric) -> LayerStep:
        """left · ∇W · right."""


@dataclass(frozen=True)
class DenseGradient(LayerGradient):
    """∇W as a full matrix; ``bias``: whether its last column is that of a bias."""

    matrix: Tensor
    bias: bool

    @staticmethod
    def of(weight: Tensor, bias: Tensor | None) -> DenseGradient:
        """Join the gradients of weight and bias, in the precision of the factors."""
        matrix = weight.flatten(1)
        if bias is not None:
            matrix = torch.cat([matrix, bias.unsqueeze(1)], dim=1)
        return DenseGradient(matrix.to(torch.promote_types(matrix.dtype, torch.float32)), bias is not None)

    def sandwich(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """(leftᵀ ∇W, right): o²i multiplications now, oi² for the product."""
        return left.T @ self.matrix, right

    def between(self, left: Symmetric, right: Symmetric) -> LayerStep:
        """The whole matrix."""
        step = right.of_rows(left.of_columns(self.matrix))
        if not self.bias:
            return WholeStep(step, None)
        return WholeStep(step[:, :-1].contiguous(), step[:, -1].contiguous())


@dataclass(frozen=True)
class LowRankGradient(LayerGradient):
    """∇W = Σ_n g_n ā_nᵀ of a linear layer, as R rows.

    Attributes:
        inputs: (R, fan_in).
        outputs: (R, outputs), the gradients of the mean loss with respect to the layer's outputs.
        bias: whether the layer has a bias, whose input is 1.
    """

    inputs: Tensor
    outputs: Tensor
    bias: bool

    @cached_property
    def extended(self) -> Tensor:
        """ā, (R, inputs)."""
        if not self.bias:
            return self.inputs
        return torch.cat([self.inputs, self.inputs.new_ones(len(self.inputs), 1)], dim=1)

    def sandwich(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """((g left)ᵀ, ā right): R(o² + i²) multiplications now, R·o·i for the product."""
        return (self.outputs @ left).T, self.extended @ right

    def between(self, left: Symmetric, right: Symmetric) -> LayerStep:
        """By rows."""
        return StepByRows(left.of_rows(self.outputs), right.of_rows(self.extended), self)

    @staticmethod
    def pays(samples: int, inputs: int, outputs: int) -> bool:
        """Whether products by rows are cheaper than products with the full matrix."""
        by_rows = samples * (inputs**2 + outputs**2 + inputs * outputs)
        return by_rows < inputs * outputs * (inputs + outputs)


def product(left: Tensor, right: Tensor, bias: bool) -> Parts:
    """The product left · right, with the last column split off for the bias; both parts are contiguous."""
    if not bias:
        return left @ right, None
    return left @ right[:, :-1], left @ right[:, -1]
