"""The loss around the present weights of a model of one's own: :func:`inspect`, as on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor, nn

from gnewton.arguments import check_number, check_whole, explained
from gnewton.errors import InputError
from gnewton.inspection.loss_along import LOWEST_ORDER
from gnewton.inspection.measurement import mean_gradient
from gnewton.inspection.point_inspection import Inspection, inspect_point, inspection_files
from gnewton.interactive.user_parts import (
    LoaderBatches,
    OptimizerChoice,
    device_of,
    optimizer_direction,
    undisturbed,
)
from gnewton.optim.bound_optimizer import Batch
from gnewton.partition import PartitionChoice, chosen_partition
from gnewton.report.inspection_report import RATES, InspectionFiles, describe_inspection, parse_inspection
from gnewton.summary.api import EngineName
from gnewton.summary.problem import Forward, LossFunction, Problem, check_loss
from gnewton.summary.taylor.derivatives import HIGHEST
from gnewton.wrappers import unwrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class LossInspection:
    """The gradient, Hessian and third derivative of the loss along a partition, as tables and figures.

    Attributes:
        inspection: the arrays.
    """

    inspection: Inspection
    _about: Mapping[str, Any]

    @property
    def groups(self) -> pd.DataFrame:
        """Layer, size, derivatives and rates of each group: the columns of groups.csv (docs/inspect.md)."""
        return self._tables().groups.set_index("group")

    @property
    def rates(self) -> pd.DataFrame:
        """The rates of each group: with the cubic term, without it, and of each group alone."""
        return self.groups[[f"rate_{rule}" for rule in RATES]].rename(columns=lambda name: name[5:])

    @property
    def hessian(self) -> pd.DataFrame:
        """H̄, with the names of the groups."""
        return self._named(self._tables().hessian)

    @property
    def scaled_hessian(self) -> pd.DataFrame:
        """H̄_st / √|H̄_ss H̄_tt|, with the names of the groups."""
        return self._named(self._tables().scaled)

    @property
    def spectrum(self) -> pd.DataFrame:
        """Ascending eigenvalues of H̄ along unit directions (``per_length``) and of the ``scaled`` H̄."""
        return self._tables().spectrum.set_index("index")

    @property
    def distances(self) -> pd.DataFrame:
        """The mass of H̄ off its diagonal, by the number of layers between the groups."""
        return self._tables().distances.set_index("layers")

    @property
    def along(self) -> pd.DataFrame:
        """The loss along each group and its Taylor models on a grid of rates: the columns of along.csv.

        Raises:
            InputError: if the inspection was made without ``order``.
        """
        return self._measured_along(self._tables().along)

    @property
    def reach(self) -> pd.DataFrame:
        """How far each Taylor model of the loss along a group holds, and the derivatives in the rate.

        Raises:
            InputError: if the inspection was made without ``order``.
        """
        return self._measured_along(self._tables().reach).set_index("group")

    def plot_along(self) -> Figure | None:
        """The loss along each group beside its Taylor models; None where nothing moves it.

        Raises:
            InputError: if the inspection was made without ``order``.
        """
        from gnewton.report.plots.loss_along_plots import along_figure

        tables = self._tables()
        self._measured_along(tables.along)
        return along_figure(tables)

    def heat_map(self) -> Figure:
        """H̄ on a signed logarithmic scale, and the scaled H̄."""
        from gnewton.report.plots.inspection_plots import hessian_figure

        return hessian_figure(self._tables())

    def plot_rates(self) -> Figure:
        """The rates of each group by the three rules."""
        from gnewton.report.plots.inspection_plots import rates_figure

        return rates_figure(self._tables())

    def plot_spectrum(self) -> Figure:
        """The eigenvalues of H̄ and of the scaled H̄."""
        from gnewton.report.plots.inspection_plots import spectrum_figure

        return spectrum_figure(self._tables())

    def plot_distances(self) -> Figure | None:
        """The mass off the diagonal by the distance between layers; None for a single group."""
        from gnewton.report.plots.inspection_plots import distances_figure

        return distances_figure(self._tables())

    def save(self, folder: str | Path) -> list[Path]:
        """Write the files and plots of ``gnewton inspect`` and return their paths.

        Raises:
            InputError: if the folder cannot be written.
        """
        from gnewton.report.comparison import write_file
        from gnewton.report.plots.inspection_plots import write_inspection_plots

        folder = Path(folder)
        files = inspection_files(self.inspection, self._about)
        written = [write_file(folder / name, content) for name, content in files.items()]
        return [*written, *write_inspection_plots(self._tables(), folder)]

    def __repr__(self) -> str:
        return describe_inspection(self._tables())

    def _repr_html_(self) -> str:
        from gnewton.report.plots.style import fragment

        figures = [self.heat_map(), self.plot_rates(), self.plot_spectrum()]
        if self.inspection.along is not None and (along := self.plot_along()) is not None:
            figures.append(along)
        title = f"{self._about['title']}: loss {self.inspection.loss:.6g}"
        return fragment(title, self.groups, figures)

    def _tables(self) -> InspectionFiles:
        return parse_inspection(inspection_files(self.inspection, self._about))

    @staticmethod
    def _measured_along(table: pd.DataFrame | None) -> pd.DataFrame:
        if table is None:
            raise InputError("inspect: the loss along the groups was not measured; pass order=3 … 8")
        return table

    def _named(self, values: Any) -> pd.DataFrame:
        names = list(self.inspection.partition.names)
        return pd.DataFrame(values, index=pd.Index(names, name="group"), columns=names)


@explained(
    loss_fn="pass the function of (outputs, targets), such as torch.nn.functional.cross_entropy",
    loader="any iterable of batches (inputs, targets)",
)
def inspect(
    model: nn.Module,
    loss_fn: LossFunction,
    loader: Iterable[Any],
    partition: PartitionChoice = None,
    *,
    batches: int | None = 10,
    direction: Mapping[str, Tensor] | OptimizerChoice | None = None,
    internal_damping: float = 1.0,
    forward: Forward | None = None,
    engine: EngineName = "auto",
    max_memory: int | None = None,
    matrix: str = "hessian",
    order: int | None = None,
) -> LossInspection:
    """The loss around the present weights, along a partition (docs/inspect.md).

    The model is the same afterwards: parameters, buffers, ``.grad``, training mode and random streams. It is
    measured in the mode in which it is.

    Args:
        model, loss_fn, forward, engine, max_memory: as for :class:`~gnewton.summary.Summarizer`.
        loader: any iterable of batches (inputs, targets), or of any batches with ``forward``; they are moved
            to the model's device.
        partition: the groups; one per parameter tensor by default.
        batches: number of batches, kept in memory, whose mean loss is inspected; None: all of one pass.
        direction: u: None for the gradient of these batches, tensors by parameter name, or an optimizer of
            the model (also a name or a function that builds one), whose next step with this gradient is u.
        internal_damping: λ_int >= 0 of the rates with the cubic term.
        matrix: "hessian", or "gauss_newton" or "fisher" in its place (:func:`gnewton.summarize`).
        order: 3 … 8 for the loss along each group on a grid of rates and its Taylor models of order 2, 3 and
            ``order`` (``along``, ``reach``, ``plot_along()``), which takes 35 forward passes per group.

    Raises:
        InputError: for an argument out of range, or a loader without batches.
    """
    model = unwrapped(model)
    check_loss(loss_fn)
    if batches is not None:
        check_whole("batches", batches, 1)
    check_number("internal_damping", internal_damping, at_least=0)
    if order is not None:
        check_whole("order", order, LOWEST_ORDER, HIGHEST)
    groups = chosen_partition(model, partition)
    source = LoaderBatches(loader, device_of(model), whole=forward is not None)
    with undisturbed(model, loss_fn, groups, forward):
        samples = list(islice(source.once(), batches))
        if not samples:
            raise InputError("loader: it holds no batch")
        u, decay, label = _direction(Problem(model, loss_fn, groups, forward), direction, samples)
        inspection = inspect_point(
            model,
            loss_fn,
            groups,
            lambda: samples,
            u,
            internal_damping=internal_damping,
            decay=decay,
            forward=forward,
            engine=engine,
            max_memory=max_memory,
            matrix=matrix,
            order=order,
        )
    name = type(model).__name__
    plural = "es" if inspection.batches > 1 else ""
    count = f"{inspection.batches} batch{plural}, {inspection.samples:,} samples"
    about = {
        "title": f"{name} on {count}",
        "point": f"{name}, present weights",
        "model": name,
        "matrix": matrix,
        "direction": label,
        "taken_on": count,
        "mode": "training" if model.training else "evaluation",
    }
    return LossInspection(inspection, about)


def _direction(
    problem: Problem, choice: Mapping[str, Tensor] | OptimizerChoice | None, batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], dict[str, float], str]:
    """u and the weight decay of the loss by parameter name, and what u is called."""
    if isinstance(choice, Mapping):
        return problem.check_direction(choice), {}, "given"
    if choice is None:
        return mean_gradient(problem.model, problem.loss_fn, batches, problem.forward), {}, "gradient"
    optimizer = optimizer_direction(problem.model, choice)  # first: it may watch the model
    try:
        mean_gradient(problem.model, problem.loss_fn, batches, problem.forward)
        u = {name: step.clone() for name, step in optimizer.advance().items()}
        return u, optimizer.decay(), choice if isinstance(choice, str) else "step of the optimizer"
    finally:
        optimizer.close()
