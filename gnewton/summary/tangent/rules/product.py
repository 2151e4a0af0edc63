"""Products of two factors, z = B(a, b): matrix products, convolutions, gates.

With tangents of both factors,

    ż   ↦ B(ȧ, b) + B(a, ḃ)
    z̈   ↦ B(ä, b) + 2 B(ȧ, ḃ) + B(a, b̈)
    H̄_st += ⟨z̄, B(ȧ^s, ḃ^t) + B(ȧ^t, ḃ^s)⟩
    D3_s += 3 ⟨z̄, B(ȧ^s, b̈^s) + B(ä^s, ḃ^s)⟩

A parameter W with direction U in group w is the case b = W with the single row ḃ^w = U and b̈ = 0.
Contributions are formed by pulling z̄ back through the factor with fewer rows: r^t = ∂⟨z̄, B(a, ḃ^t)⟩/∂a, and
then ⟨ȧ^s, r^t⟩ for every s, a matrix product. The share of a parameter in the gradient is ⟨z̄, B(a, U)⟩. Both
factors are available, so the backward pass need not form ∂L/∂W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import Accumulator, flat, row_dots
from gnewton.summary.tangent.rules.elementwise import push
from gnewton.summary.tangent.rules.rule import OperationSite, overloads, rule
from gnewton.summary.tangent.tangent import Rows, Tangent, fold_rows, line_up, total


class Product(ABC):
    """A bilinear operation at given values a and b. Stacks have the rows in front: (k, *shape)."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a = a
        self.b = b

    @abstractmethod
    def left(self, rows: Tensor) -> Tensor:
        """B(ȧ, b) for a stack of ȧ; new memory."""

    def push_left(self, rows: Rows, overwrite: bool) -> Rows:
        """B(ȧ, b) for all rows; with ``overwrite``, in their own memory if they own it."""
        return rows.map(self.left, fresh=True)

    @abstractmethod
    def right(self, rows: Tensor) -> Tensor:
        """B(a, ḃ) for a stack of ḃ; new memory."""

    @abstractmethod
    def both(self, a_rows: Tensor, b_rows: Tensor) -> Tensor:
        """B(ȧ^s, ḃ^s) for two stacks of as many rows; new memory."""

    @abstractmethod
    def pull_left(self, adjoint: Tensor, b_rows: Tensor) -> Tensor:
        """∂⟨z̄, B(a, ḃ)⟩/∂a for a stack of ḃ, in the shape of a."""

    @abstractmethod
    def pull_right(self, adjoint: Tensor, a_rows: Tensor) -> Tensor:
        """∂⟨z̄, B(ȧ, b)⟩/∂b for a stack of ȧ, in the shape of b."""


def push_product(
    sums: Accumulator, product: Product, a: Tangent | None, b: Tangent | None, adjoint: Tensor | None
) -> list[Tangent]:
    """The terms whose sum is the tangent of B(a, b); adds the contributions of the operation.

    They are returned separately, so a bias joins them without a copy: see :func:`joined`.
    """
    terms: list[Tangent] = []
    bent: Rows | None = None
    if a is not None and b is not None:
        if adjoint is not None:
            _contribute(sums, product, a, b, adjoint)
        shared = tuple(g for g in a.first.groups if g in b.first.groups)
        if sums.with_third and shared:
            mixed = product.both(a.first.pick(shared), b.first.pick(shared)).mul_(2.0)
            bent = Rows(shared, [mixed], owned=True)
    if b is not None:
        moved = b.map(product.right, fresh=True)
        terms.append(moved)
        if b.leaf and adjoint is not None:
            take_gradient(sums, moved.first, adjoint)
    if a is not None:  # last, since it may overwrite memory that the others read
        overwrite = a is not b
        second = None if a.second is None else product.push_left(a.second, overwrite)
        terms.insert(0, Tangent(product.push_left(a.first, overwrite), total([second, bent])))
    return terms


