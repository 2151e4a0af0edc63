"""A comparison: the runs below some folders, grouped into set-ups, checked and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from gnewton.errors import InputError
from gnewton.options import listing
from gnewton.report.hardware import describe, differences, require_same
from gnewton.report.measures import SPREAD_FROM, MetricTarget, flat_table, table_of_runs, table_of_setups
from gnewton.report.runs import Run, find_runs
from gnewton.report.setups import Setup, group_runs
from gnewton.report.significance import notes_on_means, table_of_means, tables_of_means
from gnewton.report.tables import Table, as_markdown, build_tables
from gnewton.runfiles import ENDED


@dataclass(frozen=True)
class Comparison:
    """The set-ups of a comparison and their measures.

    Attributes:
        setups: sorted by problem and label, each with its runs.
        targets: the target of each set-up by label; None for a set-up without one.
        runs: one row per run, see :func:`gnewton.report.measures.table_of_runs`.
        table: one row per set-up, see :func:`gnewton.report.measures.table_of_setups`.
        means: one row per metric and set-up, see :func:`gnewton.report.significance.table_of_means`.
        hardware: a line about the hardware of the runs.
        notes: remarks for the reader, a line each.
    """

    setups: list[Setup]
    targets: dict[str, MetricTarget | None]
    runs: pd.DataFrame = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    means: pd.DataFrame = field(repr=False)
    hardware: str
    notes: list[str]

    @property
    def problems(self) -> list[str]:
        """The problems, each once, in order."""
        return list(dict.fromkeys(setup.problem for setup in self.setups))

    def of_problem(self, problem: str) -> list[Setup]:
        """The set-ups that solve ``problem``."""
        return [setup for setup in self.setups if setup.problem == problem]

    def tables(self) -> list[Table]:
        """The tables of the comparison, as text."""
        return [*build_tables(self.table), *tables_of_means(self.means)]


def compare(
    folders: Sequence[Path], *, target: MetricTarget | None = None, mixed_hardware: bool = False
) -> Comparison:
    """Compare all runs in or below ``folders``.

    Args:
        folders: run folders, or folders that contain run folders.
        target: the target of all set-ups; None: the target in the configuration of each, if any.
        mixed_hardware: allow different hardware and number formats for one problem; each combination is then
            a set-up of its own.

    Raises:
        InputError: if there is no run, the hardware differs, or no run measured the metric of the target.
    """
    all_runs, notes = find_runs(folders)
    setups, superseded = group_runs(all_runs)
    problems = _runs_by_problem(setups)
    if not mixed_hardware:
        for runs_of_problem in problems:
            require_same(runs_of_problem)
    targets = {setup.label: target or MetricTarget.of(setup) for setup in setups}
    runs = table_of_runs(setups, targets)
    if target is not None and runs["target_seconds"].isna().all():
        raise InputError(f"--target {target.metric}={target.value:g}: no run has measured {target.metric}")
    notes += [*superseded, *_notes(setups, targets, runs)]
    if mixed_hardware and any(differences(runs_of_problem) for runs_of_problem in problems):
        notes.append(
            "the runs differ in hardware or number format: their times mean little beside each other"
        )
    table, means = table_of_setups(setups, runs, targets), table_of_means(runs)
    notes += notes_on_means(means)
    counted = [run for runs_of_problem in problems for run in runs_of_problem]
    return Comparison(setups, targets, runs, table, means, describe(counted), notes)


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Write runs.csv, setups.csv, means.csv and tables.md and return their paths.

    Raises:
        InputError: if the folder cannot be written.
    """
    contents = {
        "runs.csv": comparison.runs.to_csv(index=False),
        "setups.csv": flat_table(comparison.table).to_csv(index=False),
        "means.csv": comparison.means.to_csv(index=False),
        "tables.md": markdown_page(comparison),
    }
    return [write_file(folder / name, text) for name, text in contents.items()]


def markdown_page(comparison: Comparison) -> str:
    """The tables, the hardware and the notes as Markdown."""
    notes = "\n".join(f"- {note}" for note in comparison.notes)
    return (
        f"# Comparison\n\n{comparison.hardware}.\n\n{as_markdown(comparison.tables())}\n\n"
        f"## Notes\n\n{notes}\n"
    )


def write_file(path: Path, content: str | bytes) -> Path:
    """Write a file of a report; its folder is created if necessary.

    Raises:
        InputError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def _runs_by_problem(setups: Sequence[Setup]) -> list[list[Run]]:
    """The runs of each problem whose times are compared: all but those killed before they began."""
    problems: dict[str, list[Run]] = {}
    for setup in setups:
        with_times = [run for run in setup.runs if len(run.metrics) or run.environment]
        problems.setdefault(setup.problem, []).extend(with_times)
    return [sorted(runs, key=lambda run: run.folder) for runs in problems.values()]


def _notes(setups: Sequence[Setup], targets: dict[str, MetricTarget | None], runs: pd.DataFrame) -> list[str]:
    most = max(len(setup.runs) for setup in setups)
    notes = []
    if most > 1:
        notes.append(
            "values are medians over the seeds, with the quartiles (fewer than "
            f"{SPREAD_FROM} runs: the range) in brackets"
        )
    if most < 2:
        notes.append("one seed each: nothing here tells a difference from chance")
    ends = runs[runs["status"].isin(ENDED)].groupby("problem")["epochs"].nunique()
    if (ends > 1).any():
        notes.append(
            "the runs ended after different numbers of epochs: mind that column beside the end values"
        )
    counts = {len(setup.runs) for setup in setups}
    if len(counts) > 1:
        notes.append(f"the set-ups have different numbers of runs ({min(counts)} to {max(counts)})")
    if not runs["status"].isin(ENDED).all():
        notes.append(
            "a run that diverged or failed counts as infinitely bad at its end; "
            "a run that did not finish has no end value; each counts as a miss if it did not reach the target"
        )
    unmeasured = runs[runs["target_seconds"].isna() & runs["setup"].map(lambda label: bool(targets[label]))]
    if len(unmeasured):
        names = listing(list(dict.fromkeys(unmeasured["setup"])))
        notes.append(f"{names}: the metric of the target was not measured")
    if any(run.environment.get("device") == "cpu" for setup in setups for run in setup.runs):
        notes.append("peak memory on the CPU is that of the whole process, with whatever it ran before")
    if not any(targets.values()):
        notes.append("no target is set: --target metric=value adds what it takes to reach one")
    else:
        notes.append("a target counts as reached at the first evaluation that shows it")
    return notes
