"""What the parts of the method do: H̄ against its diagonal, the cubic term against none, partitions."""

from __future__ import annotations

from scripts.paper.record import FigureFiles
from scripts.paper.runs import Workshop
from scripts.paper.settings import PAPER, PaperSettings
from scripts.paper.training_loss import curve_table, end_table, loss_figure


def ablations(settings: PaperSettings, workshop: Workshop) -> FigureFiles:
    """Train with the author's settings and with one of them changed at a time."""
    name = settings.ablation_task[0].partition("=")[2]
    variants = {PAPER: (), **settings.ablations}
    trials = [
        settings.trial(name, variant, "", seed, (*settings.ablation_task, f"optimizer={PAPER}", *overrides))
        for seed in settings.ablation_seeds
        for variant, overrides in variants.items()
    ]
    outcomes = workshop.run(trials)
    lines = curve_table(outcomes)
    return FigureFiles(
        tables={"curves": lines, "ends": end_table(outcomes, PAPER)},
        images={"loss": loss_figure(lines, f"{name}: one setting changed")},
        outcomes=outcomes,
    )
