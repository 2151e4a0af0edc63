"""Learning rates for a first-order optimizer, from the averaged summary along its own steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gnewton.cubic import solve_cubic
from gnewton.errors import InputError
from gnewton.inspection.measures import Floats
from gnewton.inspection.observe import Observations

QUANTILES = (0.1, 0.9)
"""Of the rates over resampled batches: what is given as their spread."""

RESAMPLES = 200


@dataclass(frozen=True)
class Suggestion:
    """Suggested rates; vectors have shape (S,).

    Attributes:
        rates: one for each group; where the solve gives none above 0, the one for all.
        solved: λ_1 η_s of the averaged summary, as it is solved, of any sign.
        low, high: the quantiles :data:`QUANTILES` of ``solved`` over resamples of the batches.
        positive: the share of resamples in which it is above 0.
        single, single_low, single_high: the rate of all parameters together, and its spread.
        status: how the solve for the groups ended, see :class:`gnewton.cubic.CubicStatus`.
    """

    rates: Floats
    solved: Floats
    low: Floats
    high: Floats
    positive: Floats
    single: float
    single_low: float
    single_high: float
    status: str

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """Which groups have a rate from the solve."""
        return self.solved > 0


def suggest(
    groups: Observations,
    whole: Observations,
    *,
    internal_damping: float,
    proximal: float,
    damping: float,
    seed: int = 0,
) -> Suggestion:
    """Solve the cubic model of the mean over batches; the spread comes from resampling the batches.

    First for one rate η_0 of all parameters together; then for a rate of each group, with the proximal term
    (μ/2)·Σ_s |H̄_ss| (η_s − η_0)² that holds a group near it where the summary says little.

    Args:
        groups: along the partition.
        whole: the same steps and batches with all parameters in one group.
        internal_damping: λ_int >= 0.
        proximal: μ >= 0.
        damping: λ_1 > 0, the factor on all rates.
        seed: of the resamples.

    Raises:
        InputError: if not even the rate of all parameters together is above 0.
    """
    single = _of_all(whole, internal_damping)
    if not single > 0:
        raise InputError(
            "rates: averaged over these batches the optimizer's step lowers the loss at no rate; "
            "try more --batches, a larger --batch-size, or another point"
        )
    solved, status = _of_groups(groups, single, internal_damping, proximal)
    draws = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    singles = [_of_all(whole.pick(chosen), internal_damping) for chosen in draws]
    spread = np.stack(
        [
            _of_groups(groups.pick(chosen), center, internal_damping, proximal)[0]
            for chosen, center in zip(draws, singles, strict=True)
        ]
    )
    low, high = damping * np.quantile(spread, QUANTILES, axis=0)
    single_low, single_high = damping * np.quantile(singles, QUANTILES)
    return Suggestion(
        rates=damping * np.where(solved > 0, solved, single),
        solved=damping * solved,
        low=low,
        high=high,
        positive=(spread > 0).mean(axis=0),
        single=damping * single,
        single_low=float(single_low),
        single_high=float(single_high),
        status=status,
    )


def _of_all(whole: Observations, internal_damping: float) -> float:
    """η_0, the rate of one group of everything; 0 where there is no minimiser."""
    return float(_of_groups(whole, 0.0, internal_damping, 0.0)[0][0])


def _of_groups(
    observations: Observations, center: float, internal_damping: float, proximal: float
) -> tuple[Floats, str]:
    """η of the mean summary, divided by the mean length of the steps; 0 where there is no minimiser.

    The proximal term is H̄ + μ diag|H̄| and ḡ + μ diag|H̄| η_0 in place of H̄ and ḡ.
    """
    norms = observations.norms.mean(axis=0)
    active = norms > 0
    hessian = observations.hessian.mean(axis=0)[np.ix_(active, active)]
    pull = proximal * np.abs(hessian.diagonal())
    solution = solve_cubic(
        hessian + np.diag(pull),
        observations.gradient.mean(axis=0)[active] + pull * center * norms[active],
        observations.third.mean(axis=0)[active],
        internal_damping,
    )
    rates = np.zeros_like(norms)
    rates[active] = np.asarray(solution.rates, dtype=float) / norms[active]
    return rates, str(solution.status)
