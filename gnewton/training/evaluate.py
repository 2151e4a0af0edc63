"""Evaluation of a model on a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gnewton.data.splits import DataSet, Split
from gnewton.tasks import Task
from gnewton.training.resources import memory_suffices
from gnewton.training.settings import Evaluation


@dataclass(frozen=True)
class Score:
    """Mean loss and share of right answers on a split; None if the split is empty or the task has neither."""

    loss: float | None
    accuracy: float | None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    batch_size: int,
    limit: int | None = None,
    between: Callable[[], None] = lambda: None,
) -> Score:
    """Mean loss and accuracy of ``model`` in evaluation mode, weighted by samples.

    The losses of the batches stay on the device, are read once at the end and averaged in float64. The
    model is left in the mode it was in.

    Args:
        model: the network.
        task: its loss and its notion of a right answer.
        split: the samples; an empty split scores None.
        batch_size: samples per forward pass; it does not change the result.
        limit: how many samples, from the first; None: all.
        between: called after each batch; what it raises ends the evaluation.
    """
    mode = model.training
    model.eval()
    losses: list[torch.Tensor] = []
    hits: list[torch.Tensor] = []
    sizes: list[int] = []
    try:
        for inputs, targets in split.in_order(batch_size, limit):
            outputs = model(inputs)
            losses.append(task.loss(outputs, targets))
            sizes.append(max(len(inputs), 1))
            correct = task.correct(outputs, targets)
            if correct is not None:
                hits.append(correct)
            between()
    finally:
        model.train(mode)
    if not losses:
        return Score(None, None)
    total = sum(sizes)
    loss = sum(value * size for value, size in zip(torch.stack(losses).tolist(), sizes, strict=True)) / total
    accuracy = float(torch.stack(hits).sum()) / (total * task.answers) if hits else None
    return Score(loss, accuracy)


def evaluate_splits(
    model: nn.Module, data: DataSet, options: Evaluation, between: Callable[[], None] = lambda: None
) -> dict[str, Score]:
    """The score on each split by name; on the training split only if ``options.train``.

    ``between`` is called after each batch, see :func:`evaluate`.
    """
    device = next(model.parameters()).device
    option = f"trainer.evaluation.batch_size={options.batch_size}"
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    with memory_suffices(device, "an evaluation", option):
        return {
            name: evaluate(model, data.task, split, options.batch_size, options.max_samples, between)
            if name != "train" or options.train
            else Score(None, None)
            for name, split in splits.items()
        }
