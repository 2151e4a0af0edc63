"""The objective along a direction: exact summaries on the host, and its decrease over a trial step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.optim.grouping import Grouping, dots, squares
from gnewton.summary import Summarizer
from gnewton.summary.api import Engine
from gnewton.summary.problem import LossFunction


@dataclass(frozen=True)
class Measured:
    """A summary of the objective that is minimised, float64 on the CPU.

    Attributes:
        gradient, hessian, third: ḡ (S,), H̄ (S, S) or its diagonal (S,), D3 (S,): zeros where not asked for.
        norms: ‖P_s u‖, (S,).
        sizes: ‖θ_s‖, (S,).
        loss: the loss of the batch, as the loss function gives it.
    """

    gradient: Tensor
    hessian: Tensor
    third: Tensor
    norms: Tensor
    sizes: Tensor
    loss: float

    @property
    def finite(self) -> bool:
        """Whether every number that rates are made of is finite."""
        parts = (self.gradient, self.hessian, self.third, self.norms)
        return all(bool(torch.isfinite(part).all()) for part in parts)


class Measurer:
    """Summaries of the objective ±L + Σ (wd/2)‖θ_i‖² over one partition.

    Args:
        model, loss_fn: as in :class:`gnewton.summary.Summarizer`.
        grouping: the groups of its parameters.
        maximize: whether the objective is −L.
        third, diagonal, engine, max_memory: as in :class:`gnewton.summary.Summarizer`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        grouping: Grouping,
        *,
        maximize: bool = False,
        third: bool = True,
        diagonal: bool = False,
        engine: Engine = "auto",
        max_memory: int | None = None,
    ) -> None:
        self._summarizer = Summarizer(
            model,
            loss_fn,
            grouping.partition,
            third=third,
            diagonal=diagonal,
            engine=engine,
            max_memory=max_memory,
        )
        self._sign = -1.0 if maximize else 1.0
        self._grouping = grouping

    def measure(
        self, inputs: Any, targets: Any, direction: Sequence[Tensor], decay: Sequence[float]
    ) -> Measured:
        """The summary along ``direction``, in a single transfer to the host.

        Args:
            inputs, targets: the batch.
            direction: u, in the order of the partition's parameters.
            decay: wd of each parameter, 0 for none.
        """
        grouping = self._grouping
        size = len(grouping.partition)
        summary = self._summarizer.summarize(
            inputs, targets, dict(zip(grouping.names, direction, strict=True))
        )
        lengths = squares(direction)
        gradient, hessian = self._sign * summary.gradient, self._sign * summary.hessian
        third = self._sign * summary.third if summary.third is not None else lengths.new_zeros(size)
        if any(decay):
            factors = lengths.new_tensor(list(decay))
            gradient = gradient + grouping.sums(factors * dots(grouping.parameters, direction))
            curvature = grouping.sums(factors * lengths)
            hessian = hessian + (curvature if hessian.dim() == 1 else torch.diag(curvature))
        sizes = [grouping.sums(lengths).sqrt(), grouping.norms(grouping.parameters)]
        packed = torch.cat([gradient, hessian.flatten(), third, *sizes, summary.loss.reshape(1)]).cpu()
        parts = packed.split([size, hessian.numel(), size, size, size, 1])
        return Measured(parts[0], parts[1].view(hessian.shape), parts[2], parts[3], parts[4], float(parts[5]))
