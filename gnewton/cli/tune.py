"""``gnewton tune``: a search for good settings with the same budget for every optimizer."""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gnewton.cli.choices import COMMAND_GROUPS
from gnewton.cli.commands import Parser
from gnewton.cli.sweep import (
    add_options,
    check_unchanged,
    describe_sweep,
    make_folder,
    make_orders,
    print_options,
    resumed_composer,
    show_jobs,
)
from gnewton.errors import InputError
from gnewton.options import user_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gnewton.cli.composer import Composed, Composer
    from gnewton.experiment.overrides import Override
    from gnewton.tuning.search import Contestant, Search
    from gnewton.tuning.space import SpaceSettings

GROUPS = tuple(COMMAND_GROUPS)

_FIXED = tuple(group for group in GROUPS if COMMAND_GROUPS[group].fixed)


def run(arguments: list[str]) -> int:
    """``gnewton tune OVERRIDES`` or ``gnewton tune --resume DIR``; returns 0 or raises."""
    if print_options(arguments, GROUPS):
        return 0
    options = _parser().parse_intermixed_args(arguments)
    from gnewton.cli.composer import Composer
    from gnewton.experiment.overrides import parse_overrides
    from gnewton.sweep.runner import locked, short_path, write_description
    from gnewton.tuning.search import tune

    if options.resume is not None:
        return _resume(options)
    composer = Composer(options.config_dir)
    of_runs, of_command = composer.split(parse_overrides(options.overrides), GROUPS)
    orders = make_orders(composer, of_command, options)
    search, root = _search(composer, of_runs, of_command)
    jobs = [
        trial.job
        for trial in search.next_trials({contestant.optimizer: [] for contestant in search.contestants})
    ]
    if options.dry_run:
        show_jobs(jobs, orders)
        return 0
    folder = make_folder(root / "tune", jobs)
    with locked(folder):
        texts = [override.text for override in of_runs]
        description = describe_sweep(["gnewton", "tune", *arguments], of_command, options, overrides=texts)
        write_description(folder, description)
        print(f"{_announced(search)}, {orders.launcher.describe()}: {short_path(folder)}", flush=True)
        tune(folder, search, orders)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from gnewton.experiment.overrides import parse_overrides
    from gnewton.sweep.runner import locked, read_description, short_path
    from gnewton.tuning.search import open_manifest, tune

    folder = options.resume.resolve()
    description = read_description(folder)
    if "overrides" not in description:
        raise InputError(f"--resume {options.resume}: a sweep; continue it with gnewton sweep --resume")
    for override in parse_overrides(options.overrides):
        if override.is_within(*_FIXED):
            raise InputError(f"{override.text}: a search that is resumed keeps its budget and spaces")
    composer, of_command = resumed_composer(description, options, GROUPS)
    orders = make_orders(composer, of_command, options, Path(description["directory"]))
    search, _ = _search(composer, parse_overrides(description["overrides"]), of_command)
    with locked(folder):
        for part in ("trials", "winners"):
            check_unchanged(composer, [entry.job for entry in open_manifest(folder / part).entries])
        if options.dry_run:
            manifests = [open_manifest(folder / part) for part in ("trials", "winners")]
            show_jobs([entry.job for manifest in manifests for entry in manifest.open_entries()], orders)
            return 0
        print(f"{_announced(search)}, {orders.launcher.describe()}: {short_path(folder)}", flush=True)
        tune(folder, search, orders)
    return 0


