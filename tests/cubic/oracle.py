"""An independent solution in 60 digits and more, by eigendecomposition and bisection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np

from tests.cubic.families import Instance


@dataclass(frozen=True)
class Reference:
    """Global minimiser of a small model, if it is bounded; ``lowest`` is κ_min (None without cubic term)."""

    bounded: bool
    rates: Any = None
    radius: Any = None
    value: Any = None
    lowest: Any = None
    hard: bool = False


class Oracle:
    """Everything about one instance in ``digits`` digits."""

    def __init__(self, instance: Instance, digits: int = 60) -> None:
        self.mp = mpmath.mp.clone()
        self.mp.dps = digits
        mp = self.mp
        self.size = len(instance.gradient)
        self.h = mp.matrix(instance.hessian.tolist())
        self.g = mp.matrix(instance.gradient.tolist())
        self.d = [mp.cbrt(abs(mp.mpf(float(t)))) for t in instance.third]
        self.sigma = mp.mpf(instance.damping) / 2
        if self.sigma == 0:
            self.d = [mp.mpf(0)] * self.size
        self.tiny = mp.mpf(10) ** (-digits // 2)

    def value(self, rates: Any) -> Any:
        mp, eta = self.mp, self.mp.matrix(list(rates))
        r = self.radius(eta)
        return (eta.T * self.h * eta)[0] / 2 - (self.g.T * eta)[0] + self.sigma / 3 * mp.power(r, 3)

    def terms(self, rates: Any) -> Any:
        """Sum of the sizes of the terms of :meth:`value`: the unit of its rounding error."""
        mp, eta = self.mp, self.mp.matrix([abs(x) for x in rates])
        h = self.h.apply(abs)
        g = self.g.apply(abs)
        return (eta.T * h * eta)[0] / 2 + (g.T * eta)[0] + self.sigma / 3 * mp.power(self.radius(eta), 3)

    def radius(self, eta: Any) -> Any:
        return self.mp.sqrt(self.mp.fsum((d * x) ** 2 for d, x in zip(self.d, eta, strict=True)))

    def solve(self) -> Reference:
        mp = self.mp
        free = [s for s in range(self.size) if self.d[s] == 0]
        rest = [s for s in range(self.size) if self.d[s] != 0]
        null: list[Any] = []
        h_zz = _block(mp, self.h, free, free)
        scale = [mp.sqrt(abs(h_zz[i, i])) or mp.mpf(1) for i in range(len(free))]
        pseudo = mp.matrix(len(free), len(free))
        if free:
            unit = mp.matrix(len(free), len(free))
            for i in range(len(free)):
                for j in range(len(free)):
                    unit[i, j] = h_zz[i, j] / scale[i] / scale[j]
            values, vectors = mp.eigsy(unit)
            for k in range(len(free)):
                column = mp.matrix([vectors[i, k] / scale[i] for i in range(len(free))])
                if values[k] < -self.tiny:
                    return Reference(False)
                if values[k] <= self.tiny:
                    null.append(column)
                else:
                    pseudo += column * column.T / values[k]
        for z in null:
            row = [mp.fsum(self.h[s, f] * z[i] for i, f in enumerate(free)) for s in rest]
            pull = mp.fsum(self.g[f] * z[i] for i, f in enumerate(free))
            if any(abs(x) > self.tiny for x in [*row, pull]):
                return Reference(False)
        g_z = mp.matrix([self.g[f] for f in free]) if free else None
        h_rz = _block(mp, self.h, rest, free)
        eta = mp.matrix(self.size, 1)
        lowest, hard, eta_r = None, False, None
        if rest:
            schur = _block(mp, self.h, rest, rest)
            g_r = mp.matrix([self.g[s] for s in rest])
            if free:
                schur = schur - h_rz * pseudo * h_rz.T
                g_r = g_r - h_rz * pseudo * g_z
            eta_r, lowest, hard = self._regular(schur, g_r, [self.d[s] for s in rest])
            for i, s in enumerate(rest):
                eta[s] = eta_r[i]
        if free:
            force = g_z - h_rz.T * eta_r if rest else g_z
            eta_z = pseudo * force
            for i, f in enumerate(free):
                eta[f] = eta_z[i]
        return Reference(True, list(eta), self.radius(eta), self.value(eta), lowest, hard)

    def _regular(self, h: Any, g: Any, d: list[Any]) -> tuple[Any, Any, bool]:
        mp, sigma, n = self.mp, self.sigma, len(d)
        k = mp.matrix(n, n)
        for i in range(n):
            for j in range(n):
                k[i, j] = h[i, j] / d[i] / d[j]
        kappa, q = mp.eigsy(k)
        b = [g[i] / d[i] for i in range(n)]
        c = [mp.fsum(q[i, j] * b[i] for i in range(n)) for j in range(n)]
        largest = max(abs(x) for x in c)
        low = min(kappa)
        pole = max(mp.mpf(0), -low / sigma)
        gaps = [x + sigma * pole for x in kappa]
        spread = max(abs(x) for x in kappa) + sigma * pole
        live = [j for j in range(n) if abs(c[j]) > self.tiny * largest]

        def excess(offset: Any) -> Any:
            square = mp.fsum((c[j] / (gaps[j] + sigma * offset)) ** 2 for j in live)
            return square - (pole + offset) ** 2

        if all(gaps[j] > self.tiny * spread for j in live) and excess(mp.mpf(0)) <= 0:
            y = [c[j] / gaps[j] if j in live else mp.mpf(0) for j in range(n)]
            missing = pole**2 - mp.fsum(x * x for x in y)
            bottom = min(range(n), key=lambda j: kappa[j])
            y[bottom] += mp.sqrt(max(missing, 0))
            hard = pole > 0
        else:
            offset = self._root(excess)
            y = [c[j] / (gaps[j] + sigma * offset) if j in live else mp.mpf(0) for j in range(n)]
            hard = False
        eta = mp.matrix([mp.fsum(q[i, j] * y[j] for j in range(n)) / d[i] for i in range(n)])
        return eta, low, hard

    def _root(self, excess: Any) -> Any:
        """Bisection on the logarithm, then on the number, of the offset from the pole."""
        mp = self.mp
        low, high = mp.mpf(10) ** -400, mp.mpf(10) ** 400
        for _ in range(12 + int(3.4 * mp.dps)):
            middle = mp.sqrt(low * high)
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        return (low + high) / 2

    def strict_margin(self, rates: np.ndarray, lowest: Any) -> float:
        """(κ_min + σr) / (|κ_min| + σr) at the radius of the given rates."""
        stiff = self.sigma * self.radius([self.mp.mpf(float(x)) for x in rates])
        total = abs(lowest) + stiff
        return float((lowest + stiff) / total) if total > 0 else 0.0


def _block(mp: Any, matrix: Any, rows: list[int], columns: list[int]) -> Any:
    out = mp.matrix(len(rows), len(columns))
    for i, s in enumerate(rows):
        for j, t in enumerate(columns):
            out[i, j] = matrix[s, t]
    return out
