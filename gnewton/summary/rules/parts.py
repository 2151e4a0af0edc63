"""What a rule knows of one operation before it joins the summary, and whether two ways to it agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """Tangents and contributions of one operation, k groups.

    Attributes:
        groups: the numbers of the groups that move it.
        several: whether it has several values.
        smooth: which of them have derivatives.
        first, second: tangents of these, (k, *shape) each; the second None without third derivatives.
        block: (k, k), what it adds to the Hessian, not yet symmetric; None for nothing.
        third: (k,), what it adds to the third derivatives; None for nothing.
    """

    groups: tuple[int, ...]
    several: bool
    smooth: list[int]
    first: Sequence[Tensor]
    second: Sequence[Tensor] | None
    block: Tensor | None
    third: Tensor | None


def numbers_of(parts: Parts) -> list[Tensor]:
    """What is beyond first order."""
    return [*(parts.second or []), *(x for x in (parts.block, parts.third) if x is not None)]


def disagree(a: Parts, b: Parts) -> str | None:
    """By which part two ways differ beyond rounding; None if they do not.

    Numbers of ``b`` that are not finite say nothing against ``a``.
    """
    tolerance = 1e-6 if a.first[0].dtype == torch.float64 else 2e-2
    zero = torch.zeros((), device=a.first[0].device)
    pairs = [
        *(("first derivative", x, y) for x, y in zip(a.first, b.first, strict=True)),
        *(("second derivative", x, y) for x, y in zip(a.second or [], b.second or [], strict=True)),
        ("curvature", zero if a.block is None else a.block, zero if b.block is None else b.block),
        ("third derivative", zero if a.third is None else a.third, zero if b.third is None else b.third),
    ]
    for order, x, y in pairs:
        right = y.isfinite()
        gap = torch.where(right, x - y, 0).norm()
        scale = torch.where(right, y, 0).norm() + torch.where(right & x.isfinite(), x, 0).norm()
        if not bool(gap <= tolerance * scale + 1e-30):
            return order
    return None
