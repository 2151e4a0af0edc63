"""What travels through the program: the Taylor coefficients of a value along every group, in one stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import blocks
from gnewton.summary.tangent.tangent import span, union
from gnewton.summary.taylor.series import Series

Groups = tuple[int, ...]


class Jet:
    """The coefficients of v(t) = v_0 + v_1 t + … along each of k groups; other groups have v_0 alone.

    Nothing is ever written into the terms of a jet: they may be views of those of another.

    Attributes:
        value: v_0, (*shape), which the groups share.
        terms: v_1 … v_m, (m, k, *shape); m <= d, and the coefficients beyond are zero.
        groups: ascending group numbers, length k.
    """

    __slots__ = ("groups", "terms", "value")

    def __init__(self, value: Tensor, terms: Tensor, groups: Groups) -> None:
        self.value = value
        self.terms = terms
        self.groups = groups

    @property
    def degree(self) -> int:
        """m, the order of the last coefficient that may differ from zero."""
        return self.terms.shape[0]

    @property
    def rows(self) -> Tensor:
        """All coefficients of all groups as one stack, (m k, *shape)."""
        return self.terms.flatten(0, 1)

    def with_rows(self, value: Tensor, rows: Tensor) -> Jet:
        """The jet of another value whose stack, (m k, *shape), follows the one here row by row."""
        return Jet(value, rows.unflatten(0, self.terms.shape[:2]), self.groups)

    def map(self, function: Callable[[Tensor], Tensor], value: Tensor | None = None) -> Jet:
        """The jet of a linear function that acts on stacks; of the value too, unless that is given."""
        if value is None:
            value = function(self.value.unsqueeze(0)).squeeze(0)
        return self.with_rows(value, function(self.rows))

    def widened(self, groups: Groups, degree: int) -> Tensor:
        """The terms for all of ``groups`` and up to ``degree``, zeros where there are none."""
        if groups == self.groups and degree == self.degree:
            return self.terms
        wide = self.terms.new_zeros((degree, len(groups), *self.terms.shape[2:]))
        wide[: self.degree, span(self.groups, groups)] = self.terms
        return wide

    def series(self, order: int, groups: Groups | None = None) -> Series:
        """The jet for arithmetic, its groups widened to ``groups``."""
        terms = self.terms if groups is None else self.widened(groups, self.degree)
        return Series(self.value, terms.unbind(0), order)

    def shaped(self, shape: Sequence[int]) -> Jet:
        """The same entries in another shape."""
        k, m = len(self.groups), self.degree
        return Jet(self.value.reshape(shape), self.terms.reshape(m, k, *shape), self.groups)


def joined_groups(*jets: Jet | None) -> Groups:
    """All groups of several jets."""
    return union(*(jet.groups for jet in jets if jet is not None))


def jet_of(series: Series, value: Tensor, groups: Groups) -> Jet:
    """A jet from the result of arithmetic; ``value`` is v_0, in whose shape the terms are returned."""
    shape = (len(groups), *value.shape)
    tail = [x.to(value.dtype).expand(len(groups), *series.head.shape).reshape(shape) for x in series.tail]
    terms = torch.stack(tail) if tail else value.new_zeros((0, *shape))
    return Jet(value, terms, groups)


def applied(jet: Jet, function: Callable[[Series, slice], Series], value: Tensor, order: int) -> Jet:
    """The jet of an element-wise function, block by block, so that each block stays in the cache.

    Args:
        jet: of the argument.
        function: maps the series of a block of entries to that of the results; the slice tells which entries.
        value: the result.
        order: d.
    """
    m, k = jet.terms.shape[:2]
    line = jet.value.reshape(-1)
    stack = jet.terms.reshape(m, k, -1)
    out: Tensor | None = None
    for at in blocks(stack.view(m * k, -1)):
        result = function(Series(line[at], stack[:, :, at].unbind(0), order), at)
        if out is None:
            out = stack.new_empty((len(result.tail), k, len(line)))
        for n, term in enumerate(result.tail):
            out[n, :, at] = term
    if out is None:
        out = stack.new_zeros((0, k, 0))
    return Jet(value, out.view(-1, k, *value.shape), jet.groups)


class Pairing(Protocol):
    """A bilinear operation z = B(a, b) on stacks of its factors."""

    def left(self, rows: Tensor) -> Tensor:
        """B(ȧ, b) for a stack (R, *a) of ȧ."""

    def right(self, rows: Tensor) -> Tensor:
        """B(a, ḃ) for a stack (R, *b) of ḃ."""

    def both(self, a_rows: Tensor, b_rows: Tensor) -> Tensor:
        """B(ȧ, ḃ), row by row, for two stacks of as many rows."""


def product(
    pairing: Pairing,
    a: Jet | None,
    b: Jet | None,
    value: Tensor,
    order: int,
    *others: tuple[Jet | None, Callable[[Tensor], Tensor]],
) -> Jet:
    """The jet of B(a, b), by Cauchy's product: z_n = B(a_n, b_0) + B(a_0, b_n) + Σ_i B(a_i, b_{n−i}).

    A factor that is a parameter has a single coefficient, so the cost of such a product is linear in d.

    Args:
        pairing: B at the values of the factors.
        a, b: the jets of the factors; None for a constant.
        value: z_0.
        order: d.
        others: jets to be added, each with the linear map that brings its stack to the shape of z.
    """
    added = [(jet, bring) for jet, bring in others if jet is not None]
    groups = joined_groups(a, b, *(jet for jet, _ in added))
    degrees = [jet.degree for jet in (a, b, *(jet for jet, _ in added)) if jet is not None]
    mixed = a is not None and b is not None and bool(set(a.groups) & set(b.groups))
    if mixed and a is not None and b is not None:
        degrees.append(a.degree + b.degree)
    degree = min(order, max(degrees))
    shape = (degree, len(groups), *value.shape)
    out: Tensor | None = None
    moves: list[tuple[Jet | None, Callable[[Tensor], Tensor]]] = [(a, pairing.left), (b, pairing.right)]
    for jet, move in (*moves, *added):
        if jet is None:
            continue
        rows = move(jet.rows).unflatten(0, jet.terms.shape[:2])
        if out is None and (a is not None or b is not None) and rows.shape == shape and jet.groups == groups:
            out = rows.contiguous()  # in memory of its own, as results of a pairing are
            continue
        if out is None:
            out = rows.new_zeros(shape)
        out[: jet.degree, span(jet.groups, groups)] += rows
    assert out is not None
    if mixed and a is not None and b is not None:
        _add_mixed(pairing, a, b, out, groups)
    return Jet(value, out, groups)


def _add_mixed(pairing: Pairing, a: Jet, b: Jet, out: Tensor, groups: Groups) -> None:
    shared = tuple(g for g in a.groups if g in b.groups)
    at, of_a, of_b = span(shared, groups), span(shared, a.groups), span(shared, b.groups)
    for i in range(a.degree):
        for j in range(min(b.degree, len(out) - i - 1)):
            out[i + j + 1, at] += pairing.both(a.terms[i, of_a], b.terms[j, of_b])
