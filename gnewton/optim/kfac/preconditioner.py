"""The preconditioner of a layer: inverses of its factors, or their eigenvectors with a scale."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import GnewtonError
from gnewton.optim.kfac.layer_gradient import LayerGradient, LayerStep, WholeStep, product
from gnewton.optim.kfac.statistics import Basis, Factors

_ATTEMPTS = 8
"""Number of attempts at a Cholesky decomposition, each with ten times the damping of the one before: rounding
errors alone can make an average of squares indefinite."""


class Preconditioner(ABC):
    """The map from ∇W to V of one layer, as of the last refresh."""

    @staticmethod
    @abstractmethod
    def refresh(preconditioners: Sequence[Any], factors: Sequence[Factors], damping: float) -> None:
        """Take in the present factors of each layer, all layers at once."""

    @abstractmethod
    def apply(self, gradient: LayerGradient, damping: float) -> LayerStep:
        """V."""

    def observe(self, squares: Tensor | None, finite: Tensor, decay: float) -> None:
        """Take in squares of gradients in :attr:`basis`; ``finite``: whether the samples were finite."""
        return

    @property
    def basis(self) -> Basis | None:
        """The basis in which gradients are squared; None: they are not."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The tensors of the state, by name."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the value of :meth:`state`."""


@dataclass(frozen=True)
class Explicit:
    """A symmetric matrix by its entries."""

    matrix: Tensor

    def of_rows(self, rows: Tensor) -> Tensor:
        """X S."""
        return rows @ self.matrix

    def of_columns(self, columns: Tensor) -> Tensor:
        """S X."""
        return self.matrix @ columns


class Inverses(Preconditioner):
    """V = (G + √λ/π I)⁻¹ ∇W (A + π√λ I)⁻¹: Tikhonov damping, split by π = √((tr A/dim A)/(tr G/dim G))."""

    def __init__(self) -> None:
        self.a = self.g = torch.empty(0)

    @staticmethod
    def refresh(preconditioners: Sequence[Inverses], factors: Sequence[Factors], damping: float) -> None:
        """Invert the factors of all layers."""
        inverses = iter(damped_inverses(*damped_factors(factors, damping)))
        for preconditioner in preconditioners:
            preconditioner.a, preconditioner.g = next(inverses), next(inverses)

    def apply(self, gradient: LayerGradient, damping: float) -> LayerStep:
        """V, by two products with the explicit inverses."""
        return gradient.between(Explicit(self.g), Explicit(self.a))

    def state(self) -> dict[str, Tensor]:
        """The two inverses."""
        return {"a_inverse": self.a, "g_inverse": self.g}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the inverses."""
        self.a, self.g = state["a_inverse"], state["g_inverse"]


def split_damping(factors: Factors, damping: float) -> tuple[Tensor, Tensor]:
    """π√λ for A and √λ/π for G, scalars on the device; π is 1 if a factor vanishes."""
    mean_a, mean_g = factors.a.diagonal().mean(), factors.g.diagonal().mean()
    ratio = torch.sqrt(mean_a / mean_g)
    ratio = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    root = damping**0.5
    return ratio * root, root / ratio


def damped_inverses(matrices: Sequence[Tensor], dampings: Sequence[Tensor]) -> list[Tensor]:
    """(M + d I)⁻¹ of symmetric positive semidefinite matrices, by Cholesky.

    If the decomposition fails, it is repeated with ten times d. The host waits for the device once per round
    of attempts.

    Raises:
        GnewtonError: if a matrix is not finite, or far from semidefinite.
    """
    inverses: list[Tensor] = list(matrices)
    remaining = list(range(len(matrices)))
    factor = 1.0
    for _ in range(_ATTEMPTS):
        flags = []
        for index in remaining:
            damped = matrices[index].clone()
            damped.diagonal().add_(dampings[index] * factor)
            lower, info = torch.linalg.cholesky_ex(damped)
            inverses[index] = lower
            flags.append(info)
        failed = torch.stack(flags).tolist()
        for index, info in zip(remaining, failed, strict=True):
            if info == 0:
                inverses[index] = torch.cholesky_inverse(inverses[index])
        remaining = [index for index, info in zip(remaining, failed, strict=True) if info != 0]
        if not remaining:
            return inverses
        factor *= 10
    raise GnewtonError(
        f"K-FAC: a factor is not positive definite even with {factor / 10:g} times the damping"
    )


def damped_factors(factors: Sequence[Factors], damping: float) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices A, G, A, G, … of all layers, and the damping of each."""
    matrices: list[Tensor] = []
    dampings: list[Tensor] = []
    for factor in factors:
        matrices += [factor.a, factor.g]
        dampings += split_damping(factor, damping)
    return matrices, dampings


class Eigen(Preconditioner):
    """V = Q_G [(Q_Gᵀ ∇W Q_A) / (s + λ)] Q_Aᵀ with s = d_G d_Aᵀ: λ is added to products of eigenvalues.

    (d_A, Q_A) and (d_G, Q_G) are the eigenvalues and eigenvectors of A and G.
    """

    def __init__(self) -> None:
        self.inputs = self.outputs = self.scale = torch.empty(0)

    @staticmethod
    def refresh(preconditioners: Sequence[Eigen], factors: Sequence[Factors], damping: float) -> None:
        """Decompose the factors; the scale is the products of their eigenvalues."""
        for kept, factor in zip(preconditioners, factors, strict=True):
            d_a, kept.inputs = _eigh(factor.a)
            d_g, kept.outputs = _eigh(factor.g)
            kept.scale = torch.outer(d_g.clamp_min(0), d_a.clamp_min(0))

    def apply(self, gradient: LayerGradient, damping: float) -> LayerStep:
        """V: rotate into the eigenbasis, divide, rotate back."""
        left, right = gradient.sandwich(self.outputs, self.inputs)
        rotated = (left @ right).div_(self.scale + damping)
        return WholeStep(*product(self.outputs @ rotated, self.inputs.T, gradient.bias))

    def state(self) -> dict[str, Tensor]:
        """Eigenvectors and scale."""
        return {"q_a": self.inputs, "q_g": self.outputs, "scale": self.scale}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore eigenvectors and scale."""
        self.inputs, self.outputs, self.scale = state["q_a"], state["q_g"], state["scale"]


class Corrected(Eigen):
    """EKFAC: s is the running average of the squared gradients of single samples in the eigenbasis.

    s starts from d_G d_Aᵀ at every refresh.
    """

    @property
    def basis(self) -> Basis | None:
        """The eigenvectors; None before the first refresh."""
        return Basis(self.inputs, self.outputs) if self.inputs.numel() else None

    def observe(self, squares: Tensor | None, finite: Tensor, decay: float) -> None:
        """s ← decay·s + (1 − decay)·squares."""
        if squares is not None:
            finite = finite & torch.isfinite(squares.sum())
            self.scale.lerp_(torch.where(finite, squares, self.scale), 1 - decay)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric matrix; in float64 if its own precision is not enough."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values, vectors = torch.linalg.eigh(matrix.double())
        return values.to(matrix.dtype), vectors.to(matrix.dtype)
    return values, vectors
