"""How large the rounding errors of a summary are (docs/engine.md, "Rounding").

An inner product ⟨a, b⟩ of n entries is known to a small multiple of unit · ‖a‖ ‖b‖, where ``unit`` is the
relative rounding error of a number: the errors of the entries of an adjoint have causes in common (the mean
that a normalisation takes away), so they need not average out. Half precision works in float32 and rounds
every result by itself: these errors do average out, by √n, and a bound that does not count on it would call
every mini-batch gradient noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

PRODUCT = 8.0  # of an inner product of adjoint and tangent, in units of the product of their norms
LOSS = 0.5  # of an adjoint that is the difference of two terms, in units of these
SLOPE = 2.0  # of the gradient, in units of the difference between its two estimates
CURVED = 64.0  # of a contribution to the Hessian or the third derivative, which may cancel within itself
CURVED_COARSE = 4.0  # the same in a coarse precision
COARSE = 1e-4  # units from here on belong to half precision or TF32
TF32 = 2.0**-10


@dataclass(frozen=True)
class Rounding:
    """The rounding errors of one precision.

    Attributes:
        unit: relative error of a product of two numbers.
    """

    unit: float

    @classmethod
    def of(cls, dtypes: Iterable[torch.dtype], device: torch.device) -> Rounding:
        """That of the coarsest of the types, as the device multiplies them now."""
        return cls(max((_unit(dtype, device) for dtype in dtypes), default=0.0))

    @property
    def curved(self) -> float:
        """Of a contribution to the Hessian or the third derivative, relative to its magnitude."""
        return (CURVED if self.unit < COARSE else CURVED_COARSE) * self.unit

    def inner(self, terms: int) -> float:
        """Of an inner product of ``terms`` numbers, relative to the product of the norms."""
        if self.unit < COARSE:
            return self.unit
        return self.unit / math.sqrt(max(terms, 1)) + torch.finfo(torch.float32).eps


def _unit(dtype: torch.dtype, device: torch.device) -> float:
    on_cuda = device.type == "cuda" and dtype == torch.float32
    return TF32 if on_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32" else torch.finfo(dtype).eps
