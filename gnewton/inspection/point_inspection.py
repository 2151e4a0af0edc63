"""The inspection of one point: its summary along one direction, the rates it implies, and its files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gnewton.inspection.loss_along import LossAlong, measure_along, rate_scales
from gnewton.inspection.measurement import (
    Batches,
    Distance,
    Floats,
    PointMeasurer,
    correlation,
    eigenvalues,
    group_depths,
    mass_by_distance,
    per_length,
)
from gnewton.optim.solvers import CubicSolver, Model, NewtonSolver
from gnewton.partition import Partition
from gnewton.summary.problem import LossFunction

GROUP_COLUMNS = (
    "group",
    "layer",
    "parameters",
    "norm",
    "gradient",
    "curvature",
    "third",
    "rate_cubic",
    "rate_newton",
    "rate_alone",
)
"""Columns of groups.csv, one row per group."""

DISTANCE_COLUMNS = ("layers", "entries", "share", "scaled_share", "scaled_mean")
"""Columns of distances.csv, one row per distance between layers."""


@dataclass(frozen=True)
class RateSet:
    """Rates of all groups by one rule.

    Attributes:
        name: of the rule.
        values: η, shape (S,); NaN where the rule gives none.
        status: of the solve, a value of :class:`gnewton.cubic.CubicStatus`.
    """

    name: str
    values: Floats
    status: str


@dataclass(frozen=True)
class Inspection:
    """The summary at a point and the quantities derived from it; arrays are float64.

    Attributes:
        partition: the S groups.
        depths: the layer of each group, see :func:`~gnewton.inspection.measurement.group_depths`.
        gradient, hessian, third: ḡ (S,), H̄ (S, S) and D3 (S,), means over the samples.
        norms: ‖P_s u‖, shape (S,).
        loss: mean over the samples.
        samples, batches: numbers of samples and batches averaged over.
        internal_damping: λ_int of the rates with the cubic term.
        rates: see :func:`rate_sets`.
        distances: see :func:`~gnewton.inspection.measurement.mass_by_distance`.
        along: the loss along each group and its models; None where it was not asked for.
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
    along: LossAlong | None = None

    def spectra(self) -> dict[str, Floats]:
        """Ascending eigenvalues of H̄ along unit directions (loss per squared length) and of the scaled H̄."""
        return {
            "per_length": eigenvalues(per_length(self.hessian, self.norms)),
            "scaled": eigenvalues(correlation(self.hessian)),
        }


def inspect_point(
    model: nn.Module,
    loss_fn: LossFunction,
    partition: Partition,
    batches: Batches,
    direction: Mapping[str, Tensor],
    *,
    internal_damping: float,
    decay: Mapping[str, float] | None = None,
    order: int | None = None,
    **options: Any,
) -> Inspection:
    """The summary at the present parameters and the quantities derived from it.

    Args:
        model, loss_fn, partition: as for :func:`gnewton.summarize`; the mode of the model is left as it is.
        batches: the samples.
        direction: u by parameter name.
        internal_damping: λ_int >= 0.
        decay: wd of the terms (wd/2)‖θ‖² that the optimizer adds to the loss, by parameter name.
        order: d of the loss along each group, see :func:`~gnewton.inspection.loss_along.measure_along`; None
            omits it.
        options: further arguments of :class:`gnewton.optim.measure.Objective`.
    """
    mean = PointMeasurer(model, loss_fn, partition, **options).mean(batches(), direction, decay)
    gradient, hessian, third = mean.gradient.numpy(), mean.hessian.numpy(), mean.third.numpy()
    depths = group_depths(model, partition)
    rates = rate_sets(gradient, hessian, third, internal_damping, mean.silent.numpy())
    along = None
    if order is not None:
        silent = mean.silent.numpy()
        scales = rate_scales(rates[0].values, np.where(silent, 0.0, gradient), hessian.diagonal())
        along = measure_along(
            model,
            loss_fn,
            partition,
            batches,
            direction,
            scales,
            order=order,
            decay=decay,
            forward=options.get("forward"),
            engine="reference" if options.get("engine") == "reference" else "auto",
            max_memory=options.get("max_memory"),
        )
    return Inspection(
        partition=partition,
        depths=depths,
        gradient=gradient,
        hessian=hessian,
        third=third,
        norms=mean.norms.numpy(),
        loss=mean.loss,
        samples=mean.samples,
        batches=mean.batches,
        internal_damping=internal_damping,
        rates=rates,
        distances=mass_by_distance(hessian, depths),
        along=along,
    )


