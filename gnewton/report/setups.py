"""Set-ups: runs that differ in nothing but the seed, and labels that distinguish set-ups."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gnewton.report.hardware import conditions, differences
from gnewton.report.runs import Run
from gnewton.runfiles import BROKEN, ENDED

IGNORED = (
    "seed",
    "output_root",
    "resume",
    "imports",
    "data.root",
    "trainer.progress",
    "trainer.checkpoint_every",
    "trainer.divergence",
)
"""Options in which the runs of a set-up may differ: seed, places of files, reporting, divergence check."""

MAPPINGS = ("optimizer.rates",)
"""Options whose value is a mapping, which counts as one value."""

PROBLEM = ("model", "data")
"""Parts of the configuration that define the problem; the others define the solver."""

_LAST = ("name", "hardware")  # used in labels only if no other option distinguishes the set-ups


@dataclass
class Setup:
    """Runs of one configuration over seeds.

    Attributes:
        options: the configuration by dotted names, without the options in :data:`IGNORED`.
        runs: one per seed, sorted by seed.
        label: the shortest text that distinguishes it from the other set-ups.
        problem: the same for the problem; set-ups of one problem can be compared.
        solver: the same for the solver; a method has the same one on several problems.
    """

    options: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    label: str = ""
    problem: str = ""
    solver: str = ""

    @property
    def optimizer(self) -> str:
        """Name of the optimizer."""
        return str(self.options.get("optimizer.name", "?"))

    @property
    def last_step(self) -> float:
        """The largest step in the rows of its runs; 0 if there are no rows."""
        return max(float(run.metrics["step"].max()) if len(run.metrics) else 0.0 for run in self.runs)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted names. A list is one value; a mapping becomes its length and a digest."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name in MAPPINGS:
            digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:4]
            flat[name] = f"{len(value)} of {digest}"
        elif isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def group_runs(runs: Iterable[Run]) -> tuple[list[Setup], list[str]]:
    """Group the runs into set-ups with labels.

    Of several runs of a set-up with the same seed one counts: the latest that ended, else the latest.

    Returns:
        the set-ups, sorted by problem and label, and a line for each seed with several runs.
    """
    runs = list(runs)
    mixed = differences(runs)
    setups: dict[str, Setup] = {}
    files: dict[str, Any] = {}
    for run in runs:
        options = {key: value for key, value in flatten(run.config).items() if _counts(key, value)}
        digest = run.environment.get("data_digest")
        if digest is not None and "data.path" in options:  # the same data, whatever their path
            options["data.path"] = files.setdefault(str(digest), options["data.path"])
        if mixed:
            parts = conditions(run)
            options["hardware"] = ", ".join(parts[key] for key in mixed if key in parts)
        setups.setdefault(identity(options), Setup(options)).runs.append(run)
    ordered = list(setups.values())
    _label_all(ordered)
    ordered.sort(key=lambda setup: (setup.problem, _natural(setup.label)))
    notes = [note for setup in ordered for note in _one_run_per_seed(setup)]
    return ordered, notes


def _natural(label: str) -> list[tuple[float, str]]:
    """A sort key by which lr=2 comes before lr=10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", label)
    return [(float(part), "") if position % 2 else (math.inf, part) for position, part in enumerate(parts)]


def identity(options: dict[str, Any]) -> str:
    """A text that is equal for equal options, whatever their order.

    An option with the value None counts as missing, as in runs of a version that did not have it yet.
    """
    return json.dumps(
        {key: _show(value) for key, value in options.items() if value is not None}, sort_keys=True
    )


def _counts(key: str, value: Any) -> bool:
    """Whether an option tells set-ups apart; an empty list of a solver is as good as none."""
    part = key.split(".")[0]
    return key not in IGNORED and part != "logger" and (value != [] or part in PROBLEM)


def _one_run_per_seed(setup: Setup) -> list[str]:
    seeds: dict[int, list[Run]] = {}
    for run in setup.runs:
        seeds.setdefault(run.seed, []).append(run)
    notes, kept = [], []
    for seed, same in sorted(seeds.items()):
        in_time = sorted(same, key=lambda run: run.folder.name)  # folders are named by their start
        ended = [run for run in in_time if run.status in (*ENDED, *BROKEN)]
        chosen = (ended or in_time)[-1]
        kept.append(chosen)
        if len(same) > 1:
            counts = Counter(run.status for run in same)
            statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
            notes.append(
                f"{setup.label}, seed {seed}: {len(same)} runs ({statuses}); {chosen.folder.name} counts"
            )
    setup.runs = kept
    return notes


