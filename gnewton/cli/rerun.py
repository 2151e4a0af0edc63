"""``gnewton rerun``: repeat a run, and compare the result with the first."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gnewton.cli.commands import Parser, path
from gnewton.errors import Diverged, GnewtonError, InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

THREADS = "OMP_NUM_THREADS"


class NotReproduced(GnewtonError):
    """A repeated run gave other results; the report says where."""

    exit_code = 5


def run(arguments: list[str]) -> int:
    """``gnewton rerun DIR``; returns 0 if the metrics are reproduced, and raises otherwise."""
    options = _parser().parse_intermixed_args(arguments)
    from gnewton.report.runs import read_run

    folder: Path = options.folder
    config = _configuration(folder, options.overrides)
    if options.output_root is not None:
        config.output_root = str(options.output_root)
    first = read_run(folder)
    if first.trained.empty and first.status != "diverged":
        raise InputError(f"rerun {folder}: it has no row in metrics.csv to compare with")
    threads = first.environment.get("threads")
    if isinstance(threads, int):
        os.environ.setdefault(THREADS, str(threads))  # before torch is loaded
    again = _train(config, ["gnewton", "rerun", *arguments])
    return 0 if again is None else _report(folder, again, options.tolerance)


def _configuration(folder: Path, words: list[str]) -> DictConfig:
    """The configuration of the run, with its data where they are now."""
    from gnewton.cli.composer import Composer, with_choices_of
    from gnewton.experiment.overrides import parse_overrides
    from gnewton.experiment.places import require_places
    from gnewton.experiment.resume import changed, saved_config

    request = f"rerun {folder}"
    overrides = parse_overrides(words)
    if not overrides:
        config = saved_config(folder, request)
        require_places(config, request)
        return config
    chosen = Composer().compose(with_choices_of(folder, overrides))
    return changed(folder, chosen, overrides, (), request)


def _train(config: DictConfig, command: list[str]) -> Path | None:
    """Train; returns the new run folder, or None in a process that writes none."""
    import logging

    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run as run_experiment

    root = Path(config.output_root) / config.name
    before = set(root.iterdir()) if root.is_dir() else set()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return run_experiment(prepare(config), command).folder
    except Diverged as error:  # as the first run may have
        print(f"gnewton: {error}", file=sys.stderr)
        new = [folder for folder in root.iterdir() if folder not in before]
        return max(new, key=lambda folder: folder.name, default=None)


def _report(folder: Path, again: Path, tolerance: float) -> int:
    from gnewton.report.reproduction import compare_logs, environment_differences
    from gnewton.report.runs import read_run
    from gnewton.runfiles import BROKEN, ENDED

    first, second = read_run(folder), read_run(again)
    print(f"{folder}\n  once more: {again}")
    differences = environment_differences(first, second)
    print("\n".join(["environment:", *(f"  {line}" for line in differences or ["the same"])]))
    logs = compare_logs(first, second, tolerance)
    print("\n".join(line for log in logs for line in log.lines()))
    ends = [" ".join([run.status, str(run.result.get("message", ""))]).strip() for run in (first, second)]
    ended_alike = first.status not in (*ENDED, *BROKEN) or ends[0] == ends[1]
    if not ended_alike:
        print(f"end: {ends[0]} → {ends[1]}")
    if not (ended_alike and all(log.same for log in logs)):
        raise NotReproduced(f"not reproduced: {again} differs from {folder}")
    within = f" within {tolerance:g} of each value" if tolerance else ": every value is the same"
    rest = "" if first.status in ENDED else f", as far as that run ({first.status}) came"
    print(f"reproduced{within}{rest}")
    return 0


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number >= 0 and < 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gnewton rerun",
        description="Repeat a run with the same configuration and seed in a new folder, and compare "
        "metrics.csv and rates.csv with those of the first, column by column, without clocks and memory.",
        epilog="The number of CPU threads is that of the first run unless OMP_NUM_THREADS is set; with it "
        "the same CPU gives the same bits. Exit codes: 0 reproduced, 5 not reproduced, 2 bad input.",
    )
    parser.add_argument("folder", type=path, metavar="DIR", help="the folder of a run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="OPTION=VALUE",
        help="where the data are now: data.path=, data.root=",
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=0.0,
        metavar="SHARE",
        help="numbers count as the same up to this share of the larger one (default: to the last bit)",
    )
    parser.add_argument(
        "--output-root",
        type=path,
        metavar="FOLDER",
        help="where the new run folder is made (default: as before)",
    )
    return parser
