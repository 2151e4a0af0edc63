"""Learning problems: input and output shapes, the loss, and how correct answers are counted.

A data set poses a task and a network is built for it; a task knows neither.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Task(ABC):
    """Shapes and loss of a learning problem.

    Attributes:
        input_shape: shape of one input without the batch axis, such as (3, 32, 32); () where there is none.
        outputs: numbers the model must return per sample (classes, or target dimensions).
        likelihood: the distribution whose negative log-likelihood the loss is, up to a factor; None for none.
    """

    likelihood: ClassVar[str | None] = None

    input_shape: tuple[int, ...]
    outputs: int

    @property
    def input_size(self) -> int:
        """How many numbers one input holds."""
        return math.prod(self.input_shape)

    @property
    def answers(self) -> int:
        """How many answers a sample asks for, of which :meth:`correct` counts the right ones."""
        return 1

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the batch, a scalar."""

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Number of correct answers in the batch, a scalar; None where the task has no such notion."""
        return None


@dataclass(frozen=True)
class Classification(Task):
    """One label out of ``outputs`` classes; cross-entropy. Targets: (N,) int64."""

    likelihood: ClassVar[str | None] = "categorical"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits (N, outputs)."""
        return F.cross_entropy(outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Number of samples whose largest logit is their label."""
        return (outputs.argmax(dim=1) == targets).sum()


@dataclass(frozen=True)
class TokenClassification(Task):
    """One label out of ``outputs`` classes for each of T tokens; inputs and targets: (N, T) int64.

    The loss is the mean over tokens. All samples have the same T, so it is the mean over samples too: parts
    of a batch are joined by their numbers of samples, as for any task.

    Attributes:
        symbols: kinds of input tokens; the inputs are 0 … symbols − 1.
    """

    likelihood: ClassVar[str | None] = "categorical_last"

    symbols: int

    @property
    def answers(self) -> int:
        """T, a label for each token."""
        return self.input_size

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits (N, T, outputs) over samples and tokens."""
        shares = F.log_softmax(outputs, dim=-1)  # of the outputs as they are: it shows the likelihood
        return F.nll_loss(shares.flatten(0, 1), targets.flatten())

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Number of tokens whose largest logit is their label."""
        return (outputs.argmax(dim=-1) == targets).sum()


@dataclass(frozen=True)
class Regression(Task):
    """``outputs`` real targets; mean squared error. Targets: (N, outputs)."""

    likelihood: ClassVar[str | None] = "gaussian"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over samples and targets."""
        return F.mse_loss(outputs, targets)


@dataclass(frozen=True)
class Reconstruction(Task):
    """The target is the input, in [0, 1]; binary cross-entropy. Targets: (N, outputs)."""

    likelihood: ClassVar[str | None] = "bernoulli"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy of logits (N, outputs) over samples and pixels."""
        return F.binary_cross_entropy_with_logits(outputs, targets)


@dataclass(frozen=True)
class Minimisation(Task):
    """A function without data: the model returns its own value."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The value itself (its mean, where the model returns several)."""
        return outputs.mean()
