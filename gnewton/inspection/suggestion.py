"""Learning rates for a first-order optimizer: summaries along its steps, solved by the rate rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gnewton.data import Batch
from gnewton.errors import InputError
from gnewton.inspection.measurement import Floats, OptimizerDirection, PointMeasurer, mean_gradient
from gnewton.inspection.point_inspection import csv_table, npz_file
from gnewton.optim.rate_rule import INVALID, RateRule
from gnewton.partition import Partition
from gnewton.summary.problem import LossFunction

QUANTILES = (0.1, 0.9)
"""Quantiles of the rates over resampled batches that are reported as their spread."""

RESAMPLES = 200

FRESH, STEP = SOURCES = ("fresh", "step")
"""Directions of the summaries, see :func:`observe`."""

COLUMNS = ("group", "parameters", "rate", "from", "solved", "low", "high", "positive")
"""Columns of suggestion.csv, one row per group and one for all parameters together."""


@dataclass(frozen=True)
class Observations:
    """Summaries of B batches, each along its own direction u; float64 on the CPU.

    Attributes:
        gradient: ḡ_s, shape (B, S).
        hessian: H̄_st, shape (B, S, S).
        third: D3_s, shape (B, S).
        norms: n_s = ‖P_s u‖, shape (B, S).
        silent: groups whose gradient or curvature is rounding noise, bool (B, S); None: no group is.
    """

    gradient: Tensor
    hessian: Tensor
    third: Tensor
    norms: Tensor
    silent: Tensor | None = None

    def __len__(self) -> int:
        return len(self.gradient)

    def packed(self, rule: RateRule) -> Tensor:
        """The summaries in the units of n_s and the layout in which ``rule`` averages them, shape (B, …)."""
        rows = zip(self.gradient, self.hessian, self.third, self.norms, strict=True)
        return torch.stack([rule.observe(*row) for row in rows])


def observe(
    model: nn.Module,
    loss_fn: LossFunction,
    partitions: Sequence[Partition],
    optimizer: OptimizerDirection,
    training: Iterator[Batch],
    curvature: Iterator[Batch] | None,
    *,
    batches: int,
    warmup: int,
    **options: Any,
) -> list[Observations]:
    """Advance an optimizer on training batches, and measure along each step on another batch or its own.

    Args:
        model, loss_fn: as for :func:`gnewton.summarize`.
        partitions: each gets the summaries of the same steps on the same batches.
        optimizer: its steps are the directions.
        training: batches of the gradients that feed the optimizer.
        curvature: batches of the summaries along u, independent of the training batches; None: summaries
            along w v, the fresh part of u in the length of u, on the training batch that v came from
            (:mod:`gnewton.optim.inner_optimizers`).
        batches: B.
        warmup: number of gradients fed before the first summary, which fill the averages of the optimizer.
        options: further arguments of :class:`gnewton.optim.measure.Objective`.
    """
    measurers = [PointMeasurer(model, loss_fn, partition, **options) for partition in partitions]
    forward = options.get("forward")
    rows: list[list[tuple[Tensor, ...]]] = [[] for _ in partitions]
    for _ in range(warmup):
        mean_gradient(model, loss_fn, [next(training)], forward)
        optimizer.advance()
    for _ in range(batches):
        batch = next(training)
        mean_gradient(model, loss_fn, [batch], forward)
        if curvature is None:
            direction = optimizer.advance_fresh()
        else:
            direction, batch = optimizer.advance(), next(curvature)
        for measurer, summaries in zip(measurers, rows, strict=True):
            mean = measurer.mean([batch], direction, optimizer.decay())
            summaries.append((mean.gradient, mean.hessian, mean.third, mean.norms, mean.silent))
    return [
        Observations(*(torch.stack(parts) for parts in zip(*summaries, strict=True))) for summaries in rows
    ]


@dataclass(frozen=True)
class Suggestion:
    """Suggested rates; vectors have shape (S,).

    Attributes:
        rates: one per group; the rate of all parameters together where the solve gives none above 0.
        solved: λ_1 η_s of the averaged summary, of any sign.
        low, high: the quantiles :data:`QUANTILES` of ``solved`` over resamples of the batches.
        positive: share of resamples in which the rate is above 0.
        single, single_low, single_high: the rate of all parameters together, and its quantiles.
        status: of the solve for the groups, a value of :class:`gnewton.cubic.CubicStatus`.
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
    def from_solve(self) -> npt.NDArray[np.bool_]:
        """Which groups have a rate from the solve."""
        return self.solved > 0

    def by_parameter(self, partition: Partition) -> dict[str, float]:
        """The rate of each parameter, which is that of its group."""
        pairs = zip(partition, self.rates, strict=True)
        return {name: float(rate) for group, rate in pairs for name in group.parameters}


