"""``gnewton sweep``: many runs, each in a process of its own."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gnewton
from gnewton.cli.commands import WORDS, Parser, path
from gnewton.errors import InputError
from gnewton.options import user_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gnewton.cli.composer import Composer
    from gnewton.experiment.overrides import Override
    from gnewton.sweep.manifest import Job
    from gnewton.sweep.runner import Orders

GROUPS = ("launcher",)


def run(arguments: list[str]) -> int:
    """``gnewton sweep OVERRIDES`` or ``gnewton sweep --resume DIR``; returns 0 or raises."""
    if print_options(arguments, GROUPS):
        return 0
    options = _parser().parse_intermixed_args(arguments)
    if options.resume is not None:
        return _resume(options)
    from gnewton.cli.composer import Composer
    from gnewton.experiment.overrides import parse_overrides
    from gnewton.sweep.manifest import Manifest
    from gnewton.sweep.runner import count, locked, run_sweep, short_path, write_description

    composer = Composer(options.config_dir)
    of_runs, of_command = composer.split(parse_overrides(options.overrides), GROUPS)
    orders = make_orders(composer, of_command, options)
    composed = composer.check(composer.expand(of_runs, "sweep"))
    jobs = [entry.job for entry in composed]
    if options.dry_run:
        show_jobs(jobs, orders)
        return 0
    folder = make_folder(user_path(composed[0].config.output_root) / "sweeps", jobs)
    with locked(folder):
        write_description(folder, describe_sweep(["gnewton", "sweep", *arguments], of_command, options))
        manifest = Manifest(folder)
        manifest.add(jobs)
        print(f"{count(len(jobs))}, {orders.launcher.describe()}: {short_path(folder)}", flush=True)
        run_sweep(manifest, orders)
    return 0


def print_options(arguments: Sequence[str], groups: Sequence[str]) -> bool:
    """Answer ``--help`` beside overrides by the options of what they choose; False if it is not asked for."""
    if not {"-h", "--help"} & set(arguments):
        return False
    from gnewton.cli.option_help import help_on_options

    text = help_on_options(arguments, groups)
    if text is not None:
        print(text)
    return text is not None


def _resume(options: argparse.Namespace) -> int:
    from gnewton.sweep.manifest import Manifest
    from gnewton.sweep.runner import count, locked, read_description, run_sweep

    folder = options.resume.resolve()
    description = read_description(folder)
    imports = take_imports(options)
    composer, of_command = resumed_composer(description, options)
    orders = make_orders(composer, of_command, options, Path(description["directory"]))
    with locked(folder):
        manifest = Manifest.load(folder)
        before = [entry.job for entry in manifest.open_entries()]
        open_jobs = [with_moved_imports(job, f"--resume {options.resume}", imports) for job in before]
        check_unchanged(composer, open_jobs, before)
        if options.dry_run:
            show_jobs(open_jobs, orders)
            return 0
        print(
            f"{len(open_jobs)} of {count(len(manifest.entries))} left, {orders.launcher.describe()}",
            flush=True,
        )
        manifest.put(open_jobs)
        run_sweep(manifest, orders)
    return 0


def take_imports(options: argparse.Namespace) -> list[str] | None:
    """Take ``import=`` out of the overrides of a resumed sweep; None if it is not there."""
    from gnewton.experiment.overrides import parse_overrides
    from gnewton.experiment.own_parts import imports_of

    imports = imports_of(parse_overrides(options.overrides))
    options.overrides = [word for word in options.overrides if not word.startswith(WORDS)]
    return imports


def with_moved_imports(job: Job, argument: str, imports: Sequence[str] | None) -> Job:
    """A job of a resumed sweep whose own parts may have moved; its digest stays.

    Raises:
        InputError: if a file is missing and none is given, or the job imports nothing.
    """
    from gnewton.experiment.overrides import Override
    from gnewton.experiment.own_parts import imports_of, imports_override, moved_imports
    from gnewton.sweep.manifest import Job

    saved = imports_of([Override.parse(text) for text in job.overrides])
    if saved is None:
        if imports is not None:
            raise InputError(f"import={imports[0]}: {argument} imports nothing; leave it out")
        return job
    entries = moved_imports(saved, argument, imports)
    override = imports_override(entries)
    texts = [override if text.startswith(WORDS) else text for text in job.overrides]
    return Job(job.digest, tuple(texts))


def resumed_composer(
    description: dict[str, Any], options: argparse.Namespace, groups: Sequence[str] = GROUPS
) -> tuple[Composer, list[Override]]:
    """The composer of a resumed sweep, and its launcher overrides followed by the new ones.

    Raises:
        InputError: for an override of the runs, which stay as they are.
    """
    from gnewton.cli.composer import Composer
    from gnewton.experiment.overrides import parse_overrides

    if options.config_dir is not None:
        raise InputError("--config-dir: has no effect with --resume, the sweep has its own")
    options.config_dir = Path(description["config_dir"]) if description["config_dir"] else None
    composer = Composer(options.config_dir)
    of_runs, of_command = composer.split(parse_overrides(options.overrides), groups)
    if of_runs:
        raise InputError(
            f"{of_runs[0].text}: a resumed sweep keeps its runs; "
            f"only options of {' and '.join(groups)} can change"
        )
    return composer, [*parse_overrides(description["own"]), *of_command]


def make_orders(
    composer: Composer,
    of_command: Sequence[Override],
    options: argparse.Namespace,
    directory: Path | None = None,
) -> Orders:
    """How the command line wants the jobs to be run.

    Raises:
        InputError: for a launcher with wrong options, or one that cannot work here.
    """
    from gnewton.sweep.runner import Orders

    launcher = composer.options(
        "launch",
        ("launcher",),
        [override for override in of_command if override.is_within("launcher")],
    )["launcher"]
    launcher.check()
    flags = () if options.config_dir is None else ("--config-dir", str(options.config_dir.resolve()))
    return Orders(
        launcher,
        directory or Path.cwd(),
        composer.require_same,
        flags,
        retries=options.retries,
        fail_fast=options.fail_fast,
        say=lambda line: print(line, flush=True),
    )


def check_unchanged(composer: Composer, jobs: Sequence[Job], before: Sequence[Job] | None = None) -> None:
    """Make sure that the jobs still have the configurations they had when the sweep began.

    Args:
        composer: of the sweep.
        jobs: as they are to be run.
        before: the same as the sweep began them, if the files that they import have moved.

    Raises:
        InputError: naming a job whose configuration would be another one now.
    """
    from gnewton.experiment.folder import config_hash
    from gnewton.experiment.overrides import Override
    from gnewton.experiment.own_parts import imports_of

    for job, old in zip(jobs, before or jobs, strict=True):
        (now,) = composer.check([[Override.parse(text) for text in job.overrides]])
        config = now.config.copy()
        config.imports = imports_of([Override.parse(text) for text in old.overrides]) or []
        digest = config_hash(config)
        if digest != job.digest:
            raise InputError(
                f"{shlex.join(job.overrides)}: is configuration {digest} now and was {job.digest} "
                "when the sweep began; configs/, the package or an environment variable has changed"
            )


def make_folder(root: Path, jobs: Sequence[Job]) -> Path:
    """A new folder for a sweep of these jobs, absolute."""
    import hashlib

    from gnewton.experiment.folder import create_run_folder

    digest = hashlib.sha256("".join(job.digest for job in jobs).encode()).hexdigest()[:8]
    return create_run_folder(root.resolve(), digest)


def describe_sweep(
    command: Sequence[str], of_command: Sequence[Override], options: argparse.Namespace, **more: Any
) -> dict[str, Any]:
    """The command line of a sweep and its surroundings, ready for JSON."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gnewton": gnewton.__version__,
        "python": sys.executable,
        "command": list(command),
        "directory": str(Path.cwd()),
        "config_dir": None if options.config_dir is None else str(options.config_dir.resolve()),
        "own": [override.text for override in of_command],
        **more,
    }