def _search(
    composer: Composer, of_runs: Sequence[Override], of_command: Sequence[Override]
) -> tuple[Search, Path]:
    """The checked search, and the folder of its outputs.

    Raises:
        InputError: if the optimizers would have different budgets.
    """
    from gnewton.experiment.overrides import Override
    from gnewton.sweep.manifest import Job
    from gnewton.tuning.search import Search

    of_search = [override for override in of_command if override.is_within(*_FIXED)]
    options = composer.options("tune", _FIXED, of_search)
    composed = composer.check(composer.expand(of_runs, "tune"))

    @cache  # the first trials are needed twice: to name the folder, and to be run
    def job(texts: tuple[str, ...]) -> Job:
        return composer.check([[Override.parse(text) for text in texts]])[0].job

    def compose(combinations: Sequence[Sequence[str]]) -> list[Job]:
        return [job(tuple(texts)) for texts in combinations]

    contestants = tuple(_contestants(composed, options["space"]))
    search = Search(options["tune"], options["space"], contestants, compose)
    for override in of_search:
        if override.key == "tune.batch" and not search.learns:
            raise InputError(
                f"{override.text}: has no effect, tune.sampler={options['tune'].sampler} places all at once"
            )
    if search.pruner.prunes:
        pruner = f"tune.pruner={options['tune'].pruner}"
        for override in of_runs:
            if override.is_within("trainer.early_stop"):
                raise InputError(f"{override.text}: belongs to {pruner}; leave it out")
        for patience in {run.config.trainer.early_stop.patience for run in composed} - {None}:
            raise InputError(f"trainer.early_stop.patience={patience}: must be null with {pruner}")
    search.check()
    return search, user_path(composed[0].config.output_root)


def _contestants(composed: Sequence[Composed], spaces: SpaceSettings) -> list[Contestant]:
    from omegaconf import OmegaConf

    from gnewton.experiment.overrides import Override
    from gnewton.options import show
    from gnewton.tuning.search import Contestant
    from gnewton.tuning.space import BUDGET

    contestants: dict[str, Contestant] = {}
    for run in composed:
        name = run.config.optimizer.name
        if name in contestants:
            raise InputError(
                "tune: only the optimizer may have several values; what is to be tuned stands in the space "
                "of each, see docs/sweeps.md"
            )
        budget = {option: OmegaConf.select(run.config, option) for option in BUDGET}
        if budget["trainer.target.value"] is not None:
            value = show(budget["trainer.target.value"])
            raise InputError(
                f"trainer.target.value={value}: a trial that stops at a target has not used its budget; "
                "leave it null"
            )
        tuned = {dimension.option for dimension in spaces.of(name).dimensions}
        for override in run.job.overrides:
            if Override.parse(override).key in tuned:
                raise InputError(f"{override}: is tuned for optimizer={name}; leave it out")
        contestants[name] = Contestant(name, run.job.overrides, int(run.config.seed), budget)
    shared = {tuple(contestant.budget.items()) for contestant in contestants.values()}
    if len(shared) > 1:
        raise InputError(f"{', '.join(contestants)}: their budgets differ; give {' and '.join(BUDGET[:3])}")
    return list(contestants.values())


def _announced(search: Search) -> str:
    budget = {name: value for name, value in search.contestants[0].budget.items() if value is not None}
    length = ", ".join(f"{name}={value}" for name, value in budget.items() if name != "seed")
    names = ", ".join(contestant.optimizer for contestant in search.contestants)
    settings = search.settings
    return (
        f"{names}: {settings.trials} trials each of {length}"
        + (" (a pruned trial is shorter)" if search.pruner.prunes else "")
        + f", then {settings.repeats} reruns of each winner"
    )


def _parser() -> argparse.ArgumentParser:
    from gnewton.cli.choices import describe_group

    parser = Parser(
        prog="gnewton tune",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Search for the best settings of several optimizers, each with the same number of trials of\n"
            "the same length; the winners are chosen on the validation split and run again with fresh seeds."
        ),
        epilog=f"""examples:
  gnewton tune optimizer=sgd,adam,grouped_newton trainer.epochs=3
  gnewton tune optimizer=sgd,adam tune.trials=32 tune.repeats=5 launcher.jobs=2
  gnewton tune optimizer=adam tune.sampler=optuna tune.metric=validation_accuracy
  gnewton tune --resume outputs/tune/SEARCH                        continue one that was stopped or killed
  gnewton compare outputs/tune/SEARCH/winners                      tables and plots of the reruns

gnewton tune tune=default --help lists the options of the search. The spaces, and docs/sweeps.md on your own:

{describe_group("space")}
The launchers, as for gnewton sweep:

{describe_group("launcher")}
Exit codes: 0 done, 2 bad input (nothing started), 4 trials failed, 130 or 143 stopped.""",
    )
    add_options(parser)
    return parser
