"""Products of two tensors: matrices, vectors and convolutions.

The rows of the tangents join the rows of the matrix, or the samples of the convolution (one to three
dimensions, plain and transposed): one call of the same kernel on a batch k times as large.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import being_compiled
from gnewton.summary.tangent.rules.product import (
    Product,
    biased,
    biased_channels,
    joined,
    push_product,
    take_gradient_of_left,
)
from gnewton.summary.tangent.rules.rule import OperationSite, overloads, rule
from gnewton.summary.tangent.tangent import Rows, Tangent

aten = torch.ops.aten


class _Matrix(Product):
    """z = ab, (n, j) times (j, m).

    The rows of z leave room for ``joining`` groups that start here.
    """

    def __init__(self, a: Tensor, b: Tensor, joining: int = 0) -> None:
        super().__init__(a, b)
        self.joining = joining

    def push_left(self, rows: Rows, overwrite: bool) -> Rows:
        if being_compiled(rows.parts[0]):  # the compiler manages memory
            return super().push_left(rows, overwrite)
        shape = (len(rows) + self.joining, self.a.shape[0], self.b.shape[1])
        room = rows.parts[0].new_empty(shape)
        offset = 0
        for part in rows.parts:
            target = room[offset : offset + len(part)]
            torch.mm(part.reshape(-1, part.shape[2]), self.b, out=target.view(-1, shape[2]))
            offset += len(part)
        return Rows(rows.groups, [room[:offset]], owned=True, room=room)

    def left(self, rows: Tensor) -> Tensor:
        k, n, j = rows.shape
        return torch.mm(rows.reshape(k * n, j), self.b).view(k, n, -1)

    def right(self, rows: Tensor) -> Tensor:
        return torch.mm(self.a, rows[0]).unsqueeze(0) if len(rows) == 1 else torch.matmul(self.a, rows)

    def both(self, a_rows: Tensor, b_rows: Tensor) -> Tensor:
        return torch.bmm(a_rows, b_rows)

    def pull_left(self, adjoint: Tensor, b_rows: Tensor) -> Tensor:
        if len(b_rows) == 1:
            return torch.mm(adjoint, b_rows[0].T).unsqueeze(0)
        return torch.matmul(adjoint, b_rows.mT)

    def pull_right(self, adjoint: Tensor, a_rows: Tensor) -> Tensor:
        return torch.matmul(a_rows.mT, adjoint)


class _Batch(Product):
    """z = ab for every sample: (…, n, j) times (…, j, m)."""

    def pull_left(self, adjoint: Tensor, b_rows: Tensor) -> Tensor:
        return rows_by_row(adjoint, b_rows.mT)

    def pull_right(self, adjoint: Tensor, a_rows: Tensor) -> Tensor:
        return rows_by_row(a_rows.mT, adjoint)

    def left(self, rows: Tensor) -> Tensor:
        return rows_by_row(rows, self.b)

    def right(self, rows: Tensor) -> Tensor:
        return rows_by_row(self.a, rows)

    def both(self, a_rows: Tensor, b_rows: Tensor) -> Tensor:
        return torch.matmul(a_rows, b_rows)


def matrix_product(a: Tensor, b: Tensor) -> Product:
    """The product of two matrices, or of two batches of them."""
    return _Matrix(a, b) if a.dim() == 2 else _Batch(a, b)


SMALL = 1 << 12  # entries of a factor below which one call for all rows costs less than a call per row


def rows_by_row(a: Tensor, b: Tensor) -> Tensor:
    """The batched product of every row of a stack with a factor that all rows share.

    ``matmul`` would copy that factor once per row. On a CPU, large factors take a call per row instead.
    """
    stack, fixed = (a, b) if a.dim() > b.dim() else (b, a)
    if a.is_cuda or fixed.numel() < SMALL or fixed.dim() < 3:
        return torch.matmul(a, b)
    out = a.new_empty((len(stack), *fixed.shape[:-2], a.shape[-2], b.shape[-1]))
    for target, row in zip(out, stack, strict=True):
        torch.matmul(*((row, fixed) if stack is a else (fixed, row)), out=target)
    return out


@rule(*overloads("mm"), adjoint=True, takes_gradient=(0, 1))
def _mm(site: OperationSite) -> Tangent | None:
    a, b = site.args
    product = _Matrix(a, b, _joining(site.tangent(0), site.tangent(1)))
    terms = push_product(site.sums, product, site.tangent(0), site.tangent(1), site.adjoint())
    take_gradient_of_left(site.sums, site.tangent(0), terms, site.adjoint())
    return joined(terms)


def _joining(moving: Tangent | None, *others: Tangent | None) -> int:
    """The number of groups of ``others`` behind the last of ``moving``."""
    if moving is None:
        return 0
    last = moving.first.groups[-1]
    return len({g for other in others if other is not None for g in other.first.groups if g > last})


@rule(*overloads("bmm"), adjoint=True)
def _bmm(site: OperationSite) -> Tangent | None:
    a, b = site.args
    product = _Batch(a, b)
    return joined(push_product(site.sums, product, site.tangent(0), site.tangent(1), site.adjoint()))


@rule(*overloads("addmm"), adjoint=True, takes_gradient=(0, 2))
@rule(*overloads("baddbmm"), adjoint=True)
def _biased_product(site: OperationSite) -> Tangent | None:
    """β bias + α ab."""
    _, a, b = site.args
    beta, alpha = site.kwargs.get("beta", 1), site.kwargs.get("alpha", 1)
    adjoint = site.adjoint()
    scaled = adjoint if alpha == 1 or adjoint is None else adjoint * alpha
    product: Product = _Batch(a, b)
    if a.dim() == 2:
        product = _Matrix(a, b, _joining(site.tangent(1), site.tangent(2), site.tangent(0)))
    terms = push_product(site.sums, product, site.tangent(1), site.tangent(2), scaled)
    if alpha != 1:
        terms = [term.map(lambda rows: rows.mul_(alpha), fresh=True) for term in terms]
    return joined([*terms, biased(site, 0, site.value.shape, beta)])


@rule(*overloads("dot", "mv", "vdot"), adjoint=True)
def _vector_product(site: OperationSite) -> Tangent | None:
    """Products with a vector, as matrix products with one column (and, for a dot product, one row)."""
    a, b = site.args
    x, y, adjoint = site.tangent(0), site.tangent(1), site.adjoint()
    single = a.dim() == 1
    if single:
        x = None if x is None else x.map(lambda rows: rows.unsqueeze(1), fresh=False)
        a = a.unsqueeze(0)
        adjoint = None if adjoint is None else adjoint.reshape(1)
    y = None if y is None else y.map(lambda rows: rows.unsqueeze(2), fresh=False)
    column = None if adjoint is None else adjoint.unsqueeze(1)
    out = joined(push_product(site.sums, _Batch(a, b.unsqueeze(1)), x, y, column))
    assert out is not None
    return out.map(lambda rows: rows.reshape(rows.shape[0], *site.value.shape), fresh=False)


# --- convolutions ------------------------------------------------------------------------------------------


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


def convolution_product(a: Tensor, weight: Tensor, options: list[Any]) -> Product:
    """The convolution with the stride, padding, dilation, kind and channel groups of ``options``."""
    return _Convolution(a, weight, options)


def _stack(results: list[Tensor]) -> Tensor:
    return results[0].unsqueeze(0) if len(results) == 1 else torch.stack(results)


@rule(*overloads("convolution"), adjoint=True, takes_gradient=(1, 2))
def _convolution(site: OperationSite) -> Tangent | None:
    a, weight, _, *options = site.args
    product = _Convolution(a, weight, options)
    terms = push_product(site.sums, product, site.tangent(0), site.tangent(1), site.adjoint())
    return joined([*terms, biased_channels(site, 2)])
