"""Element-wise functions σ of one argument.

With w = x̄σ'' and c = x̄σ''' (x̄ the adjoint of the value):

    H̄   += Ż diag(w) Żᵀ
    D3_s += Σ c ż³ + 3 Σ w ż z̈
    ż    ↦ σ'ż          z̈ ↦ σ''ż² + σ'z̈

On a CPU the entries are processed in blocks. Derivatives, products and sums of a block are formed while its
rows are in the cache, so each row is read from memory once and written once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import blocks, flat, joined_blocks
from gnewton.summary.tangent.rules.rule import OperationSite
from gnewton.summary.tangent.tangent import Rows, Tangent, span

Derivatives = tuple[Tensor, "Tensor | None", "Tensor | None"]
AtEntries = Callable[[slice], Derivatives]


def push(site: OperationSite, z: Tangent, adjoint: Tensor | None, derivatives: AtEntries) -> Tangent:
    """The tangent of σ(z) from that of z; adds the contributions of σ.

    Args:
        site: the operation, whose sums receive the contributions.
        z: the tangent of the argument.
        adjoint: ∂L/∂σ(z) in the shape of z; None omits the contributions.
        derivatives: σ', σ'' and σ''' (None: zero) at a slice of the entries of z in memory order.
    """
    sums = site.sums
    groups, shape, k = z.first.groups, z.first.shape, len(z.first)
    sources = [flat(part) for part in z.first.parts]  # joined block by block, in the cache
    line = None if adjoint is None else adjoint.reshape(-1)
    first = sources[0]
    if len(sources) > 1 or not (z.first.owned and z.first.parts[0].is_contiguous()):
        first = first.new_empty((k, first.shape[1]))
    moved, second, at = _second_rows(site, z, first)
    grams: list[Tensor] = []
    cubes: list[Tensor] = []
    for entries in blocks(first):
        slope, bend, twist = derivatives(entries)
        pieces = [source[:, entries] for source in sources]
        rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        before = None if moved is None else moved[:, entries]
        weighted = None
        if line is not None and bend is not None:
            weighted = rows * (line[entries] * bend)
            grams.append(sums.gram(weighted, rows))
        if second is not None:
            square = rows * rows
            if line is not None:
                cubic = None if twist is None else line[entries] * twist
                _third(cubes, at, rows, square, weighted, before, cubic)
            _second(second[:, entries], square, before, at, slope, bend)
        torch.mul(rows, slope, out=first[:, entries])
    if grams:
        sums.add_gram(groups, joined_blocks(grams, first))
    if cubes:
        sums.add_third(groups, joined_blocks(cubes, first))
    out = Rows(groups, [first.view(k, *shape)], owned=True)
    return Tangent(out, None if second is None else Rows(groups, [second.view(k, *shape)], owned=True))


def push_linear(z: Tangent, slope: Tensor) -> Tangent:
    """The tangent of a piecewise linear σ(z): both orders are scaled by σ'."""
    return Tangent(_scaled(z.first, slope), None if z.second is None else _scaled(z.second, slope))


def _scaled(rows: Rows, slope: Tensor) -> Rows:
    data = rows.merge()
    return Rows(rows.groups, [data.mul_(slope) if rows.owned else data * slope], owned=True)


def _second_rows(
    site: OperationSite, z: Tangent, first: Tensor
) -> tuple[Tensor | None, Tensor | None, slice]:
    """z̈ as a matrix, the matrix (k, N) for the result, and the index of the rows of z̈ among its rows.

    The result takes the memory of z̈ if that is owned and has a row, or room for one, for every group.
    """
    if not site.third:
        return None, None, slice(0, 0)
    if z.second is None:
        return None, first.new_empty(first.shape), slice(0, 0)
    at, data = span(z.second.groups, z.first.groups), z.second
    if not isinstance(at, slice):  # rare: groups out of order
        wide = flat(data.widen(z.first.groups))
        return wide, wide, slice(0, len(z.first))
    moved = flat(data.merge())
    if data.owned and data.merge().is_contiguous():
        if len(data) == len(first):
            return moved, moved, at
        if data.room is not None and len(data.room) >= len(first) and at.start == 0:
            return moved, flat(data.room[: len(first)]), at
    return moved, first.new_empty(first.shape), at


def _third(
    cubes: list[Tensor],
    at: slice,
    rows: Tensor,
    square: Tensor,
    weighted: Tensor | None,
    before: Tensor | None,
    cubic: Tensor | None,
) -> None:
    """Append Σ cż³ + 3 Σ (wż) z̈ of one block."""
    terms = None if cubic is None else (rows * cubic).mul_(square)
    if before is not None and weighted is not None:
        if terms is None:
            terms = torch.zeros_like(rows)
        terms[at].addcmul_(weighted[at], before, value=3)
    if terms is not None:
        cubes.append(terms.sum(1))


def _second(
    target: Tensor, square: Tensor, before: Tensor | None, at: slice, slope: Tensor, bend: Tensor | None
) -> None:
    """Write σ''ż² + σ'z̈ of one block to ``target``, whose rows ``at`` may be the memory of z̈."""
    if before is None:
        at = slice(0, 0)
    else:
        torch.mul(before, slope, out=target[at])
        if bend is not None:
            target[at].addcmul_(square[at], bend)
    for rest in (slice(0, at.start), slice(at.stop, len(target))):
        if rest.start < rest.stop:
            target[rest].zero_() if bend is None else torch.mul(square[rest], bend, out=target[rest])
