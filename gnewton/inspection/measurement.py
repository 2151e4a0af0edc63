"""What is measured at a fixed point: gradients and summaries over batches, directions, the structure of H̄."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gnewton.data import Batch
from gnewton.optim.grouping import Grouping
from gnewton.optim.measure import Measurer, Objective
from gnewton.optim.shadow_direction import DirectionFactory, ShadowDirection
from gnewton.partition import Partition
from gnewton.partition.schemes import by_layer
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
        if every gradient were this one (:mod:`gnewton.optim.inner_optimizers`); u where v is not known.
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


Floats = npt.NDArray[np.float64]


def correlation(hessian: Floats) -> Floats:
    """H̄_st / √|H̄_ss H̄_tt|, invariant to a rescaling of the groups; 0 where a diagonal entry is 0.

    Its entries lie in [−1, 1] if H̄ is positive semidefinite; otherwise they may exceed 1.
    """
    return per_length(hessian, np.sqrt(np.abs(hessian.diagonal())))


def per_length(hessian: Floats, norms: Floats) -> Floats:
    """H̄_st / (n_s n_t), the curvature along unit directions; 0 where the direction vanishes."""
    product = np.outer(norms, norms)
    return np.divide(hessian, product, out=np.zeros_like(hessian), where=product > 0)


def eigenvalues(matrix: Floats) -> Floats:
    """Ascending eigenvalues of a symmetric matrix."""
    return np.asarray(np.linalg.eigvalsh(matrix), dtype=np.float64)


@dataclass(frozen=True)
class Distance:
    """The entries H̄_st, s ≠ t, of groups whose layers are ``layers`` apart.

    Attributes:
        layers: |depth_s − depth_t|.
        entries: their number; (s, t) and (t, s) both count.
        share: their share of Σ|H̄_st| over the whole matrix.
        scaled_share: the same for the scaled Hessian, see :func:`correlation`.
        scaled_mean: mean absolute value of the scaled entries.
    """

    layers: int
    entries: int
    share: float
    scaled_share: float
    scaled_mean: float


def mass_by_distance(hessian: Floats, depths: Sequence[int]) -> list[Distance]:
    """The mass of H̄ off its diagonal, by the distance between the layers of the groups.

    The shares and the diagonal add up to one.

    Args:
        hessian: H̄, shape (S, S).
        depths: the layer of each group, counted from the input.
    """
    depth = np.asarray(depths)
    distance = np.abs(depth[:, None] - depth[None, :])
    off_diagonal = ~np.eye(len(depth), dtype=bool)
    raw, scaled = np.abs(hessian), np.abs(correlation(hessian))
    rows = []
    for layers in range(int(distance.max()) + 1):
        mask = off_diagonal & (distance == layers)
        if mask.any():
            rows.append(
                Distance(
                    layers,
                    int(mask.sum()),
                    _share(raw, mask),
                    _share(scaled, mask),
                    float(scaled[mask].mean()),
                )
            )
    return rows


def _share(values: Floats, mask: npt.NDArray[np.bool_]) -> float:
    total = float(values.sum())
    return float(values[mask].sum()) / total if total > 0 else 0.0


def group_depths(model: nn.Module, partition: Partition) -> tuple[int, ...]:
    """The layer of each group, counted from 0 in model order; the first layer of a group that has several."""
    depth = {name: i for i, names in enumerate(by_layer(model).values()) for name in names}
    return tuple(min(depth[name] for name in group.touched) for group in partition)
