"""What one update of the rates has to tell, for logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Solved:
    """The outcome of one solve; vectors are float64 on the CPU, in units of the present u.

    Each has one entry per group and direction, (S,) where there is one direction.

    Attributes:
        rates: η in force, (S,): averaged, bounded and clipped as asked, before the damping λ_1.
        gradient, curvature, third: ḡ_s, H̄_ss and D3_s that were solved with, (S,), averaged as asked.
        status: how the solve ended, a value of :class:`~gnewton.cubic.CubicStatus`, or one of
            :mod:`gnewton.optim.rates`.
        radius: r = ‖Dη‖ of the solution.
        residual: relative residual of the first-order condition.
        curvature_margin: smallest eigenvalue of D⁻¹M(r)D⁻¹ (see :class:`~gnewton.cubic.CubicSolution`).
        fell_back: whether the model was unbounded below and the fallback supplied the rates.
        capped: entries whose rate the trust radius lowered.
        silent: entries that take no part, as they cannot be told from rounding noise, (S,), bool; None: none.
        internal_damping: λ_int the rates were solved with.
    """

    rates: Tensor
    gradient: Tensor
    curvature: Tensor
    third: Tensor
    status: str
    radius: float
    residual: float
    curvature_margin: float
    fell_back: bool
    capped: int = 0
    silent: Tensor | None = None
    internal_damping: float = math.nan


@dataclass(frozen=True)
class RateUpdate:
    """One update of the rates, for logs.

    Attributes:
        step: number of training steps made before it.
        solved: the rates before damping, with what they were solved from.
        names: what each entry of the vectors in ``solved`` belongs to: a group of the partition, or
            ``group:direction`` where there are several directions.
        damping: λ_1 of each entry at this update.
        loss: of the curvature batch, at the parameters before the step.
        summary_seconds, solve_seconds: wall time of the two parts; trials of the controller count as solving.
        warming_up: whether the update only fed the average, and its rates are not put in force.
        rejected: updates rejected so far (:class:`~gnewton.optim.safeguard.Safeguard`).
        readings: what the controller of the dampings measured, by column of rates.csv.
    """

    step: int
    solved: Solved
    names: tuple[str, ...]
    damping: list[float]
    loss: float
    summary_seconds: float
    solve_seconds: float
    warming_up: bool
    rejected: int = 0
    readings: Mapping[str, float] = field(default_factory=dict)
