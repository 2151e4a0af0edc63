"""``gnewton inspect``: the loss around a checkpoint or initial weights, the subject that `rates` shares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnewton.cli.commands import Parser, at_least, finite, path
from gnewton.errors import InputError
from gnewton.options import Role, user_path

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from gnewton.experiment.build import Point
    from gnewton.experiment.overrides import Override
    from gnewton.inspection.measurement import Batches
    from gnewton.inspection.point_inspection import Inspection


GRADIENT, OPTIMIZER = "gradient", "optimizer"

PIECE = 1000
"""Samples of the training set that go through the model at once; it has no effect on the result."""


def run(arguments: list[str]) -> int:
    """``gnewton inspect RUN|CHECKPOINT|OVERRIDES``: tables, arrays and plots; returns 0 or raises."""
    options = _parser().parse_intermixed_args(arguments)
    if options.full and (options.batches is not None or options.batch_size is not None):
        raise InputError("inspect: --full takes all samples; leave out --batches and --batch-size")
    subject = parse_subject(options.subject, "inspect", idle=Role.BATCHES, also=["logger"])
    from gnewton.experiment.build import open_point
    from gnewton.inspection.point_inspection import inspection_files
    from gnewton.report.comparison import write_file
    from gnewton.report.inspection_report import describe_inspection, read_inspection

    point = open_point(subject.config, subject.checkpoint)
    inspection, samples = _inspect(point, options)
    about = _about(point, options, samples)
    folder = options.output or _folder(point, subject)
    written = [write_file(folder / name, data) for name, data in inspection_files(inspection, about).items()]
    print(f"partition: {point.partition.describe()}\n")
    stored = read_inspection(folder)
    print(describe_inspection(stored))
    if options.plots:
        from gnewton.report.plots.inspection_plots import write_inspection_plots

        plots = write_inspection_plots(stored, folder)
        written += plots
        if subject.folder is not None and point.settings.logger:
            _send(point, subject, [plot for plot in plots if plot.suffix == ".png"])
    print(f"\n{len(written)} files in {folder}: {', '.join(path.name for path in written)}")
    return 0


def _send(point: Point, subject: Subject, plots: Sequence[Path]) -> None:
    """The plots to the loggers of the run, or to those chosen in their place."""
    from gnewton.experiment.folder import dotted
    from gnewton.loggers import GuardedLoggers, RunCard

    loggers = GuardedLoggers({name: recipe.build() for name, recipe in point.settings.logger.items()})
    assert subject.folder is not None
    card = RunCard(subject.folder, point.settings.name, dotted(subject.config), point.step, trains=False)
    with loggers.reporting(card):
        for plot in plots:
            loggers.image(f"inspection/{plot.stem}", plot, point.step)


def _inspect(point: Point, options: argparse.Namespace) -> tuple[Inspection, str]:
    from gnewton.inspection.measurement import mean_gradient
    from gnewton.inspection.point_inspection import inspect_point

    point.model.train(not options.evaluation)
    batches, samples = batches_of(point, options)
    direction = mean_gradient(point.model, point.problem.loss_fn, batches())
    decay: dict[str, float] = {}
    if options.direction == OPTIMIZER:
        direction, decay = _proposed(point)
    default = getattr(point.settings.optimizer, "internal_damping", 1.0)
    damping = options.internal_damping if options.internal_damping is not None else default
    inspection = inspect_point(
        point.model,
        point.problem.loss_fn,
        point.partition,
        batches,
        direction,
        internal_damping=damping,
        decay=decay,
        order=options.order,
        matrix=options.matrix,
    )
    return inspection, samples


def _proposed(point: Point) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The step that the run's optimizer would take with the gradient in ``.grad``."""
    from gnewton.inspection.measurement import OptimizerDirection

    recipe, partition = point.settings.optimizer, point.problem.partition
    factory = recipe.proposal(point.problem)
    if factory is None:
        raise InputError(
            f"inspect: --direction={OPTIMIZER}: optimizer={recipe.name} has no direction that is known; "
            f"use {GRADIENT}"
        )
    order = [name for name, p in point.model.named_parameters() if p.requires_grad]
    if partition is not None:
        order = list(partition.parameters)
    state = recipe.proposal_state(point.optimizer_state) if point.optimizer_state is not None else None
    direction = OptimizerDirection(point.model, factory, order, state)
    return direction.advance(), direction.decay()


def batches_of(point: Point, options: argparse.Namespace) -> tuple[Batches, str]:
    """The samples chosen by ``--batches``, ``--batch-size`` or ``--full``, and a description of them."""
    from itertools import islice

    from gnewton.experiment.build import CURVATURE_STREAM

    train, size = point.data.train, len(point.data.train)
    if not point.data.task.input_shape:
        return lambda: train.in_order(1), "no samples"
    if options.full:
        return lambda: train.in_order(PIECE), f"all {size:,} training samples"
    count, batch_samples = options.batches or 1, options.batch_size or min(PIECE, size)
    if batch_samples > size:
        raise InputError(
            f"--batch-size={batch_samples}: must be <= {size}, the training samples of data={point.data.name}"
        )
    seed = point.settings.seed + CURVATURE_STREAM
    description = (
        f"{count} batch{'es' if count > 1 else ''} of {batch_samples:,} of the {size:,} training samples"
    )
    return lambda: islice(train.stream(batch_samples, seed=seed), count), description


