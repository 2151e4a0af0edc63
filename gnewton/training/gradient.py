"""The gradient of the mean loss on a batch, in pieces where it would not fit at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gnewton.data.splits import Batch
from gnewton.tasks import Task
from gnewton.training.precision import Precision

FULL = Precision()
"""Nothing is rounded."""


def add_gradient(
    model: Callable[[Tensor], Tensor],
    task: Task,
    batch: Batch,
    microbatch: int | None,
    precision: Precision = FULL,
) -> tuple[Tensor, Tensor | None]:
    """Add ∇ (1/N) Σ_i ℓ(x_i) to ``.grad`` and return the mean loss and the number of right answers.

    A batch is cut into pieces of ``microbatch`` samples, each weighted by its share of the samples, so that
    the sum is the gradient on the whole batch (except for layers that mix samples, such as batch norm).

    Args:
        model: the network, in training mode.
        task: its loss, a mean over samples.
        batch: inputs and targets of N samples.
        microbatch: samples per forward and backward pass; None: all of them.
        precision: what the forward pass is rounded to; its scale is left on the gradients.

    Returns:
        loss and right answers (None where the task has no such notion), scalars still on the device.
    """
    inputs, targets = batch
    size = len(inputs)
    piece = min(microbatch or size, size)
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    for start in range(0, size, piece):
        part, labels = inputs[start : start + piece], targets[start : start + piece]
        with precision.rounded():
            outputs = precision.outputs(model(part))
        loss = task.loss(outputs, labels)
        if piece < size:
            loss = loss * (len(part) / size)
        precision.backward(loss)
        losses.append(loss.detach())
        correct = task.correct(outputs.detach(), labels)
        if correct is not None:
            hits.append(correct)
    return _sum(losses), _sum(hits) if hits else None


def _sum(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).sum()
