"""H̄ and the rates of the groups, at the initial weights and along training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from gnewton.data import Batch
from gnewton.experiment.build import Point, open_point
from gnewton.inspection.measurement import mean_gradient
from gnewton.inspection.point_inspection import inspect_point, inspection_files
from gnewton.report.inspection_report import InspectionFiles, parse_inspection
from gnewton.report.plots.inspection_plots import hessian_figure
from gnewton.report.plots.inspection_plots import rates_figure as point_rates_figure
from gnewton.report.plots.training_plots import rates_figure as training_rates_figure
from gnewton.report.setups import group_runs
from scripts.paper.record import FigureFiles
from scripts.paper.runs import Workshop, composed, last_checkpoint
from scripts.paper.settings import PAPER, PaperSettings

PIECE = 1000
"""Samples that go through the model at once."""


def matrices(settings: PaperSettings, workshop: Workshop) -> FigureFiles:
    """Inspect each set-up at its start and after each stage, and show the rates of the longest run.

    A stage is a run of its own: with one seed, a shorter run is the beginning of a longer one.
    """
    seed = settings.curves.seeds[0]
    files = FigureFiles()
    groups, entries, masses, rates = [], [], [], []
    for name, task in settings.matrices.items():
        whole = settings.trial(name, PAPER, "", seed, (*task, f"optimizer={PAPER}"))
        stages = [replace(whole, overrides=(*whole.overrides, *_length(n))) for n in settings.stages[name]]
        outcomes = workshop.run(stages) if stages else []
        files.outcomes += outcomes
        config = composed(whole.overrides)
        ends = [path for outcome in outcomes if (path := last_checkpoint(outcome)) is not None]
        for checkpoint in (None, *ends):  # the table of runs has those that came to no end
            inspection = _inspected(open_point(config, checkpoint), settings.samples[name])
            steps = inspection.about["step"]
            about = {"task": name, "step": steps}
            groups.append(inspection.groups.assign(**about, loss=inspection.about["loss"]))
            masses.append(inspection.distances.assign(**about))
            entries.append(_entries(inspection).assign(**about))
            files.images[f"{name}_matrix_step{steps}"] = hessian_figure(inspection)
            files.images[f"{name}_rates_step{steps}"] = point_rates_figure(inspection)
        longest = outcomes[-1].run if outcomes else None
        if longest is not None and longest.rates is not None:
            plot = training_rates_figure(group_runs([longest])[0][0])
            if plot is not None:
                files.images[f"{name}_rates_training"] = plot
            table = longest.rates.table.rename_axis("step").reset_index()
            rates.append(table.melt("step", var_name="group", value_name="rate").assign(task=name))
    files.tables = {
        "groups": _joined(groups),
        "matrix": _joined(entries),
        "distances": _joined(masses),
        **({"rates": _joined(rates)} if rates else {}),
    }
    return files


def _length(steps: int | None) -> tuple[str, ...]:
    return () if steps is None else (f"trainer.max_steps={steps}",)


def _inspected(point: Point, samples: int) -> InspectionFiles:
    """H̄ along the gradient, both over the first ``samples`` training samples."""

    def batches() -> Iterator[Batch]:
        return point.data.train.in_order(PIECE, samples)

    direction = mean_gradient(point.model, point.problem.loss_fn, batches())
    damping = getattr(point.settings.optimizer, "internal_damping", 1.0)
    inspection = inspect_point(
        point.model,
        point.problem.loss_fn,
        point.partition,
        batches,
        direction,
        internal_damping=damping,
    )
    s = point.settings
    about = {"model": s.model.name, "data": s.data.name, "step": point.step, "direction": "gradient"}
    return parse_inspection(inspection_files(inspection, about))


def _entries(files: InspectionFiles) -> pd.DataFrame:
    """The entries of H̄ and of the scaled H̄, one row each."""
    pairs = pd.MultiIndex.from_product([files.names, files.names], names=["row", "column"]).to_frame(
        index=False
    )
    return pairs.assign(hessian=files.hessian.ravel(), scaled=files.scaled.ravel())


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One table, with the columns that say where a row is from in front."""
    joined = pd.concat(tables, ignore_index=True)
    front = [name for name in ("task", "step") if name in joined]
    return joined[[*front, *(name for name in joined if name not in front)]]
