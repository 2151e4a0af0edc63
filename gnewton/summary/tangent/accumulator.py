"""Sums of the contributions to a summary and of their rounding errors, in float64 on the device.

Rows are processed in blocks that fit the cache, except on a GPU and in compiled code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.linalg import vector_norm

from gnewton.summary.result import LOSS, PRODUCT, Rounding
from gnewton.summary.tangent.tangent import Rows

# the sums of an Accumulator
TOTALS = ("gradient", "hessian", "third", "gradient_noise", "hessian_noise", "third_noise")

BLOCK = 1 << 18  # bytes of a stack per block and CPU thread: half a dozen of them fit into a cache of 2 MiB


def being_compiled(tensor: Tensor) -> bool:
    """Whether the passes are being traced for the compiler: the tensor has a shape but no numbers."""
    return isinstance(tensor, FakeTensor)


def _whole(matrix: Tensor) -> bool:
    """Whether blocks gain nothing: on a GPU, and where a compiler fuses operations."""
    return matrix.is_cuda or being_compiled(matrix)


def _bytes() -> int:
    """Bytes of a block: the threads of an operation divide it evenly, so each has its part in its cache."""
    return BLOCK * torch.get_num_threads()


def blocks(matrix: Tensor) -> list[slice]:
    """Ranges of columns of a (k, N) matrix, each to be processed at a time."""
    k, n = matrix.shape
    width = n if _whole(matrix) else max(512, _bytes() // (max(k, 1) * matrix.element_size()))
    return [slice(lo, min(n, lo + width)) for lo in range(0, n, max(width, 1))]


def slabs(count: int, matrix: Tensor) -> list[slice]:
    """Ranges of the ``count`` independent pieces of a stack (k, N), each to be processed at a time."""
    if _whole(matrix):
        return [slice(0, count)]
    size = matrix.numel() * matrix.element_size() // max(count, 1)
    width = max(1, _bytes() // max(size, 1))
    return [slice(lo, min(count, lo + width)) for lo in range(0, count, width)]


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of corresponding rows of two (k, N) matrices (one row: with all of them), shape (k,)."""
    wide = a if len(a) >= len(b) else b
    return joined_blocks([(a[:, at] * b[:, at]).sum(1) for at in blocks(wide)], wide)


def joined_blocks(values: list[Tensor], like: Tensor) -> Tensor:
    """The sum of the results of the blocks of a (k, N) matrix, in float64 for more than one block."""
    if len(values) == 1:
        return values[0]
    return torch.stack(values).sum(0, dtype=torch.float64) if values else like.new_zeros(len(like))


