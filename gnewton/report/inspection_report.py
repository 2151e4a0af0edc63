"""A finished inspection, read from its folder, and its description in words and numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from gnewton.errors import InputError

RATES = {
    "cubic": "with the cubic term",
    "newton": "without it (H̄⁻¹ḡ)",
    "alone": "each group alone (ḡ_s/H̄_ss)",
}
"""The rules for rates: their names in files and in words."""

FILES = (
    "inspection.json",
    "summary.npz",
    "groups.csv",
    "hessian_scaled.csv",
    "spectrum.csv",
    "distances.csv",
)
"""The files of an inspection that are read."""

ALONG_FILES = ("along.csv", "along_reach.csv")
"""Those of the loss along each group, which may be missing."""

_UNREADABLE = (OSError, ValueError, KeyError)


@dataclass(frozen=True)
class InspectionFiles:
    """The content of an inspection folder.

    Attributes:
        about: inspection.json; ``title``, if it is there, heads the plots.
        groups: groups.csv, one row per group.
        hessian, scaled: H̄ and the correlation-scaled H̄, shape (S, S).
        spectrum: spectrum.csv, ascending eigenvalues.
        distances: distances.csv, one row per distance between layers.
        along: along.csv, the loss and its models on a grid of rates; None where it was not asked for.
        reach: along_reach.csv, one row per group: how far each model holds.
    """

    about: dict[str, Any]
    groups: pd.DataFrame
    hessian: npt.NDArray[np.float64]
    scaled: npt.NDArray[np.float64]
    spectrum: pd.DataFrame
    distances: pd.DataFrame
    along: pd.DataFrame | None = None
    reach: pd.DataFrame | None = None

    @property
    def orders(self) -> tuple[int, ...]:
        """The orders of the models of the loss along each group."""
        if self.reach is None:
            return ()
        return tuple(int(name[6:]) for name in self.reach.columns if name.startswith("holds_"))

    @property
    def matrix(self) -> str:
        """What H̄ is: "hessian", "gauss_newton" or "fisher"."""
        return str(self.about.get("matrix", "hessian"))

    @property
    def names(self) -> list[str]:
        """Names of the groups."""
        return [str(name) for name in self.groups["group"]]


def read_inspection(folder: Path) -> InspectionFiles:
    """Read the files of ``gnewton inspect``.

    Raises:
        InputError: if a file is missing or cannot be read.
    """
    try:
        names = [*FILES, *(name for name in ALONG_FILES if (folder / name).is_file())]
        return parse_inspection({name: (folder / name).read_bytes() for name in names})
    except _UNREADABLE as error:
        raise InputError(f"{folder}: it holds no whole inspection ({error})") from error


def parse_inspection(files: Mapping[str, bytes]) -> InspectionFiles:
    """An inspection from the content of its files (:data:`FILES`, :data:`ALONG_FILES`) by name."""
    about = json.loads(files["inspection.json"])
    with np.load(io.BytesIO(files["summary.npz"]), allow_pickle=False) as arrays:
        hessian = arrays["hessian"]
    scaled = pd.read_csv(io.BytesIO(files["hessian_scaled.csv"]), index_col="group").to_numpy(dtype=float)
    groups, spectrum, distances = (
        pd.read_csv(io.BytesIO(files[f"{name}.csv"]), dtype={"group": str})
        for name in ("groups", "spectrum", "distances")
    )
    along, reach = (
        pd.read_csv(io.BytesIO(files[name]), dtype={"group": str}) if name in files else None
        for name in ALONG_FILES
    )
    return InspectionFiles(about, groups, hessian, scaled, spectrum, distances, along, reach)


def _of_matrix(matrix: str) -> str:
    return "" if matrix == "hessian" else f"; H̄ is the {matrix} matrix"


def describe_inspection(files: InspectionFiles) -> str:
    """The point, a table of the groups, the ends of the solves, and the mass of H̄ off its diagonal."""
    about = files.about
    head = (
        f"{about['point']}\n"
        f"on {about['taken_on']}, model in {about['mode']} mode, direction u: {about['direction']}; "
        f"loss {about['loss']:.6g}{_of_matrix(files.matrix)}"
    )
    parts = [head, _table(files), _endings(files), _mass(files)]
    return "\n\n".join(parts if files.reach is None else [*parts, _reach(files, files.reach)])


def _table(files: InspectionFiles) -> str:
    columns = {
        "group": "group",
        "norm": "‖P_s u‖",
        "gradient": "ḡ_s",
        "curvature": "H̄_ss",
        "third": "D3_s",
        "rate_cubic": "η cubic",
        "rate_newton": "η Newton",
        "rate_alone": "η alone",
    }
    shown = files.groups[list(columns)].rename(columns=columns)
    return shown.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.3g}")


def _endings(files: InspectionFiles) -> str:
    damping = files.about["internal_damping"]
    statuses = files.about["statuses"]
    lines = [f"rates with the cubic term (λ_int {damping:g}): {_in_words(statuses['cubic'])}"]
    lines.append(f"rates without it, H̄⁻¹ḡ: {_in_words(statuses['newton'])}")
    eigenvalues = files.spectrum["scaled"].to_numpy()
    lines.append(
        f"eigenvalues of the scaled H̄: {eigenvalues[0]:.3g} … {eigenvalues[-1]:.3g}, "
        f"{int((eigenvalues < 0).sum())} of {len(eigenvalues)} negative"
    )
    return "\n".join(lines)


def _in_words(status: str) -> str:
    words = {
        "interior": "the global minimiser",
        "hard_case": "a global minimiser (hard case)",
        "quadratic": "the minimiser, H̄ is positive definite",
        "unbounded": "no minimum: H̄ has directions of no or negative curvature",
    }
    return words.get(status, status)


def _mass(files: InspectionFiles) -> str:
    rows = files.distances
    if rows.empty:
        return "one group: nothing lies off the diagonal"
    total, scaled = rows["share"].sum(), rows["scaled_share"].sum()
    lines = [f"off the diagonal: {total:.1%} of Σ|H̄_st|, {scaled:.1%} of it correlation-scaled; of this"]
    lines += [
        f"  {_apart(int(row['layers'])):<18}{row['share']:>8.1%}{row['scaled_share']:>8.1%}   "
        f"mean {row['scaled_mean']:.2f} over {int(row['entries'])} entries"
        for row in rows.to_dict("records")
    ]
    return "\n".join(lines)


def _apart(layers: int) -> str:
    names = {0: "within a layer", 1: "1 layer apart"}
    return names.get(layers, f"{layers} layers apart")


def _reach(files: InspectionFiles, reach: pd.DataFrame) -> str:
    """A table of how far the models of the loss along each group hold."""
    columns = {"group": "group", **{f"holds_{order}": f"order {order}" for order in files.orders}}
    shown = reach[list(columns)].rename(columns=columns)
    shown.insert(1, "η cubic", files.groups["rate_cubic"])
    table = shown.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.3g}")
    beyond = [
        f"{int((reach[f'holds_{order}'] == reach['end']).sum())} of order {order}" for order in files.orders
    ]
    return (
        "the largest rate up to which the Taylor model of the loss along the group is within 10 % of the "
        f"change:\n{table}\nup to the end of the grid, four times the rate: {', '.join(beyond)}"
    )