def rate_sets(
    gradient: Floats,
    hessian: Floats,
    third: Floats,
    internal_damping: float,
    silent: npt.NDArray[np.bool_] | None = None,
) -> list[RateSet]:
    """Rates with the cubic term, without it, and of each group as if it moved alone.

    Groups that are ``silent``, on which the loss does not depend within rounding (a bias before a batch
    normalisation), take no part, as in GroupedNewton; their rates are 0.

    - ``cubic``: the global minimiser of the cubic model; NaN if it has none.
    - ``newton``: H̄⁻¹ḡ (least squares if H̄ is singular), the stationary point of the quadratic model. The
      status "unbounded" says that it is not a minimum.
    - ``alone``: ḡ_s/H̄_ss, the exact line search of a single group; NaN where H̄_ss <= 0.
    """
    heard = np.ones(len(gradient), dtype=bool) if silent is None else ~silent
    model = Model(
        gradient=torch.from_numpy(gradient[heard]),
        hessian=torch.from_numpy(hessian[np.ix_(heard, heard)]),
        third=torch.from_numpy(third[heard]),
        internal_damping=internal_damping,
        nonnegative=False,
        radius=math.inf,
    )
    cubic = CubicSolver().solve(model)
    quadratic = CubicSolver().solve(replace(model, internal_damping=0.0))
    newton = NewtonSolver().solve(model) if quadratic.fell_back else quadratic
    diagonal = hessian.diagonal()[heard]
    convex = diagonal > 0
    alone = np.where(convex, gradient[heard] / np.where(convex, diagonal, 1.0), np.nan)
    minimiser = np.full_like(alone, np.nan) if cubic.fell_back else cubic.rates.numpy()

    def spread(rates: Floats) -> Floats:
        every = np.zeros_like(gradient)
        every[heard] = rates
        return every

    return [
        RateSet("cubic", spread(minimiser), cubic.status),
        RateSet("newton", spread(newton.rates.numpy()), quadratic.status),
        RateSet("alone", spread(alone), "quadratic" if convex.all() else "unbounded"),
    ]


def inspection_files(inspection: Inspection, about: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of the files of an inspection, by file name.

    Args:
        inspection: the inspection.
        about: the point, the samples and the direction, for inspection.json.
    """
    names = inspection.partition.names
    scaled, spectra = correlation(inspection.hessian), inspection.spectra()
    along = inspection.along
    further = {}
    if along is not None:
        further = {
            "along.csv": csv_table(along.curve_columns(), along.curve_rows(names)),
            "along_reach.csv": csv_table(along.reach_columns(), along.reach_rows(names)),
        }
    return {
        "inspection.json": _json(inspection, about),
        "summary.npz": _arrays(inspection),
        "groups.csv": csv_table(GROUP_COLUMNS, _group_rows(inspection)),
        "hessian.csv": _matrix(names, inspection.hessian),
        "hessian_scaled.csv": _matrix(names, scaled),
        "spectrum.csv": csv_table(("index", *spectra), _spectrum_rows(spectra)),
        "distances.csv": csv_table(
            DISTANCE_COLUMNS, ([getattr(d, name) for name in DISTANCE_COLUMNS] for d in inspection.distances)
        ),
        **further,
    }


def csv_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A CSV file; cells without a finite number are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode()


def npz_file(**arrays: np.ndarray) -> bytes:
    """An npz file of named arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""
    return str(value)


def _json(inspection: Inspection, about: Mapping[str, Any]) -> bytes:
    content = {
        **about,
        "loss": inspection.loss,
        "samples": inspection.samples,
        "batches": inspection.batches,
        "internal_damping": inspection.internal_damping,
        "statuses": {rates.name: rates.status for rates in inspection.rates},
        "groups": {
            group.name: [*group.parameters, *map(str, group.slices)] for group in inspection.partition
        },
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _arrays(inspection: Inspection) -> bytes:
    return npz_file(
        groups=np.array(inspection.partition.names),
        layers=np.array(inspection.depths),
        sizes=np.array([group.size for group in inspection.partition]),
        gradient=inspection.gradient,
        hessian=inspection.hessian,
        third=inspection.third,
        norms=inspection.norms,
        loss=np.array(inspection.loss),
        **{f"rate_{rates.name}": rates.values for rates in inspection.rates},
    )


def _group_rows(inspection: Inspection) -> Iterable[list[object]]:
    columns = [
        inspection.norms,
        inspection.gradient,
        inspection.hessian.diagonal(),
        inspection.third,
        *(rates.values for rates in inspection.rates),
    ]
    for s, group in enumerate(inspection.partition):
        yield [group.name, inspection.depths[s], group.size, *(float(column[s]) for column in columns)]


def _spectrum_rows(spectra: Mapping[str, Floats]) -> Iterable[list[object]]:
    for index, row in enumerate(zip(*spectra.values(), strict=True)):
        yield [index, *(float(value) for value in row)]


def _matrix(names: tuple[str, ...], values: Floats) -> bytes:
    return csv_table(
        ("group", *names), ([name, *map(float, row)] for name, row in zip(names, values, strict=True))
    )
