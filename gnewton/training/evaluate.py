"""Evaluation of a model on a split, and the average of its weights that may be evaluated instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.data import Batch, DataSet, Split
from gnewton.errors import InputError
from gnewton.optim.bound_optimizer import put_back
from gnewton.optim.options import OptimizerRecipe
from gnewton.summary.batch import batch_size as samples_of
from gnewton.summary.batch import call, plain
from gnewton.tasks import Task
from gnewton.training.resources import memory_suffices
from gnewton.training.settings import Evaluation
from gnewton.training.world import World


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
        for batch in split.in_order(batch_size, limit):
            inputs, targets = _pair(batch)
            outputs = call(model, inputs)
            losses.append(task.loss(outputs, targets))
            sizes.append(samples_of(inputs, targets))
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


def _pair(batch: Any) -> Batch:
    """The batch, if it is a pair of inputs, one tensor or several, and a tensor of targets."""
    fault = _fault(batch)
    if fault is None:
        return plain(batch)
    raise InputError(
        "data: a batch of the trainer must be (inputs, targets), a tensor (or a tuple or dictionary of "
        f"tensors) and a tensor, not {fault}; "
        "for batches of another form write a loop of your own, with GroupedNewton(…, forward=…)"
    )


def _fault(batch: Any) -> str | None:
    """What makes the batch no pair of tensors; None: it is one."""
    if not isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__}"
    if len(batch) != 2:
        return f"a {type(batch).__name__} of {len(batch)}"
    inputs, targets = batch
    entries: dict[str, Any] = {"inputs": inputs}
    if isinstance(inputs, Mapping):
        entries = {f"inputs[{key!r}]": value for key, value in inputs.items()}
    elif isinstance(inputs, (tuple, list)):
        entries = {f"inputs[{position}]": value for position, value in enumerate(inputs)}
    entries["targets"] = targets
    wrong = (name for name, value in entries.items() if not torch.is_tensor(value))
    return next((f"a {type(entries[name]).__name__} as {name}" for name in wrong), None)


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


class Evaluator:
    """Evaluates a model while it is trained: at its weights, their average or where the optimizer says.

    Args:
        model, data, optimizer, recipe: of the run.
        options: when and on what to evaluate.
        average: of the weights; None: there is none.
        world: the processes that share every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        optimizer: torch.optim.Optimizer,
        recipe: OptimizerRecipe,
        options: Evaluation,
        average: WeightAverage | None,
        world: World,
    ) -> None:
        self._model, self._data, self._options = model, data, options
        self._optimizer, self._recipe, self._average = optimizer, recipe, average
        self._world = world
        self._device = next(model.parameters()).device

    @property
    def elsewhere(self) -> bool:
        """Whether the parameters that are evaluated are others than those of training."""
        return self._recipe.evaluates_elsewhere or self._average is not None

    def in_force(self) -> AbstractContextManager[None]:
        """Within the block the parameters are those at which the model is evaluated."""
        if self._average is not None:
            return self._average.in_force()
        return self._recipe.evaluating(self._optimizer)

    def start_loss(self, most: int, between: Callable[[], None]) -> float | None:
        """The loss on at most ``most`` training samples, at the parameters of training."""
        size, limit = self._options.batch_size, min(most, self._options.max_samples or most)
        with memory_suffices(self._device, "an evaluation", f"trainer.evaluation.batch_size={size}"):
            return evaluate(self._model, self._data.task, self._data.train, size, limit, between).loss

    def scores(self, between: Callable[[], None]) -> dict[str, Score]:
        """The scores of all splits.

        ``between`` is called after each batch if the parameters are those of training, else afterwards.
        """
        self._world.share_buffers(self._model)
        if not self.elsewhere:
            return evaluate_splits(self._model, self._data, self._options, between)
        with self.in_force():
            self._world.share_buffers(self._model)  # those of the average too differ between processes
            scores = evaluate_splits(self._model, self._data, self._options)
        between()
        return scores


class WeightAverage:
    """The average of θ_1 … θ_k, the weights after each training step; a step earlier counts d times as much.

    Without the pull to zero of an average that starts from nothing (Kingma, Ba 2015, section 3):

        θ̄_k = Σ_j d^(k−j) θ_j / Σ_j d^(k−j) = θ̄_(k−1) + w_k (θ_k − θ̄_(k−1)),   w_k = (1 − d) / (1 − d^k)

    so that θ̄_1 = θ_1, and the first 1 / (1 − d) steps are averaged about evenly. The initial weights are not
    in it. Floating-point buffers, such as the running statistics of batch normalisation, are averaged alike;
    counts are the latest ones. Nothing waits for the device.

    Args:
        model: the network in training. Its ``state_dict`` is averaged.
        decay: d, in (0, 1).

    Attributes:
        count: k, the training steps in the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self._model = model
        self._values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after one more training step into the average."""
        self.count += 1
        weight = (1 - self.decay) / (1 - self.decay**self.count)
        averages, latest = [], []
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                averages.append(self._values[name])
                latest.append(value)
            else:
                self._values[name].copy_(value)
        torch._foreach_lerp_(averages, latest, weight)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within the block the model has the average; then it has its own weights again, bit for bit.

        Before the first training step there is no average, and the model keeps its weights.
        """
        if self.count == 0:
            yield
            return
        current = self._model.state_dict()
        with put_back(current.values()):
            self._copy(self._values, current)
            yield

    def state_dict(self) -> dict[str, Any]:
        """``count``, and the average as a ``state_dict`` of the model: ``values``."""
        return {"count": self.count, "values": dict(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.count = int(state["count"])
        self._copy(state["values"], self._values)

    @staticmethod
    @torch.no_grad()
    def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        for name, value in target.items():
            value.copy_(source[name])
