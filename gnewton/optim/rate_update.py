"""One update of the rates, for logs."""

from __future__ import annotations

from dataclasses import dataclass

from gnewton.optim.rate_rule import Solved


@dataclass(frozen=True)
class RateUpdate:
    """One update of the rates, for logs.

    Attributes:
        step: number of training steps before it.
        solved: the rates before the step size λ_1, and the model that they were solved from.
        names: name of each entry of the vectors in ``solved``: a group of the partition, or
            ``group:direction`` for several directions.
        step_size: λ_1 of each entry at this update.
        loss: loss of the curvature batch, at the parameters before the step.
        summary_seconds, solve_seconds: wall time of the two parts.
        warming_up: whether the update only fed the average, and its rates are not put in force.
        rejected: number of updates rejected so far (:class:`~gnewton.optim.safeguard.Safeguard`).
    """

    step: int
    solved: Solved
    names: tuple[str, ...]
    step_size: list[float]
    loss: float
    summary_seconds: float
    solve_seconds: float
    warming_up: bool
    rejected: int = 0
