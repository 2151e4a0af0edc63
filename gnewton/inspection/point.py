"""One point looked at: the summary there, along one direction, with everything read from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from gnewton.inspection.average import Averaged, Batches, averaged_summary, group_norms
from gnewton.inspection.measures import (
    Distance,
    Floats,
    RateSet,
    correlation,
    eigenvalues,
    mass_by_distance,
    per_length,
    rate_sets,
)
from gnewton.partition import Partition
from gnewton.partition.schemes import by_layer
from gnewton.summary import Summarizer


@dataclass(frozen=True)
class Inspection:
    """What is known of a point; arrays are float64.

    Attributes:
        partition: the S groups.
        depths: the layer of each group, see :func:`group_depths`.
        gradient, hessian, third: ḡ (S,), H̄ (S, S) and D3 (S,), means over the samples.
        norms: ‖P_s u‖, shape (S,).
        loss: mean over the samples.
        samples, batches: what the means are taken over.
        internal_damping: λ_int of the rates with the cubic term.
        rates: see :func:`gnewton.inspection.measures.rate_sets`.
        distances: see :func:`gnewton.inspection.measures.mass_by_distance`.
    """

    partition: Partition
    depths: tuple[int, ...]
    gradient: Floats
    hessian: Floats
    third: Floats
    norms: Floats
    loss: float
    samples: int
    batches: int
    internal_damping: float
    rates: Sequence[RateSet]
    distances: Sequence[Distance]

    def spectra(self) -> dict[str, Floats]:
        """Ascending eigenvalues: of H̄ along unit directions, in loss per squared length, and of the
        correlation-scaled H̄, free of unit.
        """
        return {
            "per_length": eigenvalues(per_length(self.hessian, self.norms)),
            "scaled": eigenvalues(correlation(self.hessian)),
        }


def inspect_point(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    partition: Partition,
    batches: Batches,
    direction: Mapping[str, Tensor],
    *,
    internal_damping: float,
    decay: Mapping[str, float] | None = None,
) -> Inspection:
    """The summary at the present parameters, and what follows from it.

    Args:
        model, loss_fn, partition: as for :func:`gnewton.summarize`; the model in the mode that is meant.
        batches: the samples.
        direction: u by parameter name.
        internal_damping: λ_int >= 0.
        decay: wd of the terms (wd/2)‖θ‖² that the optimizer adds to the loss, by parameter name.
    """
    found = averaged_summary(Summarizer(model, loss_fn, partition), batches(), direction)
    norms = group_norms(direction, partition.index, len(partition)).numpy()
    gradient, hessian, third = with_decay(found, model, partition, direction, decay or {})
    depths = group_depths(model, partition)
    return Inspection(
        partition=partition,
        depths=depths,
        gradient=gradient,
        hessian=hessian,
        third=third,
        norms=norms,
        loss=float(found.summary.loss),
        samples=found.samples,
        batches=found.batches,
        internal_damping=internal_damping,
        rates=rate_sets(gradient, hessian, third, internal_damping),
        distances=mass_by_distance(hessian, depths),
    )


def with_decay(
    found: Averaged,
    model: nn.Module,
    partition: Partition,
    direction: Mapping[str, Tensor],
    decay: Mapping[str, float],
) -> tuple[Floats, Floats, Floats]:
    """ḡ, H̄ and D3 of the loss with the terms (wd/2)‖θ‖² of a coupled weight decay, in numpy."""
    summary = found.summary
    third = summary.third if summary.third is not None else summary.gradient * 0
    gradient, hessian = summary.gradient.cpu().numpy().copy(), summary.hessian.cpu().numpy().copy()
    for name, p in model.named_parameters():
        if decay.get(name):
            s, u = partition.index[name], direction[name].double()
            gradient[s] += decay[name] * float((p.detach().double() * u).sum())
            hessian[s, s] += decay[name] * float(u.square().sum())
    return gradient, hessian, third.cpu().numpy()


def group_depths(model: nn.Module, partition: Partition) -> tuple[int, ...]:
    """The layer of each group, counted from 0 in model order: the first one, where it has several."""
    depth = {name: i for i, names in enumerate(by_layer(model).values()) for name in names}
    return tuple(min(depth[name] for name in group.parameters) for group in partition)
