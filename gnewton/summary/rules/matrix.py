"""Products of matrices and vectors; the rows of the tangents join the rows of the matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from gnewton.summary.rules.product import Product, biased, joined, push_product, take_gradient_of_left
from gnewton.summary.rules.table import overloads, rule
from gnewton.summary.site import Site
from gnewton.summary.stacks import Stacks
from gnewton.summary.tangents import Rows, Tangent


class _Matrix(Product):
    """z = ab, (n, j) times (j, m).

    The rows of z leave room for ``joining`` groups that start here, and lie in the memory of ``stacks``.
    """

    def __init__(self, a: Tensor, b: Tensor, stacks: Stacks, joining: int = 0) -> None:
        super().__init__(a, b)
        self.stacks = stacks
        self.joining = joining

    def push_left(self, rows: Rows, overwrite: bool) -> Rows:
        if isinstance(rows.parts[0], FakeTensor):  # a compiler finds its own memory
            return super().push_left(rows, overwrite)
        shape = (len(rows) + self.joining, self.a.shape[0], self.b.shape[1])
        room = self.stacks.empty(shape, rows.parts[0])
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

    def __init__(self, a: Tensor, b: Tensor, stacks: Stacks) -> None:
        super().__init__(a, b)
        self.stacks = stacks

    def pull_left(self, adjoint: Tensor, b_rows: Tensor) -> Tensor:
        return _by_row(adjoint, b_rows.mT, self.stacks)

    def pull_right(self, adjoint: Tensor, a_rows: Tensor) -> Tensor:
        return _by_row(a_rows.mT, adjoint, self.stacks)

    def left(self, rows: Tensor) -> Tensor:
        return _by_row(rows, self.b, self.stacks)

    def right(self, rows: Tensor) -> Tensor:
        return _by_row(self.a, rows, self.stacks)

    def both(self, a_rows: Tensor, b_rows: Tensor) -> Tensor:
        return torch.matmul(a_rows, b_rows)


SMALL = 1 << 12  # numbers: below, one call for all rows costs less than a call for each of them


def _by_row(a: Tensor, b: Tensor, stacks: Stacks) -> Tensor:
    """The batched product of every row of a stack with a factor that is the same for all of them.

    ``matmul`` would copy that factor once per row. On a CPU large factors take a call per row instead.
    """
    stack, fixed = (a, b) if a.dim() > b.dim() else (b, a)
    if a.is_cuda or fixed.numel() < SMALL or fixed.dim() < 3:
        return torch.matmul(a, b)
    out = stacks.empty((len(stack), *fixed.shape[:-2], a.shape[-2], b.shape[-1]), a)
    for target, row in zip(out, stack, strict=True):
        torch.matmul(*((row, fixed) if stack is a else (fixed, row)), out=target)
    return out


@rule(*overloads("mm"), adjoint=True, takes_gradient=(0, 1))
def _mm(site: Site) -> Tangent | None:
    a, b = site.args
    product = _Matrix(a, b, site.stacks, _joining(site.tangent(0), site.tangent(1)))
    terms = push_product(site.sums, product, site.tangent(0), site.tangent(1), site.adjoint())
    take_gradient_of_left(site.sums, site.tangent(0), terms, site.adjoint())
    return joined(terms)


def _joining(moving: Tangent | None, *others: Tangent | None) -> int:
    """How many groups of ``others`` come behind the last of ``moving``."""
    if moving is None:
        return 0
    last = moving.first.groups[-1]
    return len({g for other in others if other is not None for g in other.first.groups if g > last})


@rule(*overloads("bmm"), adjoint=True)
def _bmm(site: Site) -> Tangent | None:
    a, b = site.args
    product = _Batch(a, b, site.stacks)
    return joined(push_product(site.sums, product, site.tangent(0), site.tangent(1), site.adjoint()))


@rule(*overloads("addmm"), adjoint=True, takes_gradient=(0, 2))
def _addmm(site: Site) -> Tangent | None:
    _, a, b = site.args
    beta, alpha = site.kwargs.get("beta", 1), site.kwargs.get("alpha", 1)
    adjoint = site.adjoint()
    scaled = adjoint if alpha == 1 or adjoint is None else adjoint * alpha
    product = _Matrix(a, b, site.stacks, _joining(site.tangent(1), site.tangent(2), site.tangent(0)))
    terms = push_product(site.sums, product, site.tangent(1), site.tangent(2), scaled)
    if alpha != 1:
        terms = [term.map(lambda rows: rows.mul_(alpha), fresh=True) for term in terms]
    return joined([*terms, biased(site, 0, site.value.shape, beta)])


@rule(*overloads("baddbmm"), adjoint=True)
def _baddbmm(site: Site) -> Tangent | None:
    _, a, b = site.args
    beta, alpha = site.kwargs.get("beta", 1), site.kwargs.get("alpha", 1)
    adjoint = site.adjoint()
    scaled = adjoint if alpha == 1 or adjoint is None else adjoint * alpha
    terms = push_product(site.sums, _Batch(a, b, site.stacks), site.tangent(1), site.tangent(2), scaled)
    if alpha != 1:
        terms = [term.map(lambda rows: rows.mul_(alpha), fresh=True) for term in terms]
    return joined([*terms, biased(site, 0, site.value.shape, beta)])


@rule(*overloads("dot", "mv"), adjoint=True)
def _vector_product(site: Site) -> Tangent | None:
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
    out = joined(push_product(site.sums, _Batch(a, b.unsqueeze(1), site.stacks), x, y, column))
    assert out is not None
    return out.map(lambda rows: rows.reshape(rows.shape[0], *site.value.shape), fresh=False)