def show_jobs(jobs: Sequence[Job], orders: Orders) -> None:
    """Print the command of each job, for ``--dry-run``."""
    from gnewton.sweep.runner import count

    for job in jobs:
        print(shlex.join(["gnewton", "train", *orders.flags, *job.overrides]))
    print(f"# {count(len(jobs))}, {orders.launcher.describe()}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command with jobs has."""
    parser.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help="as for gnewton train")
    parser.add_argument("--resume", type=path, metavar="DIR", help="continue the one in this folder")
    parser.add_argument(
        "--retries",
        type=_count,
        default=0,
        metavar="N",
        help="how often to continue a failed run (default: 0)",
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop all jobs at the first failure")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs and stop")
    parser.add_argument(
        "--config-dir", type=path, metavar="DIR", help="a folder with your own configuration files"
    )


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number >= 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    from gnewton.cli.choices import describe_group

    parser = Parser(
        prog="gnewton sweep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Train every combination of the given values, each run in its own process: one that fails, is\n"
            "killed or diverges does not affect the others."
        ),
        epilog=f"""examples:
  gnewton sweep optimizer=sgd,adam,grouped_newton seed=0,1,2       nine runs, one after the other
  gnewton sweep optimizer.lr=0.1,0.01 'seed=range(5)' launcher.jobs=4
  gnewton sweep optimizer=sgd,adam launcher=slurm launcher.partition=gpu
  gnewton sweep --resume outputs/sweeps/SWEEP                      continue one that was stopped or killed

The groups and options of a run are those of gnewton train --help. Choices of the launcher, the default marked
by *; gnewton sweep launcher=slurm --help lists the options of one:

{describe_group("launcher")}
Exit codes: 0 all done, 2 bad input (nothing started), 4 jobs failed or diverged, 130 or 143 stopped.""",
    )
    add_options(parser)
    return parser