def _contribute(sums: Accumulator, product: Product, a: Tangent, b: Tangent, adjoint: Tensor) -> None:
    if len(b.first) <= len(a.first):
        pulled = Rows(b.first.groups, [product.pull_left(adjoint, b.first.merge())], owned=True)
        sums.add_cross(a.first, pulled)
        _dots(sums, a.second, pulled)
        if b.second is not None and sums.with_third:
            _dots(
                sums,
                a.first,
                Rows(b.second.groups, [product.pull_left(adjoint, b.second.merge())], owned=True),
            )
        return
    pulled = Rows(a.first.groups, [product.pull_right(adjoint, a.first.merge())], owned=True)
    sums.add_cross(b.first, pulled)
    _dots(sums, b.second, pulled)
    if a.second is not None and sums.with_third:
        _dots(
            sums, b.first, Rows(a.second.groups, [product.pull_right(adjoint, a.second.merge())], owned=True)
        )


def _dots(sums: Accumulator, rows: Rows | None, pulled: Rows) -> None:
    """Add 3 ⟨rows^s, pulled^s⟩ to D3_s of every group s of both stacks."""
    if rows is None or not sums.with_third:
        return
    shared = tuple(g for g in rows.groups if g in pulled.groups)
    if shared:
        sums.add_third(shared, row_dots(flat(rows.pick(shared)), flat(pulled.pick(shared))), 3.0)


def take_gradient(sums: Accumulator, moved: Rows, adjoint: Tensor, factor: float = 1) -> None:
    """Add ⟨z̄, ż^w⟩, the share of a parameter of group w in the gradient.

    Args:
        sums: the sums of the summary.
        moved: ż^w, before any broadcast to the shape of z.
        adjoint: z̄.
        factor: a factor of ż^w.
    """
    summed = adjoint if adjoint.shape == moved.shape else adjoint.sum_to_size(moved.shape)
    for groups, part in moved.by_part():
        sums.add_gradient(groups, part if factor == 1 else part * factor, summed, adjoint)


def take_gradient_of_left(
    sums: Accumulator, a: Tangent | None, terms: Sequence[Tangent], adjoint: Tensor | None
) -> None:
    """Add the share of a parameter that is the left factor of a product, from the terms of its tangent."""
    if a is not None and a.leaf and adjoint is not None:
        take_gradient(sums, terms[0].first, adjoint)


def joined(terms: Sequence[Tangent | None]) -> Tangent | None:
    """The sum of tangents of one shape."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    first = total([term.first for term in present])
    assert first is not None
    return Tangent(first, total([term.second for term in present]))


# --- matrix products ----------------------------------------------------------------------------------------


def biased(site: OperationSite, position: int, shape: torch.Size, factor: float = 1) -> Tangent | None:
    """The tangent of an argument that is broadcast to the value and added to it."""
    bias = site.tangent(position)
    if bias is None:
        return None
    spread = bias.spread(shape)
    if factor != 1:
        spread = spread.map(lambda rows: rows * factor, fresh=True)
    adjoint = site.adjoint()
    if bias.leaf and adjoint is not None:
        take_gradient(site.sums, bias.first, adjoint, factor)
    return spread


# --- element-wise products ----------------------------------------------------------------------------------


class _Gate(Product):
    """z = a ∘ b, broadcast."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__(a, b)
        self.dims = max(a.dim(), b.dim())

    def left(self, rows: Tensor) -> Tensor:
        return line_up(rows, self.dims) * self.b

    def push_left(self, rows: Rows, overwrite: bool) -> Rows:
        shape = torch.broadcast_shapes(self.a.shape, self.b.shape)
        if overwrite and rows.owned and rows.shape == shape:
            return Rows(rows.groups, [part.mul_(self.b) for part in rows.parts], owned=True)
        return super().push_left(rows, overwrite)

    def right(self, rows: Tensor) -> Tensor:
        return line_up(rows, self.dims) * self.a

    def both(self, a_rows: Tensor, b_rows: Tensor) -> Tensor:
        return line_up(a_rows, self.dims) * line_up(b_rows, self.dims)

    def pull_left(self, adjoint: Tensor, b_rows: Tensor) -> Tensor:
        return fold_rows(line_up(b_rows, self.dims) * adjoint, self.a.shape)

    def pull_right(self, adjoint: Tensor, a_rows: Tensor) -> Tensor:
        return fold_rows(line_up(a_rows, self.dims) * adjoint, self.b.shape)


