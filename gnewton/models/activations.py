"""The activations a network may use, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Name on the command line -> class of torch.nn. Names only, so that listing options needs no torch.
ACTIVATIONS: dict[str, str] = {
    "identity": "Identity",
    "tanh": "Tanh",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
    "elu": "ELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "softplus": "Softplus",
}


def activation(name: str) -> nn.Module:
    """A new module for the activation ``name``, a key of :data:`ACTIVATIONS`; never in place."""
    from torch import nn

    module: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return module
