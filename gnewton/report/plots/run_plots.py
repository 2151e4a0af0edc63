"""The plots of a single run, for the services that it reports to."""

from __future__ import annotations

from pathlib import Path

from gnewton.report.plots.style import save
from gnewton.report.plots.training_plots import rates_figure
from gnewton.report.runs import read_run
from gnewton.report.setups import Setup


def write_run_plots(folder: Path, place: Path) -> dict[str, Path]:
    """Draw the learning rates of all groups against the training steps.

    Args:
        folder: the run folder.
        place: a folder for the files.

    Returns:
        the PNG files by name: ``plots/rates``, or nothing for an optimizer without rates of groups.

    Raises:
        InputError: if a file of the run cannot be read, or the plots cannot be written.
    """
    plot = rates_figure(Setup({}, [read_run(folder)], label=folder.parent.name))
    if plot is None:
        return {}
    png, _ = save(plot, place / "rates")
    return {"plots/rates": png}
