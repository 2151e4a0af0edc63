"""Make a figure of the paper, or all of them; runs that have been made already are not made again.

The runs of all figures are one sweep: what an interrupted figure has left open is run first by the next one.

python -m scripts.paper matrices|curves|ablations|rescaling|costs|all [--quick] [--out FOLDER] [--jobs 2]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from gnewton.errors import GnewtonError
from gnewton.experiment.build import choose_device
from scripts.paper.ablations import ablations
from scripts.paper.costs import costs
from scripts.paper.curves import curves
from scripts.paper.matrices import matrices
from scripts.paper.record import FigureFiles
from scripts.paper.rescaling import rescaling
from scripts.paper.runs import InProcessWorkshop, Workshop
from scripts.paper.settings import PaperSettings

FIGURES: dict[str, Callable[[PaperSettings, Workshop], FigureFiles]] = {
    "matrices": matrices,
    "curves": curves,
    "ablations": ablations,
    "rescaling": rescaling,
    "costs": costs,
}


def main() -> int:
    """Write each figure into a folder of its own."""
    parser = argparse.ArgumentParser(prog="python -m scripts.paper", description=__doc__)
    parser.add_argument("figure", choices=(*FIGURES, "all"))
    parser.add_argument("--quick", action="store_true", help="short runs: two cores, under an hour")
    parser.add_argument("--out", type=Path, help="default: outputs/paper/quick or outputs/paper/full")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; for times that compare: 1")
    parser.add_argument("--in-process", action="store_true", help="start no process for a run")
    options = parser.parse_args()
    form = "quick" if options.quick else "full"
    place = Path("outputs/paper") / form
    folder = (place / "runs").resolve()
    workshop = (
        InProcessWorkshop(folder)
        if options.in_process
        else Workshop(folder, (f"launcher.jobs={options.jobs}",))
    )
    out = options.out or place
    try:
        settings = PaperSettings.read(form)
        for name in FIGURES if options.figure == "all" else [options.figure]:
            command = ["python", "-m", "scripts.paper", name, *(["--quick"] if options.quick else [])]
            files = FIGURES[name](settings, workshop)
            written = files.write(out / name, command, choose_device("auto"))
            print(f"{len(written)} files in {out / name}", flush=True)
    except GnewtonError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
