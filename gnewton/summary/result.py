"""What a summary is: a few numbers per group that describe the loss along one direction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gnewton.errors import GnewtonError


class SummaryError(GnewtonError):
    """A summary could not be made, or contradicts itself; the message says why."""


@dataclass(frozen=True)
class Summary:
    """Derivatives of the batch loss L along the direction u, group by group (arXiv 2312.03885, section 3).

    With φ(ε) = L(θ + Σ_s ε_s P_s u), where P_s keeps the parameters of group s, the fields hold the
    derivatives of φ at ε = 0. All are exact, float64, detached, and on the model's device. Their unit is that
    of the loss times (1/ε) to the order of the derivative, with ε free of unit.

    Attributes:
        gradient: ∂φ/∂ε_s = ⟨∇L, P_s u⟩, shape (S,).
        hessian: ∂²φ/∂ε_s∂ε_t = (P_s u)ᵀ ∇²L (P_t u), shape (S, S), exactly symmetric; shape (S,), its
            diagonal alone, where only that was asked for.
        third: ∂³φ/∂ε_s³, shape (S,); None where it was not asked for.
        loss: φ(0), the loss of the batch, a scalar.
    """

    gradient: Tensor
    hessian: Tensor
    third: Tensor | None
    loss: Tensor

    def __len__(self) -> int:
        return self.gradient.numel()

    @property
    def curvature(self) -> Tensor:
        """The diagonal of the Hessian, shape (S,), however the Hessian is stored."""
        return self.hessian if self.hessian.dim() == 1 else self.hessian.diagonal()