def suggest(
    groups: Observations,
    whole: Observations,
    *,
    internal_damping: float,
    proximal: float,
    step_size: float,
    seed: int = 0,
) -> Suggestion:
    """Solve for the rates of the mean summary over batches; their spread comes from resampled batches.

    The rate η_0 of all parameters together is solved first. The rates of the groups follow, with the proximal
    term (μ/2)·Σ_s |H̄_ss| (η_s − η_0)², which holds the rate of a group near η_0 where its curvature is
    uncertain.

    Args:
        groups: summaries along the partition.
        whole: summaries of the same steps and batches with all parameters in one group.
        internal_damping: λ_int >= 0.
        proximal: μ >= 0.
        step_size: λ_1 > 0, the factor on all rates.
        seed: of the resampling.

    Raises:
        InputError: if even the rate of all parameters together is not above 0.
    """
    mean_whole = _MeanRates(whole, internal_damping, proximal=0.0)
    mean_groups = _MeanRates(groups, internal_damping, proximal)
    every = np.arange(len(groups))
    single = float(mean_whole.solve(every)[0][0])
    if not single > 0:
        raise InputError(
            "rates: averaged over these batches the optimizer's step lowers the loss at no rate; "
            "try more --batches, a larger --batch-size, or another point"
        )
    solved, status = mean_groups.solve(every, center=single)
    draws = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    singles = [float(mean_whole.solve(draw)[0][0]) for draw in draws]
    spread = np.stack(
        [mean_groups.solve(draw, center=center)[0] for draw, center in zip(draws, singles, strict=True)]
    )
    low, high = step_size * np.quantile(spread, QUANTILES, axis=0)
    single_low, single_high = step_size * np.quantile(singles, QUANTILES)
    return Suggestion(
        rates=step_size * np.where(solved > 0, solved, single),
        solved=step_size * solved,
        low=low,
        high=high,
        positive=(spread > 0).mean(axis=0),
        single=step_size * single,
        single_low=float(single_low),
        single_high=float(single_high),
        status=status,
    )


class _MeanRates:
    """Rates of the mean summary over chosen batches, by the rate rule of GroupedNewton."""

    def __init__(self, observations: Observations, internal_damping: float, proximal: float) -> None:
        size = observations.norms.shape[1]
        self._rule = RateRule(
            size, internal_damping=internal_damping, negative_rates="keep", proximal=proximal
        )
        self._packed = observations.packed(self._rule)
        self._norms = observations.norms
        silent = observations.silent
        self._silent = torch.zeros_like(self._norms, dtype=torch.bool) if silent is None else silent

    def solve(self, batches: npt.NDArray[np.int64], center: float = 0.0) -> tuple[Floats, str]:
        """η of the mean over ``batches`` and the status of the solve; 0 if the model has no minimiser.

        Args:
            batches: indices, possibly repeated.
            center: η_0, the rate from which the proximal term measures.
        """
        average, norms = self._packed[batches].mean(0), self._norms[batches].mean(0)
        if not bool(torch.isfinite(average).all()):
            return np.zeros(len(norms)), INVALID
        # the proximal term of the rule measures from the rates in force, in units of n_s
        self._rule.load_state_dict({**self._rule.state_dict(), "previous": center * norms})
        solved = self._rule.solve(average, norms, silent=self._silent[batches].all(0))
        rates = np.zeros(len(norms)) if solved.solution.fell_back else solved.rates.numpy()
        return rates, solved.solution.status


def suggestion_files(
    partition: Partition, suggestion: Suggestion, groups: Observations, remarks: Sequence[str]
) -> dict[str, str | bytes]:
    """The content of the files by name; ``remarks`` head the YAML, one per line."""
    rates = suggestion.by_parameter(partition)
    lines = [*(f"# {remark}" for remark in remarks), *(f"{name}: {rate!r}" for name, rate in rates.items())]
    return {
        "rates.yaml": "\n".join(lines) + "\n",
        "suggestion.csv": csv_table(COLUMNS, _rows(partition, suggestion)),
        "summaries.npz": _arrays(partition, groups),
    }


def _rows(partition: Partition, suggestion: Suggestion) -> list[list[object]]:
    rows: list[list[object]] = [
        [
            group.name,
            group.size,
            float(suggestion.rates[s]),
            "solve" if suggestion.from_solve[s] else "all",
            float(suggestion.solved[s]),
            float(suggestion.low[s]),
            float(suggestion.high[s]),
            float(suggestion.positive[s]),
        ]
        for s, group in enumerate(partition)
    ]
    size = sum(group.size for group in partition)
    single = suggestion.single
    return [
        *rows,
        ["(all)", size, single, "solve", single, suggestion.single_low, suggestion.single_high, ""],
    ]


def _arrays(partition: Partition, groups: Observations) -> bytes:
    """summaries.npz: the summaries along P_s u/n_s, directions of length one; zero where n_s is."""
    inverse = torch.where(groups.norms > 0, 1 / groups.norms, 0.0)
    return npz_file(
        groups=np.array(partition.names),
        gradient=(groups.gradient * inverse).numpy(),
        hessian=(groups.hessian * inverse[:, :, None] * inverse[:, None, :]).numpy(),
        third=(groups.third * inverse**3).numpy(),
        norms=groups.norms.numpy(),
    )
