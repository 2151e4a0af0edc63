"""Element-wise functions σ of one moving argument.

With w = x̄σ'' and c = x̄σ''' (x̄ the adjoint of the value):

    H̄   += Ż diag(w) Żᵀ
    D3_s += Σ c ż³ + 3 Σ w ż z̈
    ż    ↦ σ'ż          z̈ ↦ σ''ż² + σ'z̈
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnewton.summary.accumulate import Accumulator, flat, row_dots
from gnewton.summary.tangents import Rows, Tangent, span

Derivatives = tuple[Tensor, "Tensor | None", "Tensor | None"]
BLOCK = 1 << 18  # numbers per block on a CPU: a block stays in the cache, and outweighs the calls


def push(sums: Accumulator, z: Tangent, adjoint: Tensor | None, derivatives: Derivatives) -> Tangent:
    """Push the tangent of z through σ, given σ', σ'' (None: zero) and σ''' at z, and add its contributions.

    ``adjoint`` is ∂L/∂σ(z); None leaves the contributions out. All have the shape of z.
    """
    slope, bend, twist = derivatives
    if bend is None:
        return Tangent(_scaled(z.first, slope), None if z.second is None else _scaled(z.second, slope))
    weight = None if adjoint is None else (adjoint * bend).reshape(-1)
    cubic = None if adjoint is None or twist is None else (adjoint * twist).reshape(-1)
    return _curved(sums, z, slope.reshape(-1), bend.reshape(-1), weight, cubic)


def _scaled(rows: Rows, slope: Tensor) -> Rows:
    data = rows.data
    return Rows(rows.groups, [data.mul_(slope) if rows.owned else data * slope], owned=True)


def _output(rows: Rows) -> tuple[Tensor, Tensor]:
    """The rows as a matrix (k, N), and the matrix to write the result to: the same one where it may be."""
    matrix = flat(rows.data)
    return matrix, matrix if rows.owned and rows.data.is_contiguous() else torch.empty_like(matrix)


def _curved(
    sums: Accumulator, z: Tangent, slope: Tensor, bend: Tensor, weight: Tensor | None, cubic: Tensor | None
) -> Tangent:
    groups, shape, k = z.first.groups, z.first.shape, len(z.first)
    sources = [flat(part) for part in z.first.parts]  # joined block by block, in the cache
    first = sources[0]
    if len(sources) > 1 or not (z.first.owned and z.first.parts[0].is_contiguous()):
        first = first.new_empty((k, first.shape[1]))
    moved, second, at = None, None, slice(0, 0)
    if sums.with_third:
        if z.second is not None:
            found = span(z.second.groups, groups)
            if isinstance(found, slice):
                moved, second = _output(z.second)
                at = found
            else:  # rare: groups out of order
                moved = second = flat(z.second.widen(groups))
                at = slice(0, k)
        if second is None or second.shape[0] < k:
            second = torch.empty_like(first)
    for lo, hi in blocks(first):
        pieces = [source[:, lo:hi] for source in sources]
        rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if weight is not None:
            sums.add_square(groups, rows * weight[lo:hi], rows)
        if second is not None:
            square = rows * rows
            before = None if moved is None else moved[:, lo:hi]
            if weight is not None:
                line = None if cubic is None else cubic[lo:hi]
                _third(sums, groups, at, rows, square, before, weight[lo:hi], line)
            _second(second[:, lo:hi], square, before, at, slope[lo:hi], bend[lo:hi])
        torch.mul(rows, slope[lo:hi], out=first[:, lo:hi])
    out = Rows(groups, [first.view(k, *shape)], owned=True)
    return Tangent(out, None if second is None else Rows(groups, [second.view(k, *shape)], owned=True))


def _third(
    sums: Accumulator,
    groups: tuple[int, ...],
    at: slice,
    rows: Tensor,
    square: Tensor,
    before: Tensor | None,
    weight: Tensor,
    cubic: Tensor | None,
) -> None:
    """Add Σ ż (c ż² + 3 w z̈) of one block."""
    if cubic is not None:
        inner = square * cubic
        if before is not None:
            inner[at].addcmul_(before, weight, value=3)
        sums.add_third(groups, row_dots(rows, inner))
    elif before is not None:
        sums.add_third(groups[at], row_dots(rows[at], before * weight), 3.0)


def _second(
    target: Tensor, square: Tensor, before: Tensor | None, at: slice, slope: Tensor, bend: Tensor
) -> None:
    """Write σ''ż² + σ'z̈ of one block to ``target``, which may be where z̈ lies if z̈ has all rows."""
    if before is None:
        torch.mul(square, bend, out=target)
    elif len(before) == len(target):
        torch.mul(before, slope, out=target).addcmul_(square, bend)
    else:
        torch.mul(square, bend, out=target)
        target[at].addcmul_(before, slope)


def blocks(matrix: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of columns of a (k, N) matrix to work through at a time: all of them on a GPU."""
    k, n = matrix.shape
    width = n if matrix.is_cuda else max(4096, BLOCK // max(k, 1))
    for lo in range(0, n, width):
        yield lo, min(n, lo + width)