def _about(point: Point, options: argparse.Namespace, samples: str) -> dict[str, Any]:
    import gnewton
    from gnewton.backend import describe_environment

    return {
        "point": point.describe(),
        "model": point.settings.model.name,
        "data": point.settings.data.name,
        "step": point.step,
        "partition": point.settings.partition.name,
        "matrix": options.matrix,
        "direction": options.direction if options.direction == GRADIENT else point.settings.optimizer.name,
        "taken_on": samples,
        "mode": "evaluation" if options.evaluation else "training",
        "dtype": point.settings.trainer.dtype,
        "environment": describe_environment(
            point.device, ["gnewton", *sys.argv[1:]], [], gnewton.__version__
        ),
    }


def _folder(point: Point, subject: Subject) -> Path:
    if subject.folder is not None:
        return subject.folder / f"inspection_step{point.step}"
    return Path("inspections") / f"{point.settings.model.name}-{point.settings.data.name}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gnewton inspect",
        description="The gradient, Hessian and third derivative of the loss along the partition at a point, "
        "the resulting rates, and how the Hessian is distributed: tables, CSV, .npz and plots.",
        epilog="examples: gnewton inspect outputs/mlp-mnist-grouped_newton/RUN --full; "
        "gnewton inspect model=lenet data=cifar10 partition=by_layer",
    )
    parser.add_argument(
        "subject",
        nargs="*",
        metavar="RUN|CHECKPOINT|OPTION=VALUE",
        help="a run folder (its last checkpoint), a checkpoint in one, or the options of gnewton train "
        "that make the initial weights; beside a run: partition=, data.root=, trainer.device=, logger=",
    )
    add_sample_options(parser)
    add_matrix_option(parser)
    parser.add_argument("--full", action="store_true", help="all training samples, without augmentation")
    parser.add_argument(
        "--direction",
        choices=(GRADIENT, OPTIMIZER),
        default=GRADIENT,
        help="the gradient of these samples, or the step that the run's optimizer takes with it, its state "
        "restored (default: %(default)s)",
    )
    parser.add_argument(
        "--internal-damping",
        type=finite(0.0),
        metavar="λ",
        help="weight of the cubic term (default: that of the run, else 1)",
    )
    parser.add_argument(
        "--evaluation",
        action="store_true",
        help="the model in evaluation mode: running statistics, no dropout",
    )
    parser.add_argument(
        "--order",
        type=int,
        choices=range(3, 9),
        metavar="D",
        help="also the loss along each group on a grid of rates, its models of order 2, 3 and D (3 to 8) "
        "and how far each holds; takes 35 forward passes per group (default: left out)",
    )
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="write no PNG and SVG plots")
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        metavar="FOLDER",
        help="where the files go (default: inspection_stepN/ in the run, or inspections/MODEL-DATA)",
    )
    return parser


def add_sample_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--batches`` and ``--batch-size``."""
    parser.add_argument(
        "--batches", type=at_least(1), metavar="N", help="batches to average over (default: 1)"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), metavar="N", help=f"samples in each (default: {PIECE}, or all)"
    )


@dataclass(frozen=True)
class Subject:
    """A configuration, and the checkpoint that goes with it.

    Attributes:
        config: the composed configuration.
        overrides: those of the command line.
        folder, checkpoint: of the run; None at initial weights.
    """

    config: DictConfig
    overrides: tuple[Override, ...]
    folder: Path | None
    checkpoint: Path | None


def parse_subject(words: Sequence[str], command: str, *, idle: Role, also: Sequence[str] = ()) -> Subject:
    """The subject that ``words`` name: at most one path, and overrides.

    Args:
        words: paths and overrides, see :func:`is_path`.
        command: for messages.
        idle: role of the options without effect on this command, beside those without effect at any point.
        also: groups that can be chosen anew for a run, beside the usual ones.

    Raises:
        InputError: for two paths, or an override that is wrong or has no effect.
    """
    from gnewton.cli.composer import Composer, with_choices_of
    from gnewton.experiment.overrides import parse_overrides

    paths = [word for word in words if is_path(word)]
    overrides = parse_overrides([word for word in words if not is_path(word)])
    if len(paths) > 1:
        raise InputError(f"{command}: {paths[1]}: only one run or checkpoint is looked at")
    if not paths:
        _require_effect(overrides, command, idle)
        return Subject(Composer().compose(overrides), tuple(overrides), None, None)
    from gnewton.experiment.build import run_of
    from gnewton.experiment.resume import changed
    from gnewton.experiment.schema import options_with

    folder, checkpoint = run_of(user_path(paths[0]))
    chosen = Composer().compose(with_choices_of(folder, overrides))
    config = changed(folder, chosen, overrides, (*options_with(Role.VIEW), *also), str(folder))
    return Subject(config, tuple(overrides), folder, checkpoint)


def add_matrix_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--matrix``."""
    from gnewton.optim.hyperparameters import MATRICES

    parser.add_argument(
        "--matrix",
        choices=MATRICES,
        default="hessian",
        help="in place of the Hessian: gauss_newton, without the curvature of the outputs, or fisher, its "
        "estimate from one drawn label a sample (default: %(default)s)",
    )


def is_path(word: str) -> bool:
    """Whether a word is a path: it has no equals sign, or there is such a file or folder."""
    return "=" not in word or user_path(word).exists()


def _require_effect(overrides: Sequence[Override], command: str, idle: Role) -> None:
    from gnewton.experiment.schema import options_with

    without_effect = options_with(Role.OUTPUT | Role.LABEL | Role.COURSE | idle)
    for override in overrides:
        if override.is_within(*without_effect):
            raise InputError(f"{override.text}: has no effect on gnewton {command}")
