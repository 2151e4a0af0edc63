"""The result: derivatives along a direction, group by group, with their rounding errors, and their table.

An inner product ⟨a, b⟩ of n entries has an error of a small multiple of unit · ‖a‖ ‖b‖, where ``unit`` is the
relative rounding error of a number (docs/engine.md, "Rounding"). The errors of the entries of an adjoint have
common causes (the mean that a normalisation subtracts), so they need not average out. Half precision computes
in float32 and rounds every result by itself. These errors do average out, by √n; a bound without this factor
would call every gradient of a mini-batch noise.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnewton.errors import GnewtonError

if TYPE_CHECKING:
    import pandas as pd

ROWS = 60
"""Rows of a table that are shown; the middle of a longer one is left out."""

SHOWN = ("gradient", "curvature", "third")
"""Columns of the table as text."""


def group_frame(parts: Mapping[str, Tensor], names: Sequence[str]) -> pd.DataFrame:
    """A row for each group, by its name, else its number: derivatives and their noise.

    The columns are ``gradient``, ``curvature`` (the diagonal of H̄), ``third`` where it was requested, and
    each of them with ``_noise``, in the unit of the loss.

    Args:
        parts: the tensors of the summary by attribute.
        names: of the groups; empty where they are not known.
    """
    import pandas as pd

    columns = {}
    for suffix in ("", "_noise"):
        for name in SHOWN:
            entries = parts.get({"curvature": "hessian"}.get(name, name) + suffix)
            if entries is not None:
                columns[name + suffix] = (entries if entries.dim() == 1 else entries.diagonal()).cpu().numpy()
    index = pd.Index(list(names) or range(len(columns["gradient"])), name="group")
    return pd.DataFrame(columns, index=index)


def title(count: int, loss: float) -> str:
    """The line above the table."""
    return f"Summary of {count} group{'s' if count != 1 else ''}, loss {loss:.6g}"


def as_text(head: str, table: pd.DataFrame) -> str:
    """A title and the derivatives of each group."""
    return f"{head}\n{_shown(table).to_string(max_rows=ROWS, float_format=lambda value: f'{value:.4g}')}"


def as_html(head: str, table: pd.DataFrame) -> str:
    """The table of :func:`as_text` as HTML."""
    cells = _shown(table).to_html(max_rows=ROWS, float_format=lambda value: f"{value:.4g}", border=0)
    return f"<div><p>{html.escape(head)}</p>\n{cells}</div>"


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in SHOWN if name in table]]


class SummaryError(GnewtonError):
    """A summary cannot be computed or is inconsistent; the message gives the reason."""


_ZEROS: Any = None
MOST_SQUARED = 512  # groups up to which the spread of every entry of the matrix over samples is formed
SQUARES = ("samples", "gradient_squares", "hessian_squares")


@dataclass(frozen=True, repr=False)
class Summary:
    """Derivatives of the batch loss L along the direction u, group by group (arXiv 2312.03885, section 3).

    With φ(ε) = L(θ + Σ_s ε_s P_s u), where P_s keeps the parameters of group s, the fields hold the
    derivatives of φ at ε = 0. All are exact, float64, detached, and on the model's device. Their unit is that
    of the loss times (1/ε) to the order of the derivative, with ε free of unit.

    Attributes:
        gradient: ∂φ/∂ε_s = ⟨∇L, P_s u⟩, shape (S,).
        hessian: ∂²φ/∂ε_s∂ε_t = (P_s u)ᵀ ∇²L (P_t u), shape (S, S), exactly symmetric; shape (S,) where
            only the diagonal was requested.
        third: ∂³φ/∂ε_s³, shape (S,); None where it was not requested.
        loss: φ(0), the loss of the batch, a scalar.
        gradient_noise, hessian_noise, third_noise: an upper estimate of the rounding error of each entry, in
            the shape and the unit of the entries. An entry no larger in magnitude than its level cannot be
            told from 0. The default is zero; ``third_noise`` is None where ``third`` is.
        names: of the groups; empty where they are not known.
        matrix: what ``hessian`` holds: "hessian", "gauss_newton" or "fisher".
        samples: number N of samples, where sums over them are known; else None, as the next two.
        gradient_squares: Σ_n c_n c_nᵀ, (S, S), with c_n the share of sample n in the gradient, Σ_n c_n = ḡ.
        hessian_squares: Σ_n C_n ∘ C_n in the shape of ``hessian``, with C_n the share of sample n in it;
            None for more than 512 groups.
    """

    gradient: Tensor
    hessian: Tensor
    third: Tensor | None
    loss: Tensor
    gradient_noise: Tensor = _ZEROS
    hessian_noise: Tensor = _ZEROS
    third_noise: Tensor | None = None
    names: tuple[str, ...] = field(default=(), compare=False)
    matrix: str = "hessian"
    samples: Tensor | None = None
    gradient_squares: Tensor | None = None
    hessian_squares: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("gradient", "hessian", "third"):
            entries = getattr(self, name)
            if getattr(self, f"{name}_noise") is None and entries is not None:
                object.__setattr__(self, f"{name}_noise", torch.zeros_like(entries))

    @classmethod
    def of(cls, parts: Mapping[str, Tensor]) -> Summary:
        """A summary from its :meth:`parts`."""
        rest: dict[str, Any] = {name: part for name, part in parts.items() if name != "third"}
        return cls(third=parts.get("third"), **rest)

    def parts(self) -> dict[str, Tensor]:
        """The tensors by attribute, in a fixed order. All of them add up where losses add up."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: part for name, part in parts.items() if isinstance(part, Tensor) and name not in SQUARES
        }

    def squares(self) -> dict[str, Tensor]:
        """The sums of squares over samples; they add up with the squares of the weights of :meth:`parts`."""
        squares = {name: getattr(self, name) for name in SQUARES}
        return {name: part for name, part in squares.items() if part is not None}

    def __len__(self) -> int:
        return self.gradient.numel()

    @property
    def gradient_covariance(self) -> Tensor | None:
        """The covariance of ḡ over batches of independent samples, (S, S); None where it is not known."""
        if self.samples is None or self.samples <= 1 or self.gradient_squares is None:
            return None
        mean = torch.outer(self.gradient, self.gradient) / self.samples
        return (self.gradient_squares - mean) * (self.samples / (self.samples - 1))

    @property
    def gradient_error(self) -> Tensor | None:
        """The standard error of ḡ over batches of independent samples, (S,); None where it is not known."""
        covariance = self.gradient_covariance
        return None if covariance is None else covariance.diagonal().clamp_min(0).sqrt()

    @property
    def hessian_error(self) -> Tensor | None:
        """The standard error of every entry of ``hessian``; the drawn labels of a Fisher matrix count."""
        if self.samples is None or self.samples <= 1 or self.hessian_squares is None:
            return None
        spread = self.hessian_squares - self.hessian.square() / self.samples
        return (spread * (self.samples / (self.samples - 1))).clamp_min(0).sqrt()

    @property
    def curvature(self) -> Tensor:
        """The diagonal of the Hessian, shape (S,), in either form of storage."""
        return self.hessian if self.hessian.dim() == 1 else self.hessian.diagonal()

    def to_frame(self) -> pd.DataFrame:
        """A row for each group: gradient, curvature, third and the noise of each."""
        return group_frame(self.parts(), self.names)

    def __repr__(self) -> str:
        return as_text(title(len(self), float(self.loss)), self.to_frame())

    def _repr_html_(self) -> str:
        return as_html(title(len(self), float(self.loss)), self.to_frame())


# --- rounding ----------------------------------------------------------------------------------------------

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
        """The rounding of the coarsest of the types, as the device multiplies them now."""
        return cls(max((_unit(dtype, device) for dtype in dtypes), default=0.0))

    @property
    def curved(self) -> float:
        """The error of a contribution to the Hessian or the third derivative, relative to its magnitude."""
        return (CURVED if self.unit < COARSE else CURVED_COARSE) * self.unit

    def inner(self, terms: int) -> float:
        """The error of an inner product of ``terms`` numbers, relative to the product of the norms."""
        if self.unit < COARSE:
            return self.unit
        return self.unit / math.sqrt(max(terms, 1)) + torch.finfo(torch.float32).eps


def _unit(dtype: torch.dtype, device: torch.device) -> float:
    on_cuda = device.type == "cuda" and dtype == torch.float32
    return TF32 if on_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32" else torch.finfo(dtype).eps
