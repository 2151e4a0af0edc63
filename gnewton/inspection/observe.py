"""Summaries along the steps that an optimizer proposes, batch after batch, while the parameters stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from gnewton.data.splits import Batch
from gnewton.inspection.average import averaged_summary, group_norms, mean_gradient
from gnewton.inspection.measures import Floats
from gnewton.inspection.point import with_decay
from gnewton.inspection.proposal import Proposal
from gnewton.partition import Partition
from gnewton.summary import Summarizer


@dataclass(frozen=True)
class Observations:
    """Summaries of B batches in units of n_s = ‖P_s u‖, so that those along different u can be averaged.

    Attributes:
        gradient: ḡ_s/n_s, shape (B, S).
        hessian: H̄_st/(n_s n_t), shape (B, S, S).
        third: D3_s/n_s³, shape (B, S).
        norms: n_s, shape (B, S).
    """

    gradient: Floats
    hessian: Floats
    third: Floats
    norms: Floats

    def __len__(self) -> int:
        return len(self.gradient)

    def pick(self, chosen: npt.NDArray[np.int64]) -> Observations:
        """Those of some batches, perhaps several times."""
        return Observations(
            self.gradient[chosen], self.hessian[chosen], self.third[chosen], self.norms[chosen]
        )


def observe(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    partitions: Sequence[Partition],
    proposal: Proposal,
    training: Iterator[Batch],
    curvature: Iterator[Batch],
    *,
    batches: int,
    warmup: int,
) -> list[Observations]:
    """Advance the proposal on training batches, and take summaries along each step on a batch of their own.

    Args:
        model, loss_fn: as for :func:`gnewton.summarize`.
        partitions: each gets its summaries, of the same steps on the same batches.
        proposal: the optimizer whose steps are the directions.
        training: batches of the gradients it is fed.
        curvature: batches of the summaries, independent of these.
        batches: B.
        warmup: gradients that it takes in before, so that its averages are filled.
    """
    summarizers = [Summarizer(model, loss_fn, partition) for partition in partitions]
    found: list[list[tuple[Floats, ...]]] = [[] for _ in partitions]
    for _ in range(warmup):
        mean_gradient(model, loss_fn, [next(training)])
        proposal.advance()
    for _ in range(batches):
        mean_gradient(model, loss_fn, [next(training)])
        direction, batch = proposal.advance(), next(curvature)
        for summarizer, partition, rows in zip(summarizers, partitions, found, strict=True):
            averaged = averaged_summary(summarizer, [batch], direction)
            gradient, hessian, third = with_decay(averaged, model, partition, direction, proposal.decay())
            n = group_norms(direction, partition.index, len(partition)).numpy()
            inverse = np.divide(1.0, n, out=np.zeros_like(n), where=n > 0)
            rows.append((gradient * inverse, hessian * np.outer(inverse, inverse), third * inverse**3, n))
    return [Observations(*(np.stack(parts) for parts in zip(*rows, strict=True))) for rows in found]