def _label_all(setups: list[Setup]) -> None:
    """Set the label, the problem and the solver of every set-up."""
    problems = [_part(setup, lambda key: key.split(".")[0] in PROBLEM) for setup in setups]
    labels = distinguish(problems, always=("model.name", "data.name"))
    for setup, label in zip(setups, labels, strict=True):
        setup.problem = label
    several = len({setup.problem for setup in setups}) > 1
    for problem in dict.fromkeys(setup.problem for setup in setups):
        of_problem = [setup for setup in setups if setup.problem == problem]
        options = [_part(setup, lambda key: key.split(".")[0] not in PROBLEM) for setup in of_problem]
        for setup, solver in zip(of_problem, distinguish(options, always=("optimizer.name",)), strict=True):
            setup.solver = solver
            setup.label = f"{problem}: {solver}" if several else solver
    _same_name_on_all_problems(setups)
    _number_equal_labels(setups)


def _number_equal_labels(setups: Sequence[Setup]) -> None:
    """Number the labels of set-ups that are equal although their options differ, as with spaces in values."""
    counts: Counter[str] = Counter()
    for setup in setups:
        counts[setup.label] += 1
        if counts[setup.label] > 1:
            number = f" #{counts[setup.label]}"
            setup.label, setup.solver = setup.label + number, setup.solver + number


def _same_name_on_all_problems(setups: list[Setup]) -> None:
    """Name a solver by its optimizer alone if that is unambiguous on every problem."""
    counts = Counter((setup.problem, setup.optimizer) for setup in setups)
    for name in {setup.optimizer for setup in setups}:
        if all(count == 1 for (_, optimizer), count in counts.items() if optimizer == name):
            for setup in setups:
                if setup.optimizer == name:
                    setup.solver = name


def _part(setup: Setup, selects: Callable[[str], bool]) -> dict[str, Any]:
    return {key: value for key, value in setup.options.items() if selects(key)}


def distinguish(options: Sequence[dict[str, Any]], always: tuple[str, ...] = ()) -> list[str]:
    """A short text for each entry; different entries have different texts.

    The values of ``always`` come first. Entries that agree in them are distinguished by the option with the
    most values among them, and so on, so that each text names only the options it needs.
    """
    chosen: list[list[str]] = [[] for _ in options]
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, entry in enumerate(options):
        groups.setdefault(tuple(_show(entry.get(key)) for key in always), []).append(index)
    pending = list(groups.values())
    while pending:
        members = pending.pop()
        key = _best_key([options[index] for index in members], always)
        if key is None:
            continue
        parts: dict[str, list[int]] = {}
        for index in members:
            parts.setdefault(_show(options[index].get(key)), []).append(index)
            chosen[index].append(key)
        pending.extend(parts.values())
    used = {key for keys in chosen for key in keys}
    names = _short_names(used)
    values = {key: _short_values([entry.get(key) for entry in options]) for key in used}
    return [
        " ".join(
            [
                " ".join(_show(entry.get(key)) for key in always),
                *(
                    f"{names[key]}={values[key][_show(entry.get(key))]}"
                    for key in keys
                    if entry.get(key) is not None
                ),
            ]
        ).strip()
        for entry, keys in zip(options, chosen, strict=True)
    ]


def _best_key(entries: list[dict[str, Any]], always: tuple[str, ...]) -> str | None:
    """The option that splits the entries into most parts; None if the entries are equal."""
    keys = list(dict.fromkeys(key for entry in entries for key in entry if key not in always))
    best, most = None, (-1, 0, 0, 0, 0)
    for position, key in enumerate(keys):
        different = len({_show(entry.get(key)) for entry in entries})
        rank = (
            int(key not in _LAST),
            different,
            int(all(key in entry for entry in entries)),
            int(key.endswith(".name")) - key.count("."),  # a choice implies the options that come with it
            -position,
        )
        if different > 1 and rank > most:
            best, most = key, rank
    return best


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last word of each dotted name, or the whole name if ambiguous; a choice bears that of its group."""
    full = {key: key.removesuffix(".name") if "." in key else key for key in keys}
    counts = Counter(name.rpartition(".")[2] for name in full.values())
    return {
        key: name if counts[name.rpartition(".")[2]] > 1 else name.rpartition(".")[2]
        for key, name in full.items()
    }


def _short_values(values: Iterable[Any]) -> dict[str, str]:
    """Numbers with six digits if these distinguish them: 0.3 rather than 0.30000000000000004."""
    shown = {_show(value): f"{value:g}" if isinstance(value, float) else _show(value) for value in values}
    counts = Counter(shown.values())
    return {exact: short if counts[short] == 1 else exact for exact, short in shown.items()}


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_show, value)) + "]"
    return " ".join(str(value).split())  # a table cell cannot hold a line break
