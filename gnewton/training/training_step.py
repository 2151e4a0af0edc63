"""One training step: a batch in, its loss out, the optimizer's step made in between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.data import Batch
from gnewton.optim.options import OptimizerRecipe
from gnewton.summary.batch import batch_size, call, cut, plain
from gnewton.tasks import Task
from gnewton.training.world import World

_DTYPES = {"full": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What a training step measured, over the whole batch of all processes; tensors stay on the device.

    Attributes:
        loss: mean loss before the step.
        correct: right answers before the step; None where the task has no such notion.
        samples: samples in the batch.
    """

    loss: Tensor
    correct: Tensor | None
    samples: int


class Precision:
    """Mixed precision by ``torch.autocast``; parameters, loss and optimizer keep the dtype of the model.

    The smallest gradients of float16 would underflow to 0, so the loss is multiplied by a scale that torch's
    ``GradScaler`` adapts, and a step whose gradients overflow is left out. That decision makes the host wait
    for the device at every step.

    Args:
        kind: "full" (nothing is rounded), "bfloat16" or "float16".
        device: the device of the model.
    """

    def __init__(self, kind: str = "full", device: torch.device | str = "cpu") -> None:
        self._dtype = _DTYPES[kind]
        self._device = torch.device(device).type
        self.scaler = torch.amp.GradScaler(self._device) if kind == "float16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the forward pass."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device, self._dtype)

    def outputs(self, outputs: Tensor) -> Tensor:
        """The outputs of the model in the precision of the loss, which is never rounded."""
        return outputs if self._dtype is None else outputs.float()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient to ``.grad``, multiplied by the scale."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def state_dict(self) -> dict[str, Any]:
        """The scale and its history; empty without a scale."""
        return self.scaler.state_dict() if self.scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state)


FULL = Precision()
"""Nothing is rounded."""


def add_gradient(
    model: Callable[..., Tensor],
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
        precision: rounding of the forward pass; its scale is left on the gradients.

    Returns:
        loss and right answers (None where the task has no such notion), scalars still on the device.
    """
    inputs, targets = plain(batch)
    size = batch_size(inputs, targets)
    piece = min(microbatch or size, size)
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    for start in range(0, size, piece):
        stop = min(start + piece, size)
        part, labels = cut((inputs, targets), size, start, stop) if piece < size else (inputs, targets)
        with precision.autocast():
            outputs = precision.outputs(call(model, part))
        loss = task.loss(outputs, labels)
        if piece < size:
            loss = loss * ((stop - start) / size)
        precision.backward(loss)
        losses.append(loss.detach())
        correct = task.correct(outputs.detach(), labels)
        if correct is not None:
            hits.append(correct)
    return _sum(losses), _sum(hits) if hits else None


def _sum(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).sum()


class TrainingStep:
    """Makes the training steps of a run.

    Args:
        model: the network; its parameters are changed in place.
        task: its loss and its notion of a right answer.
        optimizer: makes the steps.
        recipe: the options the optimizer was built from; it knows the arguments of a step.
        world: the processes that share every batch.
        microbatch: samples per forward and backward pass; None: the whole batch.
        precision: rounding of the passes.
        compiled: whether the passes go through ``torch.compile``, from the first one on.
        clip_norm: the longest gradient, over all parameters and processes; None: no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: torch.optim.Optimizer,
        recipe: OptimizerRecipe,
        world: World,
        *,
        microbatch: int | None = None,
        precision: Precision = FULL,
        compiled: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        self._model = model
        self._network: Callable[..., Tensor] = torch.compile(model) if compiled else model
        self._task = task
        self._optimizer = optimizer
        self._recipe = recipe
        self._world = world
        self._microbatch = microbatch
        self.precision = precision
        self._clip_norm = clip_norm
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def __call__(self, batch: Batch) -> StepResult:
        """Make one step of the optimizer on ``batch``, of which this process computes its share.

        An optimizer may evaluate the loss several times in a step, as L-BFGS does; right answers are those of
        the first evaluation.
        """
        share = self._world.share(batch)
        samples = batch_size(*batch)
        rows = samples if share is batch else batch_size(*share)
        counts: list[Tensor | None] = []

        def evaluate() -> Tensor:
            """The mean loss on the whole batch, with its gradient in ``.grad``."""
            self._optimizer.zero_grad(set_to_none=True)
            loss, correct = add_gradient(self._network, self._task, share, self._microbatch, self.precision)
            loss, correct = self._world.combine(self._model, loss, correct, rows)
            counts.append(correct)
            if self.precision.scaler is None:
                self._clip()
            return loss

        scaler = self.precision.scaler
        if scaler is None:
            loss = self._recipe.step(self._optimizer, evaluate, share)
        else:
            loss = evaluate()
            if self._clip_norm is not None:
                scaler.unscale_(self._optimizer)
                self._clip()
            scaler.step(self._optimizer)
            scaler.update()
        return StepResult(loss, counts[0] if counts else None, samples)

    def _clip(self) -> None:
        """Shorten the gradient to the limit; the device decides, and the host does not wait for it."""
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
