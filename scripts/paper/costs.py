"""The cost of a summary against the number of groups S, beside that of S double backward passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure

from gnewton.experiment.build import Point, open_point
from gnewton.inspection.measurement import mean_gradient
from gnewton.partition import Partition
from gnewton.report.plots.style import figure, legend_below, log_scale, looks, title
from gnewton.summary import Summarizer
from scripts.paper.record import FigureFiles
from scripts.paper.runs import Workshop, composed
from scripts.paper.settings import PAPER, PaperSettings

SIDES = {
    "tangent": "one pass with S tangents (this package)",
    "reference": "S double and triple backward passes",
}
BLOCKS = (256, 128, 64, 32, 16, 8)
"""Output channels of a group, from few groups to many."""


def costs(settings: PaperSettings, workshop: Workshop) -> FigureFiles:
    """Time (ḡ, H̄, D3) for ever finer partitions, in gradients of the same batch. Nothing is trained."""
    rows = []
    for name, overrides in settings.costs.items():
        seed = settings.curves.seeds[0]
        point = open_point(composed((*overrides, f"optimizer={PAPER}", f"seed={seed}")), None, trains=True)
        rows += [{"network": name, **measure(point, partition, settings)} for partition in partitions(point)]
    table = pd.DataFrame(rows)
    return FigureFiles(tables={"costs": table}, images={"costs": _figure(table)})


def partitions(point: Point) -> list[Partition]:
    """One group, weights and biases, layers, tensors, and blocks of channels, each number of groups once."""
    model = point.model
    coarse = [
        Partition.single(model),
        Partition.weights_biases(model),
        Partition.by_layer(model),
        Partition.per_tensor(model),
    ]
    by_size = {len(partition): partition for partition in coarse}
    for rows in BLOCKS:
        blocks = Partition.row_blocks(model, rows)
        by_size.setdefault(len(blocks), blocks)
    return [by_size[size] for size in sorted(by_size)]


def measure(point: Point, partition: Partition, settings: PaperSettings) -> dict[str, float]:
    """The seconds of a gradient and, in gradients, those of each side; sides take turns, the least counts.

    On a CPU it is processor time of all threads, which other work on the machine disturbs least.
    """
    loss_fn, batch_size = point.problem.loss_fn, point.settings.trainer.batch_size or 100
    batch = next(iter(point.data.train.in_order(batch_size)))
    direction = mean_gradient(point.model, loss_fn, [batch])
    sides: dict[str, Callable[[], object]] = {
        "gradient": partial(mean_gradient, point.model, loss_fn, [batch]),
    }
    for engine in SIDES:
        if engine == "tangent" or len(partition) <= settings.reference_most:
            summarizer = Summarizer(point.model, loss_fn, partition, engine=engine)  # type: ignore[arg-type]
            sides[engine] = partial(summarizer.summarize, *batch, direction)
    least = dict.fromkeys(sides, float("inf"))
    for side in sides.values():
        side()
    for _ in range(settings.repeats):
        for name, side in sides.items():
            least[name] = min(least[name], _seconds(side, point.device))
    unit = least.pop("gradient")
    return {"groups": len(partition), "gradient_s": unit, **{name: t / unit for name, t in least.items()}}


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _figure(table: pd.DataFrame) -> Figure:
    networks = list(dict.fromkeys(table["network"]))
    canvas, axes = figure(1, len(networks), width=4.6, height=3.4)
    styles = dict(zip(SIDES, looks(len(SIDES)), strict=True))
    for axis, network in zip(axes[0], networks, strict=True):
        of_network = table[table["network"] == network]
        for side, style in styles.items():
            if side in of_network:
                axis.plot(of_network["groups"], of_network[side], marker="o", markersize=3, **style)
        log_scale(axis, "x")
        log_scale(axis, "y")
        axis.set_xlabel("groups S")
        axis.set_ylabel("cost in gradients")
        title(axis, network)
    handles = [axes[0][0].plot([], [], **style)[0] for style in styles.values()]
    legend_below(canvas, handles, list(SIDES.values()))
    return canvas
