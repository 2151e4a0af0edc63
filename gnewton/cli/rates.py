"""``gnewton rates``: learning rates for SGD, Adam or AdamW, one per group, from the summary of the loss."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gnewton.cli.commands import Parser, at_least, finite, former, path
from gnewton.errors import InputError
from gnewton.options import Role, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnewton.cli.inspect import Subject
    from gnewton.data import Batch
    from gnewton.experiment.build import Point
    from gnewton.inspection.suggestion import Observations, Suggestion
    from gnewton.optim.options.baselines import FirstOrderRecipe

BATCH_SIZE = 300
CHECK_SAMPLES = 10_000


def run(arguments: list[str]) -> int:
    """``gnewton rates RUN|CHECKPOINT|OVERRIDES``: a table, CSV and YAML; returns 0 or raises."""
    options = _parser().parse_intermixed_args(arguments)
    subject = _subject(options.subject)
    from gnewton.experiment.build import open_point
    from gnewton.inspection.suggestion import suggest, suggestion_files
    from gnewton.report.comparison import write_file

    point = open_point(subject.config, subject.checkpoint, trains=True)
    recipe = _recipe(point)
    groups, whole = _observe(point, subject, options)
    suggestion = suggest(
        groups,
        whole,
        internal_damping=options.internal_damping,
        proximal=options.proximal,
        step_size=options.step_size,
        seed=point.settings.seed,
    )
    folder = options.output or _folder(point, subject)
    print(_describe(point, recipe, options, suggestion))
    remarks = _remarks(point, recipe, suggestion, folder)
    files = suggestion_files(point.partition, suggestion, groups, remarks)
    if options.check:
        files["check.csv"] = _check(point, recipe, subject, options, suggestion)
    written = [write_file(folder / name, content) for name, content in files.items()]
    print(f"\n{len(written)} files in {folder}: {', '.join(path.name for path in written)}")
    print(f"use them with {_use(recipe, folder)}")
    return 0


def _subject(words: list[str]) -> Subject:
    """The subject; its optimizer is SGD unless a run, an experiment or an override chooses another."""
    from gnewton.cli.inspect import is_path, parse_subject

    of_a_run = any(is_path(word) for word in words)
    if not of_a_run and not any(word.startswith(("optimizer=", "experiment=")) for word in words):
        words = [*words, "optimizer=sgd"]
    return parse_subject(words, "rates", idle=Role.RATES, also=("optimizer",))


def _recipe(point: Point) -> FirstOrderRecipe:
    from gnewton.optim.options.baselines import FirstOrderRecipe

    recipe = point.settings.optimizer
    if not isinstance(recipe, FirstOrderRecipe):
        raise InputError(
            f"rates: optimizer={recipe.name} takes no learning rates of groups; "
            "choose optimizer=sgd, adam or adamw"
        )
    return recipe


def _observe(point: Point, subject: Subject, options: argparse.Namespace) -> list[Observations]:
    from gnewton.experiment.build import CURVATURE_STREAM
    from gnewton.inspection.measurement import OptimizerDirection
    from gnewton.inspection.suggestion import observe
    from gnewton.partition import Partition
    from gnewton.partition.slices import require_whole

    require_whole(point.partition.sliced, "gnewton rates")
    size = len(point.data.train)
    if options.batch_size is not None and options.batch_size > size and point.data.task.input_shape:
        raise InputError(
            f"--batch-size={options.batch_size}: must be <= {size}, "
            f"the training samples of data={point.data.name}"
        )
    recipe = point.settings.optimizer
    factory = recipe.proposal(point.problem)
    assert factory is not None
    state = None
    if point.optimizer_state is not None and not _other_optimizer(subject):
        state = recipe.proposal_state(point.optimizer_state)
    order = [name for name, p in point.model.named_parameters() if p.requires_grad]
    stream = None
    if options.along == "step":
        stream = point.data.train.stream(
            options.batch_size or min(BATCH_SIZE, size), seed=point.settings.seed + CURVATURE_STREAM
        )
    return observe(
        point.model,
        point.problem.loss_fn,
        [point.partition, Partition.single(point.model)],
        OptimizerDirection(point.model, factory, order, state),
        _training(point),
        stream,
        batches=options.batches,
        warmup=options.warmup,
        matrix=options.matrix,
    )


def _other_optimizer(subject: Subject) -> bool:
    return any(override.is_within("optimizer") for override in subject.overrides)


def _training(point: Point) -> Iterator[Batch]:
    """The training batches from the current epoch on, without end."""
    from itertools import count

    for epoch in count(point.epoch):
        yield from point.data.train.epoch(epoch, point.settings.trainer.batch_size)


def _remarks(point: Point, recipe: FirstOrderRecipe, suggestion: Suggestion, folder: Path) -> list[str]:
    """The comments at the top of the YAML file."""
    return [
        f"Learning rates for optimizer={recipe.name}, suggested by gnewton {shlex.join(sys.argv[1:])}",
        point.describe(),
        f"gnewton train … {_use(recipe, folder)}",
        f"one rate for all instead: optimizer.lr={suggestion.single!r}",
    ]


def _use(recipe: FirstOrderRecipe, folder: Path) -> str:
    """The overrides that apply the suggested rates, quoted for a shell."""
    file = quoted(str(folder / "rates.yaml"))
    return shlex.join([f"optimizer={recipe.name}", f"optimizer.rates={file}"])


def _describe(
    point: Point, recipe: FirstOrderRecipe, options: argparse.Namespace, suggestion: Suggestion
) -> str:
    from gnewton.report.tables import Table, as_text

    rows = [
        [
            group.name,
            f"{suggestion.rates[s]:.3g}",
            "" if suggestion.from_solve[s] else "that of all",
            f"{suggestion.low[s]:.3g} … {suggestion.high[s]:.3g}",
            f"{suggestion.positive[s]:.0%}",
        ]
        for s, group in enumerate(point.partition)
    ]
    title = (
        f"{point.describe()}\n"
        f"along the steps of optimizer={recipe.name}, {options.batches} batches; "
        f"λ_1 {options.step_size:g}, λ_int {options.internal_damping:g}, μ {options.proximal:g}; "
        f"solve: {suggestion.status}"
    )
    heads = ["group", "rate", "", "over batches, 10–90 %", "above 0"]
    return (
        f"{as_text([Table(title, heads, rows, [])])}\n\n"
        f"one rate for all: {suggestion.single:.3g} "
        f"({suggestion.single_low:.3g} … {suggestion.single_high:.3g}); "
        f"configured: {recipe.lr:g}"
    )


def _check(
    point: Point,
    recipe: FirstOrderRecipe,
    subject: Subject,
    options: argparse.Namespace,
    suggestion: Suggestion,
) -> bytes:
    from gnewton.experiment.run import METRICS, RateChoice, try_rates
    from gnewton.inspection.point_inspection import csv_table
    from gnewton.report.tables import Table, as_text

    choices = [
        RateChoice("configured", recipe.lr, recipe.rates),
        RateChoice("one for all", suggestion.single),
        RateChoice("one for each group", suggestion.single, suggestion.by_parameter(point.partition)),
    ]
    seeds = range(point.settings.seed, point.settings.seed + options.check_seeds)
    results = try_rates(
        subject.config, choices, steps=options.check_steps, seeds=seeds, samples=CHECK_SAMPLES
    )
    table_rows = [
        [
            result.choice.name,
            *("–" if (value := result.median(m)) is None else f"{value:.4g}" for m in METRICS),
            f"{result.diverged} of {len(seeds)}",
        ]
        for result in results
    ]
    heads = ["learning rate", *(metric.replace("_", " ") for metric in METRICS), "diverged"]
    title = (
        f"after {options.check_steps} steps from the initial weights, median over {len(seeds)} "
        f"seed{'s' if len(seeds) > 1 else ''}"
    )
    print(f"\n{as_text([Table(title, heads, table_rows, [])])}")
    rows = [
        [result.choice.name, metric, *(result.metrics[metric])] for result in results for metric in METRICS
    ]
    return csv_table(("learning_rate", "metric", *(f"seed{seed}" for seed in seeds)), rows)


def _folder(point: Point, subject: Subject) -> Path:
    name = point.settings.optimizer.name
    if subject.folder is not None:
        return subject.folder / f"rates_{name}_step{point.step}"
    return Path("suggestions") / f"{point.settings.model.name}-{point.settings.data.name}-{name}"


def _parser() -> argparse.ArgumentParser:
    from gnewton.cli.inspect import add_matrix_option

    parser = Parser(
        prog="gnewton rates",
        description="Suggest a learning rate for each group, for SGD, Adam or AdamW: the cubic model of the "
        "loss along their own steps is averaged over batches, at one point, and solved.",
        epilog="examples: gnewton rates model=lenet data=cifar10 optimizer=adam --check; "
        "gnewton rates outputs/mlp-mnist-sgd/RUN",
    )
    parser.add_argument(
        "subject",
        nargs="*",
        metavar="RUN|CHECKPOINT|OPTION=VALUE",
        help="a run folder (its last checkpoint), a checkpoint in one, or the options of gnewton train that "
        "make the initial weights (optimizer=sgd unless chosen); beside a run: optimizer=, partition=, …",
    )
    parser.add_argument(
        "--batches", type=at_least(1), default=30, metavar="N", help="to average over (default: %(default)s)"
    )
    add_matrix_option(parser)
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        metavar="N",
        help=f"samples in each (default: {BATCH_SIZE}, or all)",
    )
    parser.add_argument(
        "--along",
        choices=("fresh", "step"),
        default="step",
        help="measure along step: the optimizer's step, on another batch; fresh: what the present gradient "
        "adds to it, on the batch of that gradient (default: %(default)s)",
    )
    parser.add_argument(
        "--warmup",
        type=at_least(0),
        default=50,
        metavar="N",
        help="gradients that the optimizer averages beforehand, at fixed weights (default: %(default)s)",
    )
    parser.add_argument(
        "--step-size",
        type=finite(0.0, above=True),
        default=1.0,
        metavar="λ",
        help="λ_1, the factor on all rates (default: %(default)s)",
    )
    parser.add_argument("--damping", type=former("--step-size"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--proximal",
        type=finite(0.0),
        default=10.0,
        metavar="μ",
        help="weight of the term that keeps the groups' rates near the common one (default: %(default)s)",
    )
    parser.add_argument(
        "--internal-damping",
        type=finite(0.0),
        default=1.0,
        metavar="λ",
        help="λ_int, the weight of the cubic term (default: %(default)s)",
    )
    parser.add_argument(
        "--check", action="store_true", help="train briefly with the configured and the suggested rates"
    )
    parser.add_argument(
        "--check-steps",
        type=at_least(1),
        default=500,
        metavar="N",
        help="training steps of each of these runs (default: %(default)s)",
    )
    parser.add_argument(
        "--check-seeds",
        type=at_least(1),
        default=1,
        metavar="N",
        help="seeds of these runs (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        metavar="FOLDER",
        help="where the files go (default: in the run, or suggestions/MODEL-DATA-OPTIMIZER)",
    )
    return parser
