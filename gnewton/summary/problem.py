"""A model, its loss and a partition, seen as one pure function of the parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from gnewton.errors import InputError
from gnewton.options import listing
from gnewton.partition import Partition

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Problem:
    """The loss as a pure function of parameters, buffers, inputs and targets.

    Attributes:
        model: the network; its trainable parameters are those of the partition.
        loss_fn: maps (outputs, targets) to a scalar.
        partition: S groups of trainable parameters.
    """

    model: nn.Module
    loss_fn: LossFunction
    partition: Partition

    def __post_init__(self) -> None:
        known = {name for name, p in self.model.named_parameters() if p.requires_grad}
        if known != set(self.partition.index):
            wrong = sorted(known ^ set(self.partition.index))
            raise InputError(f"summary: model and partition disagree about {listing(wrong)}")

    def parameters(self) -> dict[str, Tensor]:
        """Trainable parameters by name, tied ones once: detached, sharing memory with the model."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def constants(self) -> dict[str, Tensor]:
        """Frozen parameters and buffers by name: detached, sharing memory with the model."""
        fixed = {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        return fixed | {name: b.detach() for name, b in self.model.named_buffers()}

    def loss(
        self, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor], inputs: Any, targets: Any
    ) -> Tensor:
        """The scalar loss. Buffers that the model updates are updated inside ``constants``: pass copies."""
        outputs = functional_call(self.model, {**parameters, **constants}, (inputs,))
        loss = self.loss_fn(outputs, targets)
        if loss.numel() != 1:
            raise InputError(f"summary: the loss must be a scalar, got shape {tuple(loss.shape)}")
        return loss.reshape(())

    def check_direction(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The direction as detached tensors, one per trainable parameter.

        Raises:
            InputError: if a parameter has no direction, or one of another shape.
        """
        parameters = self.parameters()
        missing = [name for name in parameters if name not in direction]
        if missing:
            raise InputError(f"summary: the direction lacks {listing(missing)}")
        for name, p in parameters.items():
            if direction[name].shape != p.shape:
                raise InputError(
                    f"summary: the direction of '{name}' has shape {tuple(direction[name].shape)}, "
                    f"the parameter {tuple(p.shape)}"
                )
        return {name: direction[name].detach().to(p.dtype) for name, p in parameters.items()}

    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.model.parameters()).device


def batch_size(inputs: Any, targets: Any) -> int:
    """Number of samples: the length of the first tensor that has one; 1 for a model without data."""
    for leaf in pytree.tree_leaves((inputs, targets)):
        if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] > 0:
            return leaf.shape[0]
    return 1


@contextlib.contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Restore the random streams on leaving, however it is left; attention by differentiable kernels only."""
    on_cuda = device.type == "cuda"
    with (
        torch.random.fork_rng(devices=[device] if on_cuda else []),
        sdpa_kernel(SDPBackend.MATH),
        torch.enable_grad(),
    ):
        yield