class Accumulator:
    """Gradient, Hessian and third derivative, summed over the steps of a program.

    For each of them a sum of the same shape, ``…_noise``, collects bounds on the rounding errors of its
    contributions (``rounding``). It adds magnitudes, so contributions that cancel do not reduce it.

    Args:
        size: number of groups S.
        diagonal: whether to keep only the diagonal of the Hessian, shape (S,).
        third: whether third derivatives are formed.
        rounding: the rounding errors of the passes.
    """

    def __init__(
        self, size: int, device: torch.device, *, diagonal: bool, third: bool, rounding: Rounding
    ) -> None:
        self.device = device
        self.rounding = rounding
        self.diagonal = diagonal
        self.with_third = third
        self.gradient = torch.zeros(size, dtype=torch.float64, device=device)
        self.hessian = torch.zeros((size,) if diagonal else (size, size), dtype=torch.float64, device=device)
        self.third = torch.zeros(size, dtype=torch.float64, device=device)
        self.gradient_noise = torch.zeros_like(self.gradient)
        self.hessian_noise = torch.zeros_like(self.hessian)
        self.third_noise = torch.zeros_like(self.third)
        self._places: dict[tuple[int, ...], slice | Tensor] = {}

    def place(self, groups: tuple[int, ...]) -> slice | Tensor:
        """Index of ``groups`` into a vector of all groups: a slice where they are consecutive."""
        index = self._places.get(groups)
        if index is None:
            if groups[-1] - groups[0] == len(groups) - 1:
                index = slice(groups[0], groups[-1] + 1)
            else:
                index = torch.tensor(groups, device=self.device)
            self._places[groups] = index
        return index

    def add_gradient(
        self, groups: tuple[int, ...], rows: Tensor, adjoint: Tensor, whole: Tensor | None = None
    ) -> None:
        """Add the inner products of k rows (k, *shape) with an adjoint (*shape) to the gradient entries.

        Their rounding error is measured by the product of the norms. The adjoint may itself be a sum of
        ``whole`` over the entries to which the rows are broadcast. Terms that cancel there leave their
        errors, so the norm is then the one before the sum.
        """
        at = self.place(groups)
        rows, line = flat(rows), adjoint.reshape(1, -1)
        whole = adjoint if whole is None else whole
        repeats = whole.numel() / max(adjoint.numel(), 1)
        _add(self.gradient, at, row_dots(rows, line))
        size = vector_norm(rows, dim=1) * vector_norm(whole)
        factor = PRODUCT * self.rounding.inner(whole.numel()) * math.sqrt(repeats)
        _add(self.gradient_noise, at, size, factor)

    def add_gradient_noise(self, groups: tuple[int, ...], sizes: Tensor, terms: int) -> None:
        """Add the rounding errors of inner products of ``terms`` numbers with the ``sizes`` (k,)."""
        _add(self.gradient_noise, self.place(groups), sizes, self.rounding.inner(terms))

    def add_third(self, groups: tuple[int, ...], values: Tensor, factor: float = 1.0) -> None:
        """Add ``factor`` · ``values`` (k,) to the third derivatives of k groups."""
        at = self.place(groups)
        _add(self.third, at, values, factor)
        _add(self.third_noise, at, values.abs(), abs(factor) * self.rounding.curved)

    def add_loss_noise(self, groups: tuple[int, ...], squares: Tensor, weight: Tensor, terms: int) -> None:
        """Add the rounding errors of an operation whose adjoint is a difference of nearly equal terms.

        Args:
            groups: k of them.
            squares: Σ_i w_i (ż_i^s)², shape (k,), with w the sum of the magnitudes of the terms of the
                adjoint of z, which is also a bound on the second derivatives.
            weight: Σ_i w_i, a scalar.
            terms: number of entries i.
        """
        at = self.place(groups)
        squares, weight = squares.double(), weight.double()
        _add(self.gradient_noise, at, (squares * weight).sqrt(), LOSS * self.rounding.inner(terms))
        if self.diagonal:
            _add(self.hessian_noise, at, squares, self.rounding.curved)
        else:
            roots = squares.sqrt()
            self._add_block(self.hessian_noise, at, torch.outer(roots, roots), self.rounding.curved)

    def gram(self, weighted: Tensor, rows: Tensor) -> Tensor:
        """``weighted`` · ``rows``ᵀ, symmetric by construction, or its diagonal; both arguments (k, N)."""
        return (weighted * rows).sum(1) if self.diagonal else weighted @ rows.T

    def add_gram(self, groups: tuple[int, ...], gram: Tensor) -> None:
        """Add a result of :meth:`gram`, or a sum of results, to the Hessian entries of k groups."""
        if self.diagonal:
            self._add_curvature(self.place(groups), gram)
        else:
            self.add_block(groups, gram)

    def add_square(self, groups: tuple[int, ...], weighted: Tensor, rows: Tensor) -> None:
        """Add the Gram matrix ``weighted`` · ``rows``ᵀ; both (k, N)."""
        self.add_gram(groups, self.gram(weighted, rows))

    def add_block(self, groups: tuple[int, ...], block: Tensor) -> None:
        """Add a symmetric (k, k) block to the Hessian entries of k groups."""
        at = self.place(groups)
        if self.diagonal:
            self._add_curvature(at, block.diagonal())
        else:
            self._add_block(self.hessian, at, block)
            self._add_block(self.hessian_noise, at, block.abs(), self.rounding.curved)

    def _add_curvature(self, at: slice | Tensor, values: Tensor, factor: float = 1.0) -> None:
        """Add ``factor`` · ``values`` (k,) to the diagonal of the Hessian, where only that is kept."""
        _add(self.hessian, at, values, factor)
        _add(self.hessian_noise, at, values.abs(), factor * self.rounding.curved)

    def _add_block(self, matrix: Tensor, at: slice | Tensor, block: Tensor, factor: float = 1.0) -> None:
        if isinstance(at, slice):
            matrix[at, at].add_(block, alpha=factor)
        else:
            matrix[at[:, None], at] += block.double() * factor

    def add_cross(self, a: Rows, b: Rows) -> None:
        """Add Σ_n a^s_n b^t_n to the Hessian entries (s, t) and (t, s), for every row s of a and t of b."""
        if self.diagonal:
            shared = tuple(g for g in a.groups if g in b.groups)
            if shared:
                dots = row_dots(flat(a.pick(shared)), flat(b.pick(shared)))
                self._add_curvature(self.place(shared), dots, 2.0)
            return
        at_b = self.place(b.groups)
        columns = flat(b.merge()).T
        for groups, part in a.by_part():
            block = flat(part) @ columns
            at_a = self.place(groups)
            for matrix, values, factor in (
                (self.hessian, block, 1.0),
                (self.hessian_noise, block.abs(), self.rounding.curved),
            ):
                if isinstance(at_a, slice) and isinstance(at_b, slice):
                    matrix[at_a, at_b].add_(values, alpha=factor)
                    matrix[at_b, at_a].add_(values.T, alpha=factor)
                else:
                    rows = torch.tensor(groups, device=self.device)
                    cols = torch.tensor(b.groups, device=self.device)
                    matrix[rows[:, None], cols] += values.double() * factor
                    matrix[cols[:, None], rows] += values.T.double() * factor


def _add(vector: Tensor, at: slice | Tensor, values: Tensor, factor: float = 1.0) -> None:
    if isinstance(at, slice):
        vector[at].add_(values, alpha=factor)
    else:
        vector.index_add_(0, at, values.to(vector.dtype), alpha=factor)


def flat(stack: Tensor) -> Tensor:
    """A stack (k, *shape) as a matrix (k, N)."""
    return stack.reshape(stack.shape[0], -1)
