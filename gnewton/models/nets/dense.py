"""Chains of linear layers: perceptrons, auto-encoders, and the classifiers of other networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import nn

from gnewton.models.activations import activation

NamedLayers = Iterator[tuple[str, nn.Module]]


def mlp(inputs: int, widths: Sequence[int], outputs: int, act: str) -> nn.Sequential:
    """``hidden1`` …, ``output``: (N, …) of ``inputs`` numbers each -> (N, outputs)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    layers.update(hidden_layers(inputs, widths, act, "hidden"))
    layers["output"] = nn.Linear([inputs, *widths][-1], outputs)
    return nn.Sequential(layers)


def autoencoder(inputs: int, widths: Sequence[int], code: int, act: str) -> nn.Sequential:
    """``encoder1`` …, linear ``code``, ``decoder1`` …, ``output``: (N, …) -> (N, inputs)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    layers.update(hidden_layers(inputs, widths, act, "encoder"))
    layers["code"] = nn.Linear([inputs, *widths][-1], code)
    layers.update(hidden_layers(code, widths[::-1], act, "decoder"))
    layers["output"] = nn.Linear([code, *widths[::-1]][-1], inputs)
    return nn.Sequential(layers)


def hidden_layers(inputs: int, widths: Sequence[int], act: str, prefix: str) -> NamedLayers:
    """Linear layers ``prefix1``, ``prefix2`` … with their activations: (N, inputs) -> (N, widths[-1])."""
    for number, (before, after) in enumerate(zip([inputs, *widths], widths, strict=False), start=1):
        yield f"{prefix}{number}", nn.Linear(before, after)
        yield f"{prefix}{number}_{act}", activation(act)
