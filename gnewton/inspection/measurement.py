"""Gradients and summaries averaged over batches, and the direction of an optimizer at a fixed point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.data.splits import Batch
from gnewton.optim.grouping import Grouping
from gnewton.optim.measure import Measurer, Objective
from gnewton.optim.shadow_direction import DirectionFactory, ShadowDirection
from gnewton.partition import Partition
from gnewton.summary.batch import batch_size
from gnewton.summary.problem import Forward, LossFunction, batch_loss

Batches = Callable[[], Iterable[Batch]]
"""Returns the same batches at every call: the direction and the summary are computed in separate passes."""


@dataclass(frozen=True)
class MeanSummary:
    """A summary averaged over batches; float64 on the CPU.

    Attributes:
        gradient, hessian, third: ḡ (S,), H̄ (S, S) and D3 (S,), means over all samples.
        norms: ‖P_s u‖, (S,).
        loss: mean over all samples, without weight decay.
        samples, batches: their numbers.
        silent: groups whose gradient or curvature is rounding noise in every batch, bool (S,).
    """

    gradient: Tensor
    hessian: Tensor
    third: Tensor
    norms: Tensor
    loss: float
    samples: int
    batches: int
    silent: Tensor


class PointMeasurer:
    """Summaries along named directions at the present parameters, through the optimizer's own measurer.

    Args:
        model, loss_fn: as for :func:`gnewton.summarize`.
        partition: the S groups.
        options: further arguments of :class:`gnewton.optim.measure.Objective`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        partition: Partition,
        **options: Any,
    ) -> None:
        grouping = Grouping(model, partition)
        self._names = grouping.names
        self._measurer = Measurer(Objective(model, loss_fn, **options), grouping)
        self._measured = 0

    def mean(
        self,
        batches: Iterable[Batch],
        direction: Mapping[str, Tensor],
        decay: Mapping[str, float] | None = None,
    ) -> MeanSummary:
        """The summary of the mean loss over all samples of ``batches`` along one direction.

        It equals the summary of one joint batch, unless a layer mixes the samples of a batch (batch
        normalisation in training mode) or draws random numbers (dropout): then it is the weighted mean of the
        summaries of the batches.

        Args:
            batches: the samples; each batch is weighted by its size.
            direction: u by parameter name.
            decay: wd of the terms (wd/2)‖θ‖² of a coupled weight decay, by parameter name; 0 where missing.
        """
        u = [direction[name] for name in self._names]
        factors = [(decay or {}).get(name, 0.0) for name in self._names]
        total: list[Tensor] | None = None
        samples = count = 0
        silent = None
        for inputs, targets in batches:
            measured = self._measurer.measure(inputs, targets, [u], factors, seed=self._measured)
            self._measured += 1
            weight = batch_size(inputs, targets)
            loss = torch.tensor(measured.loss, dtype=torch.float64)
            parts = [weight * part for part in (measured.gradient, measured.hessian, measured.third, loss)]
            total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
            samples, count, norms = samples + weight, count + 1, measured.norms
            silent = measured.silent if silent is None else silent & measured.silent
        if total is None or silent is None:
            raise ValueError("there is no batch to average over")
        gradient, hessian, third, mean_loss = (part / samples for part in total)
        return MeanSummary(gradient, hessian, third, norms, float(mean_loss), samples, count, silent)


def mean_gradient(
    model: nn.Module, loss_fn: LossFunction, batches: Iterable[Batch], forward: Forward | None = None
) -> dict[str, Tensor]:
    """∇ of the mean loss over all samples of ``batches``, by parameter name; summed in float64.

    The gradient is also left in ``.grad``, where optimizers read it. The model is called as for
    :func:`gnewton.summarize`.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in named.items()}
    samples = 0
    for inputs, targets in batches:
        model.zero_grad(set_to_none=True)
        batch_loss(model, loss_fn, forward, inputs, targets).backward()
        weight = batch_size(inputs, targets)
        samples += weight
        for name, p in named.items():
            if p.grad is not None:
                sums[name].add_(p.grad, alpha=weight)
    for name, p in named.items():
        p.grad = (sums[name] / max(samples, 1)).to(p.dtype)
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}


class OptimizerDirection:
    """The steps of a first-order optimizer at learning rate 1 while the model stays where it is.

    Args:
        model: its parameters' ``.grad`` feeds the optimizer.
        factory: builds the optimizer from (name, tensor) pairs.
        order: names of all trainable parameters, in the order in which ``state`` numbers them.
        state: of the optimizer; None: its initial state.
    """

    def __init__(
        self,
        model: nn.Module,
        factory: DirectionFactory,
        order: Sequence[str],
        state: dict[str, Any] | None = None,
    ) -> None:
        parameters = dict(model.named_parameters())
        self._order = list(order)
        self._shadow = ShadowDirection([(name, parameters[name]) for name in order], factory)
        if state is not None:
            self._shadow.load_state_dict(deepcopy(state))  # torch would update the tensors of the caller

    def advance(self) -> dict[str, Tensor]:
        """Feed the gradient and return u by parameter name, pointing uphill; valid until the next call."""
        return dict(zip(self._order, self._shadow.update(), strict=True))

    def advance_fresh(self) -> dict[str, Tensor]:
        """Feed the gradient and return w v by parameter name: the fresh part of u, as long as u would become
        if every gradient were this one (:mod:`gnewton.optim.inner_optimizers`); u where the parts are not known.
        """
        newest = self._shadow.advance(fresh=True)[1]
        weighted = zip(self._order, newest, self._shadow.weights, strict=True)
        return {name: v if w == 1 else w * v for name, v, w in weighted}

    def close(self) -> None:
        """Release the model, for optimizers that refer to it."""
        self._shadow.close()

    def decay(self) -> dict[str, float]:
        """wd of the terms (wd/2)‖θ‖² that the optimizer adds to the loss, by parameter name."""
        return dict(zip(self._order, self._shadow.quadratic_decay(), strict=True))
