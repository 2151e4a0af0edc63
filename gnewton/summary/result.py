"""What a summary is: a few numbers per group that describe the loss along one direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import GnewtonError


class SummaryError(GnewtonError):
    """A summary could not be made, or contradicts itself; the message says why."""


_LEFT_OUT: Any = None


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
        gradient_noise, hessian_noise, third_noise: how far rounding errors may have moved each entry, an
            upper estimate in the shape and the unit of the entries. An entry no larger in magnitude than its
            level cannot be told from 0. Zeros where they are left out; ``third_noise`` is None where
            ``third`` is.
    """

    gradient: Tensor
    hessian: Tensor
    third: Tensor | None
    loss: Tensor
    gradient_noise: Tensor = _LEFT_OUT
    hessian_noise: Tensor = _LEFT_OUT
    third_noise: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("gradient", "hessian", "third"):
            entries = getattr(self, name)
            if getattr(self, f"{name}_noise") is None and entries is not None:
                object.__setattr__(self, f"{name}_noise", torch.zeros_like(entries))

    @classmethod
    def of(cls, parts: Mapping[str, Tensor]) -> Summary:
        """A summary from its :meth:`parts`."""
        rest = {name: part for name, part in parts.items() if name != "third"}
        return cls(third=parts.get("third"), **rest)

    def parts(self) -> dict[str, Tensor]:
        """The tensors it holds, by attribute, in a fixed order: all of them add up where losses add up."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}

    def __len__(self) -> int:
        return self.gradient.numel()

    @property
    def curvature(self) -> Tensor:
        """The diagonal of the Hessian, shape (S,), however the Hessian is stored."""
        return self.hessian if self.hessian.dim() == 1 else self.hessian.diagonal()
