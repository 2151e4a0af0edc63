"""Truncated power series x(t) = x_0 + x_1 t + … + x_d t^d of k curves at once, and their arithmetic.

A function y = f(x) whose derivative is a rational expression of itself and of known series has coefficients
that follow one another. From y' = g x',

    n y_n = Σ_{i=1}^{n} i x_i g_{n−i},

so each order costs one sum more than the one before: d²/2 products for all orders, where the derivatives of
derivatives number 2^d (A. Griewank and A. Walther, Evaluating Derivatives, SIAM 2008, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

Coefficients = Sequence[Tensor]

MOST_PRODUCTS = 64  # the largest whole power that is formed by products, which hold at x_0 = 0 too


def inner(a: Coefficients, b: Coefficients, n: int) -> Tensor | None:
    """Σ_{i=1}^{n−1} a_i b_{n−i}; None if every term is zero. Coefficients begin at order 1."""
    total: Tensor | None = None
    for i in range(max(1, n - len(b)), min(n - 1, len(a)) + 1):
        x, y = a[i - 1], b[n - i - 1]
        if total is None:
            total = x * y
        elif total.shape == torch.broadcast_shapes(x.shape, y.shape):
            total.addcmul_(x, y)
        else:
            total = total + x * y
    return total


def _times(factor: Tensor | float, x: Tensor | None) -> Tensor | None:
    return None if x is None else x * factor


def _total(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are not None."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    total = present[0]
    for term in present[1:]:
        total = total + term
    return total


class Series:
    """A power series of k curves through one point.

    Attributes:
        head: x_0, the common value, of any shape.
        tail: x_1, x_2, … of shape (k, *shape) each; those beyond the last are zero.
        order: d, beyond which coefficients are dropped.
    """

    __slots__ = ("head", "order", "tail")

    def __init__(self, head: Tensor, tail: Coefficients, order: int) -> None:
        self.head = head
        self.tail = list(tail[:order])
        self.order = order

    # --- linear operations ------------------------------------------------------------------------------

    def map(self, function: Callable[[Tensor], Tensor]) -> Series:
        """A linear function that acts on values and on stacks of them alike."""
        return Series(function(self.head), [function(x) for x in self.tail], self.order)

    def scaled(self, factor: Tensor | float) -> Series:
        """The product with a constant."""
        return self.map(lambda x: x * factor)

    def __add__(self, other: Series | Tensor | float) -> Series:
        if not isinstance(other, Series):
            return Series(self.head + other, self.tail, self.order)
        tail = [y if x is None else x if y is None else x + y for x, y in zip_longest(self.tail, other.tail)]
        return Series(self.head + other.head, tail, self.order)

    __radd__ = __add__

    def __neg__(self) -> Series:
        return self.map(torch.neg)

    def __sub__(self, other: Series | Tensor | float) -> Series:
        return self + (-other)

    def __rsub__(self, other: Tensor | float) -> Series:
        return (-self) + other

    def mean(self, axes: Sequence[int]) -> Series:
        """Means over axes that are counted from the end; the axes are kept."""
        return self.map(lambda x: x.mean(list(axes), keepdim=True))

    def sum(self, axes: Sequence[int]) -> Series:
        """Sums over axes that are counted from the end; the axes are kept."""
        return self.map(lambda x: x.sum(list(axes), keepdim=True))

    def where(self, mask: Tensor, other: Series) -> Series:
        """This series where ``mask`` holds, else the other one."""
        zero = self.head.new_zeros(())
        tail = [
            torch.where(mask, zero if x is None else x, zero if y is None else y)
            for x, y in zip_longest(self.tail, other.tail)
        ]
        return Series(torch.where(mask, self.head, other.head), tail, self.order)

    # --- products -----------------------------------------------------------------------------------------

    def __mul__(self, other: Series | Tensor | float) -> Series:
        if not isinstance(other, Series):
            return self.scaled(other)
        if other is self:
            return self.square()
        tail = []
        for n in range(1, min(self.order, len(self.tail) + len(other.tail)) + 1):
            a = self.tail[n - 1] * other.head if n <= len(self.tail) else None
            b = other.tail[n - 1] * self.head if n <= len(other.tail) else None
            term = _total(a, b, inner(self.tail, other.tail, n))
            assert term is not None
            tail.append(term)
        return Series(self.head * other.head, tail, self.order)

    __rmul__ = __mul__

    def square(self) -> Series:
        """x², each product of two coefficients formed once."""
        xs, tail = self.tail, []
        for n in range(1, min(self.order, 2 * len(xs)) + 1):
            term = xs[n - 1] * self.head if n <= len(xs) else None
            for i in range(max(1, n - len(xs)), (n - 1) // 2 + 1):
                product = xs[i - 1] * xs[n - i - 1]
                term = product if term is None else term + product
            term = _times(2.0, term)
            if n % 2 == 0 and n // 2 <= len(xs):
                term = _total(term, xs[n // 2 - 1].square())
            assert term is not None
            tail.append(term)
        return Series(self.head.square(), tail, self.order)

    def reciprocal(self) -> Series:
        """1/x, from x y = 1."""
        start = self.head.reciprocal()
        ys: list[Tensor] = []
        for n in range(1, self.order + 1):
            first = self.tail[n - 1] * start if n <= len(self.tail) else None
            ys.append(self._or_zero(_times(-start, _total(first, inner(self.tail, ys, n)))))
        return Series(start, ys, self.order)

    # --- functions ----------------------------------------------------------------------------------------

    def weighted(self) -> list[Tensor]:
        """i x_i, the coefficients of x'."""
        return [x if i == 1 else x * i for i, x in enumerate(self.tail, start=1)]

    def step(self, weighted: Coefficients, slope: Tensor, slopes: Coefficients, n: int) -> Tensor:
        """y_n of y' = g x', with ``weighted`` = i x_i and g = ``slope`` + ``slopes``."""
        last = weighted[n - 1] * slope if n <= len(weighted) else None
        return self._or_zero(_times(1 / n, _total(last, inner(weighted, slopes, n))))

    def integrated(self, slope: Series, start: Tensor) -> Series:
        """y with y' = g x' and y_0 = ``start``."""
        weighted = self.weighted()
        ys = [self.step(weighted, slope.head, slope.tail, n) for n in range(1, self.order + 1)]
        return Series(start, ys, self.order)

    def exp(self) -> Series:
        """From y' = y x'."""
        weighted, start = self.weighted(), self.head.exp()
        ys: list[Tensor] = []
        for n in range(1, self.order + 1):
            ys.append(self.step(weighted, start, ys, n))
        return Series(start, ys, self.order)

    def log(self) -> Series:
        """From x y' = x'."""
        over = self.head.reciprocal()
        ys: list[Tensor] = []
        moved: list[Tensor] = []  # i y_i
        for n in range(1, self.order + 1):
            known = self.tail[n - 1] if n <= len(self.tail) else None
            y = _total(known, _times(-1 / n, inner(moved, self.tail, n)))
            ys.append(self._or_zero(_times(over, y)))
            moved.append(ys[-1] * n)
        return Series(self.head.log(), ys, self.order)

    def power(self, p: float) -> Series:
        """x^p: whole powers by products, others from x y' = p y x'. Where x_0 = 0, see :meth:`_from_zero`."""
        if p == 0 or not self.tail:
            return Series(self.head.pow(p), [], self.order)
        if p == int(p) and 1 <= p <= MOST_PRODUCTS:
            return self._whole_power(int(p))
        zero = self.head == 0
        if not zero.any():
            return self._broken_power(p)
        safe = Series(torch.where(zero, 1.0, self.head), self.tail, self.order)._broken_power(p)
        tail = [torch.where(zero, y, x) for x, y in zip(safe.tail, self._from_zero(p), strict=True)]
        return Series(self.head.pow(p), tail, self.order)

    def _from_zero(self, p: float) -> list[Tensor]:
        """The coefficients of x^p where x_0 = 0.

        A constant x has none, and those of order n < p are zero. The others are the limits from the side
        that x_1 t > 0, p (p − 1) … (p − n + 1)/n! x_1^n ∞; without x_1 they are not known, nan.
        """
        first = self.tail[0]
        still = torch.stack([x == 0 for x in self.tail]).all(0)
        ys: list[Tensor] = []
        falling = 1.0
        for n in range(1, self.order + 1):
            falling *= p - n + 1
            limit = (
                torch.zeros_like(first) if n < p else first.sign().pow(n) * math.copysign(math.inf, falling)
            )
            ys.append(torch.where(still, 0.0, limit))
        return ys

    def _broken_power(self, p: float) -> Series:
        """x^p for x_0 ≠ 0, from x y' = p y x'."""
        start, over, weighted = self.head.pow(p), self.head.reciprocal(), self.weighted()
        ys: list[Tensor] = []
        moved: list[Tensor] = []
        for n in range(1, self.order + 1):
            last = weighted[n - 1] * start if n <= len(weighted) else None
            rise = _times(p, _total(last, inner(weighted, ys, n)))
            y = _total(rise, _times(-1.0, inner(moved, self.tail, n)))
            ys.append(self._or_zero(_times(over / n, y)))
            moved.append(ys[-1] * n)
        return Series(start, ys, self.order)

    def _whole_power(self, p: int) -> Series:
        if p == 1:
            return self
        half = self._whole_power(p // 2).square()
        return half * self if p % 2 else half

    def sqrt(self) -> Series:
        """x^(1/2)."""
        return self.power(0.5)

    def tanh(self) -> Series:
        """From y' = (1 − y²) x'."""
        return self._by_square(self.head.tanh(), -1.0)

    def tan(self) -> Series:
        """From y' = (1 + y²) x'."""
        return self._by_square(self.head.tan(), 1.0)

    def _by_square(self, start: Tensor, sign: float) -> Series:
        """y' = (1 ± y²) x'."""
        slope, weighted = 1 + sign * start * start, self.weighted()
        ys: list[Tensor] = []
        slopes: list[Tensor] = []
        for n in range(1, self.order + 1):
            ys.append(self.step(weighted, slope, slopes, n))
            turn = ys[-1] * start
            turn.mul_(2.0)
            mixed = inner(ys, ys, n)
            slopes.append((turn if mixed is None else turn.add_(mixed)).mul_(sign))
        return Series(start, ys, self.order)

    def sigmoid(self) -> Series:
        """From y' = y (1 − y) x'."""
        start, weighted = self.head.sigmoid(), self.weighted()
        slope, turned = start * (1 - start), 1 - 2 * start
        ys: list[Tensor] = []
        slopes: list[Tensor] = []
        for n in range(1, self.order + 1):
            ys.append(self.step(weighted, slope, slopes, n))
            bent = ys[-1] * turned
            mixed = inner(ys, ys, n)
            slopes.append(bent if mixed is None else bent.sub_(mixed))
        return Series(start, ys, self.order)

    def sine(self, *, hyperbolic: bool = False) -> tuple[Series, Series]:
        """(sin x, cos x) or (sinh x, cosh x): s' = c x', c' = ∓ s x'."""
        sin, cos = (torch.sinh, torch.cosh) if hyperbolic else (torch.sin, torch.cos)
        sign = 1.0 if hyperbolic else -1.0
        s, c, weighted = sin(self.head), cos(self.head), self.weighted()
        ss: list[Tensor] = []
        cs: list[Tensor] = []
        for n in range(1, self.order + 1):
            up, across = self.step(weighted, c, cs, n), self.step(weighted, s, ss, n)
            ss.append(up)
            cs.append(across * sign)
        return Series(s, ss, self.order), Series(c, cs, self.order)

    def _or_zero(self, coefficient: Tensor | None) -> Tensor:
        return torch.zeros_like(self.tail[0]) if coefficient is None else coefficient
