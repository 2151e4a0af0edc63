"""An inspection as files: arrays for programs, tables for people."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gnewton.inspection.measures import correlation
from gnewton.inspection.point import Inspection

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


def inspection_files(inspection: Inspection, about: Mapping[str, Any]) -> dict[str, bytes]:
    """The files by name.

    Args:
        inspection: what was found.
        about: where, on what and along which direction, for inspection.json.
    """
    names = inspection.partition.names
    scaled = correlation(inspection.hessian)
    return {
        "inspection.json": _json(inspection, about),
        "summary.npz": _arrays(inspection),
        "groups.csv": table(GROUP_COLUMNS, _group_rows(inspection)),
        "hessian.csv": _matrix(names, inspection.hessian),
        "hessian_scaled.csv": _matrix(names, scaled),
        "spectrum.csv": table(("index", *inspection.spectra()), _spectrum_rows(inspection)),
        "distances.csv": table(
            DISTANCE_COLUMNS, ([getattr(d, name) for name in DISTANCE_COLUMNS] for d in inspection.distances)
        ),
    }


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A CSV file; a cell stays empty where there is no finite number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode()


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
        "groups": {group.name: list(group.parameters) for group in inspection.partition},
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _arrays(inspection: Inspection) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        groups=np.array(inspection.partition.names),
        layers=np.array(inspection.depths),
        sizes=np.array([group.size for group in inspection.partition]),
        gradient=inspection.gradient,
        hessian=inspection.hessian,
        third=inspection.third,
        norms=inspection.norms,
        loss=np.array(inspection.loss),
        **{f"rate_{rates.name}": rates.values for rates in inspection.rates},  # type: ignore[arg-type]
    )
    return buffer.getvalue()


def _group_rows(inspection: Inspection) -> Iterable[list[object]]:
    values = [
        inspection.norms,
        inspection.gradient,
        inspection.hessian.diagonal(),
        inspection.third,
        *(rates.values for rates in inspection.rates),
    ]
    for s, group in enumerate(inspection.partition):
        yield [group.name, inspection.depths[s], group.size, *(float(value[s]) for value in values)]


def _spectrum_rows(inspection: Inspection) -> Iterable[list[object]]:
    columns = inspection.spectra().values()
    for index, row in enumerate(zip(*columns, strict=True)):
        yield [index, *(float(value) for value in row)]


def _matrix(names: tuple[str, ...], values: np.ndarray) -> bytes:
    return table(
        ("group", *names), ([name, *map(float, row)] for name, row in zip(names, values, strict=True))
    )
