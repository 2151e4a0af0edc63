"""rates.csv: one row per update of the rates and group."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gnewton.optim.rate_rule import INVALID

if TYPE_CHECKING:
    from gnewton.optim.rate_update import RateUpdate


class RateLog:
    """Collects updates of the rates during training steps; their rows are taken out between steps."""

    def __init__(self) -> None:
        self._pending: list[RateUpdate] = []
        self.updates = 0

    def record(self, update: RateUpdate) -> None:
        """Keep one update until the next :meth:`take`."""
        self._pending.append(update)

    def take(self) -> list[dict[str, object]]:
        """The rows of all updates since the last call, see ``RATES_COLUMNS``."""
        rows: list[dict[str, object]] = []
        for update in self._pending:
            self.updates += 1
            rows.extend(self._rows(update))
        self._pending.clear()
        return rows

    def invalid_step(self) -> int | None:
        """The training step of the first update since the last :meth:`take` whose numbers are not finite."""
        for update in self._pending:
            rates = update.solved.rates
            if update.solved.status == INVALID or not all(map(math.isfinite, rates.tolist())):
                return update.step
        return None

    def discard(self) -> None:
        """Forget the updates since the last :meth:`take`: their steps have been undone."""
        self._pending.clear()

    def _rows(self, update: RateUpdate) -> list[dict[str, object]]:
        solved = update.solved
        columns = zip(
            update.names,
            solved.rates.tolist(),
            update.damping,
            solved.gradient.tolist(),
            solved.curvature.tolist(),
            solved.third.tolist(),
            [False] * len(update.names) if solved.silent is None else solved.silent.tolist(),
            strict=True,
        )
        shared = {
            "update": self.updates,
            "step": update.step,
            "status": solved.status,
            "fallback": solved.fell_back,
            "warmup": update.warming_up,
            "internal_damping": _number(solved.internal_damping),
            "capped": solved.capped,
            "rejected": update.rejected,
            "loss": _number(update.loss),
            "radius": _number(solved.radius),
            "residual": _number(solved.residual),
            "curvature_margin": _number(solved.curvature_margin),
            **{name: _number(value) for name, value in update.readings.items()},
            "summary_seconds": update.summary_seconds,
            "solve_seconds": update.solve_seconds,
        }
        return [
            {
                **shared,
                "group": group,
                "rate": 0.0 if update.warming_up else rate * damping,
                "damping": damping,
                "gradient": _number(gradient),
                "curvature": _number(curvature),
                "third": _number(third),
                "silent": silent,
            }
            for group, rate, damping, gradient, curvature, third, silent in columns
        ]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
