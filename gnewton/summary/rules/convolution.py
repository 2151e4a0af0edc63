"""Convolutions of one to three dimensions, plain and transposed, as products of activation and weight.

The rows of the tangents join the samples: one call of the same kernel on a batch k times as large.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnewton.summary.rules.product import Product, biased_channels, joined, push_product
from gnewton.summary.rules.table import overloads, rule
from gnewton.summary.site import Site
from gnewton.summary.tangents import Tangent

aten = torch.ops.aten


class _Convolution(Product):
    """z = a ∗ W with the stride, padding, dilation, kind and channel groups of ``options``."""

    def __init__(self, a: Tensor, weight: Tensor, options: list[Any]) -> None:
        super().__init__(a, weight)
        self.options = options

    def _call(self, a: Tensor, weight: Tensor) -> Tensor:
        return aten.convolution.default(a, weight, None, *self.options)

    def left(self, rows: Tensor) -> Tensor:
        return self._call(rows.flatten(0, 1), self.b).unflatten(0, rows.shape[:2])

    def right(self, rows: Tensor) -> Tensor:
        return _stack([self._call(self.a, row) for row in rows])

    def both(self, a_rows: Tensor, b_rows: Tensor) -> Tensor:
        return _stack([self._call(a, b) for a, b in zip(a_rows, b_rows, strict=True)])

    def pull_left(self, adjoint: Tensor, b_rows: Tensor) -> Tensor:
        return _stack([self._pull(adjoint, self.a, row, 0) for row in b_rows])

    def pull_right(self, adjoint: Tensor, a_rows: Tensor) -> Tensor:
        return _stack([self._pull(adjoint, row, self.b, 1) for row in a_rows])

    def _pull(self, adjoint: Tensor, a: Tensor, weight: Tensor, factor: int) -> Tensor:
        mask = [factor == 0, factor == 1, False]
        return aten.convolution_backward.default(adjoint, a, weight, None, *self.options, mask)[factor]


def _stack(results: list[Tensor]) -> Tensor:
    return results[0].unsqueeze(0) if len(results) == 1 else torch.stack(results)


@rule(*overloads("convolution"), adjoint=True, takes_gradient=(1, 2))
def _convolution(site: Site) -> Tangent | None:
    a, weight, _, *options = site.args
    product = _Convolution(a, weight, options)
    terms = push_product(site.sums, product, site.tangent(0), site.tangent(1), site.adjoint())
    return joined([*terms, biased_channels(site, 2)])