def gate(a: Tensor, b: Tensor) -> Product:
    """The element-wise product of two tensors that broadcast."""
    return _Gate(a, b)


@rule(*overloads("mul.Tensor"), adjoint=True, takes_gradient=(0, 1))
def _mul(site: OperationSite) -> Tangent | None:
    a, b = site.args
    x, y, adjoint = site.tangent(0), site.tangent(1), site.adjoint()
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        terms = push_product(site.sums, gate(a, b), x, y, adjoint)
        take_gradient_of_left(site.sums, x, terms, adjoint)
        return joined(terms)
    factor, tangent = (a, site.moving(1)) if isinstance(b, Tensor) else (b, site.moving(0))
    out = tangent.map(lambda rows: rows * factor, fresh=True)
    take_gradient_of_left(site.sums, tangent, [out], adjoint)
    return out


@rule(*overloads("div.Tensor"), adjoint=True)
def _div(site: OperationSite) -> Tangent | None:
    """a / b as a ∘ (1/b)."""
    a, b = site.args
    x, y = site.tangent(0), site.tangent(1)
    if y is None:
        return site.moving(0).map(lambda rows: line_up(rows, site.value.dim()) / b, fresh=True)
    if not isinstance(a, Tensor):
        a = torch.as_tensor(a, dtype=b.dtype, device=b.device)
    inverse = 1 / b
    adjoint = site.adjoint()
    bent = None if adjoint is None else (adjoint * a).sum_to_size(b.shape)
    line = inverse.reshape(-1)

    def derivatives(at: slice) -> tuple[Tensor, Tensor, Tensor]:
        square = line[at] * line[at]
        return -square, 2 * square * line[at], -6 * square * square

    turned = push(site, y, bent, derivatives)
    return joined(push_product(site.sums, gate(a, inverse), x, turned, adjoint))


@rule(*overloads("addcmul"), adjoint=True)
def _addcmul(site: OperationSite) -> Tangent | None:
    """bias + α a ∘ b."""
    _, a, b = site.args[:3]
    alpha, adjoint = site.kwargs.get("value", 1), site.adjoint()
    scaled = None
    if adjoint is not None:
        scaled = (adjoint * alpha).sum_to_size(torch.broadcast_shapes(a.shape, b.shape))
    terms: list[Tangent | None] = list(
        push_product(site.sums, gate(a, b), site.tangent(1), site.tangent(2), scaled)
    )
    if alpha != 1:
        terms = [term and term.map(lambda rows: rows * alpha, fresh=True) for term in terms]
    shape = site.value.shape
    terms = [term and term.spread(shape) for term in terms]
    return joined([*terms, biased(site, 0, shape)])


@rule(*overloads("_prelu_kernel"), adjoint=True)
def _prelu(site: OperationSite) -> Tangent | None:
    """x above zero, and x ∘ w below."""
    x, w = site.args
    above = (x > 0).to(x.dtype)
    below = 1 - above
    moving = site.tangent(0)
    low = None if moving is None else moving.map(lambda rows: rows * below, fresh=True)
    high = None if moving is None else moving.map(lambda rows: rows * above, fresh=True)
    return joined([*push_product(site.sums, gate(x * below, w), low, site.tangent(1), site.adjoint()), high])


def biased_channels(site: OperationSite, position: int) -> Tangent | None:
    """The tangent of an argument (C,) that is added to every position of its channel, (N, C, …)."""
    bias = site.tangent(position)
    if bias is None:
        return None
    shape = site.value.shape
    inner = [1] * (len(shape) - 2)
    spread = bias.map(
        lambda rows: rows.reshape(*rows.shape, *inner).unsqueeze(1).expand(-1, *shape), fresh=False
    ).borrowed()
    adjoint = site.adjoint()
    if bias.leaf and adjoint is not None:
        by_channel = bias.first.map(lambda rows: rows.reshape(*rows.shape, *inner), fresh=False)
        take_gradient(site.sums, by_channel, adjoint)
    return spread
