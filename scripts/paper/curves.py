"""Training curves: the paper's optimizer against tuned rivals, by epochs and by seconds."""

from __future__ import annotations

from scripts.paper.record import FigureFiles
from scripts.paper.runs import Workshop
from scripts.paper.settings import PaperSettings
from scripts.paper.training_loss import curve_table, end_table, loss_figure
from scripts.study.results import choose


def curves(settings: PaperSettings, workshop: Workshop) -> FigureFiles:
    """Search the rates of the tuned methods on one seed, then train every method on fresh seeds."""
    plan = settings.curves
    searched = workshop.run(plan.search())
    finals = workshop.run(plan.final(choose(searched)))
    lines = curve_table(finals)
    return FigureFiles(
        tables={"curves": lines, "ends": end_table(finals, plan.reference)},
        images={task: loss_figure(lines[lines["task"] == task], task) for task in plan.tasks},
        outcomes=[*searched, *finals],
    )
