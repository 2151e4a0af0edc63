"""The layers of a model that K-FAC treats, and their inputs and output gradients as matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton.wrappers import named_parameters

Module = nn.Linear | nn.Conv1d | nn.Conv2d
_KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)
PATCH_NUMBERS = 2**26
"""Most numbers in the patches of a convolution that are made at once."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One Kronecker block: the weight of a linear or convolutional layer, with its bias if trained.

    Attributes:
        name: name of the module in the model.
        modules: the module, or all modules that share its weight (and bias).
        weight, bias: the model's own parameters; None if there is no bias or it is frozen.
        weight_name, bias_name: their names in the model.
    """

    name: str
    modules: tuple[Module, ...]
    weight: Tensor
    bias: Tensor | None
    weight_name: str
    bias_name: str | None

    @property
    def fan_in(self) -> int:
        """Number of inputs in the weighted sum of one output."""
        return self.weight[0].numel()

    @property
    def inputs(self) -> int:
        """Size of the input factor A: the fan-in, and 1 for the bias."""
        return self.fan_in + (self.bias is not None)

    @property
    def outputs(self) -> int:
        """Size of the output factor G."""
        return len(self.weight)


def find_layers(model: nn.Module, names: Sequence[str]) -> list[Layer]:
    """The layers of ``model`` whose weight is among the parameters ``names`` and that K-FAC can treat.

    These are Linear, Conv1d and Conv2d with one group, and subclasses with the same forward pass. A weight is
    not treated if it is parametrised (weight norm), without entries, shared with a module that does not share
    its bias, or part of ``nn.MultiheadAttention``.
    """
    named = {id(p): name for name, p in named_parameters(model).items()}
    wanted = {key for key, name in named.items() if name in set(names)}
    owners: dict[int, set[nn.Module]] = {}
    for module in model.modules():
        for p in module._parameters.values():
            if p is not None:
                owners.setdefault(id(p), set()).add(module)
    unseen = {  # attention multiplies by the weight of its last layer without calling it
        child
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.children()
    }
    blocks: dict[tuple[int, int | None], list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if _is_treated(module) and id(module.weight) in wanted and module not in unseen:
            bias = module._parameters.get("bias")
            key = (id(module.weight), None if bias is None else id(bias))
            blocks.setdefault(key, []).append((name, module))
    layers = []
    for (weight_id, bias_id), entries in blocks.items():
        modules = {module for _, module in entries}
        if owners[weight_id] != modules or (bias_id is not None and owners[bias_id] != modules):
            continue
        name, module = entries[0]
        with_bias = bias_id in wanted
        layers.append(
            Layer(
                name=name,
                modules=tuple(module for _, module in entries),  # type: ignore[misc]
                weight=module.weight,  # type: ignore[arg-type]
                bias=module.bias if with_bias else None,  # type: ignore[arg-type]
                weight_name=named[weight_id],
                bias_name=named[bias_id] if with_bias and bias_id is not None else None,
            )
        )
    return layers


def _is_treated(module: nn.Module) -> bool:
    return (
        any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _KINDS)
        and (weight := module._parameters.get("weight")) is not None
        and weight.numel() > 0
        and getattr(module, "groups", 1) == 1
    )


def batch_size(module: Module, inputs: Tensor) -> int:
    """The number of samples in an input of a layer: the length of its first axis, or 1 without batch axis."""
    of_a_sample = 1 if isinstance(module, nn.Linear) else len(module.kernel_size) + 1
    return len(inputs) if inputs.dim() > of_a_sample else 1


def rows(module: Module, inputs: Tensor, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The inputs of a call of ``module`` and the gradients of its outputs, position by position.

    Args:
        module: the layer.
        inputs: its input; every axis but that of the features holds samples or positions.
        gradient: the gradient of its output.

    Yields:
        Matrices (R, fan_in) and (R, outputs), with rows ordered by sample. The patches of a convolution are
        large, so they come in pieces of a few samples.
    """
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    inputs, gradient = inputs.to(dtype), gradient.to(dtype)
    if isinstance(module, nn.Linear):
        yield inputs.reshape(-1, inputs.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        return
    spatial = len(module.kernel_size)
    if inputs.dim() == spatial + 1:  # a single sample without the batch axis
        inputs, gradient = inputs.unsqueeze(0), gradient.unsqueeze(0)
    if spatial == 1:
        inputs, gradient = inputs.unsqueeze(2), gradient.unsqueeze(2)
    size = piece_size(module.weight[0].numel() * gradient[0, 0].numel())
    for x, g in zip(inputs.split(size), gradient.split(size), strict=True):
        yield _patches(module, x), g.transpose(0, 1).reshape(g.shape[1], -1).T


def _patches(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """The numbers under the kernel at each position: (N, C, H, W) -> (N·positions, C·kernel numbers).

    They are stored feature by feature: the copy then runs along rows of the image, several times faster than
    ``torch.nn.functional.unfold``.
    """
    kernel, stride, dilation = (_pair(t) for t in (module.kernel_size, module.stride, module.dilation))
    inputs = padded(module, inputs)
    samples, channels, *sides = inputs.shape
    positions = [
        (side - d * (k - 1) - 1) // s + 1
        for side, k, s, d in zip(sides, kernel, stride, dilation, strict=True)
    ]
    by_sample, by_channel, by_row, by_column = inputs.stride()
    shape = (channels, *kernel, samples, *positions)
    strides = (
        by_channel,
        by_row * dilation[0],
        by_column * dilation[1],
        by_sample,
        by_row * stride[0],
        by_column * stride[1],
    )
    return inputs.as_strided(shape, strides).reshape(module.weight[0].numel(), -1).T


def piece_size(numbers: int) -> int:
    """How many samples are taken at once, if the patches of one hold so many numbers."""
    return max(PATCH_NUMBERS // numbers, 1)


def padded(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """The input (N, C, H, W) with the padding of the layer, contiguous."""
    kernel, dilation = _pair(module.kernel_size), _pair(module.dilation)
    before_after = _padding(module, kernel, dilation)
    if any(before_after):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        flat = (
            inputs.squeeze(2) if isinstance(module, nn.Conv1d) else inputs
        )  # modes but zero know their axes
        made = F.pad(flat, before_after[: 2 * len(module.kernel_size)], mode=mode)
        inputs = made.unsqueeze(2) if isinstance(module, nn.Conv1d) else made
    return inputs.contiguous()


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _padding(
    module: nn.Conv1d | nn.Conv2d, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, ...]:
    """Left, right, top and bottom padding, in the order of ``torch.nn.functional.pad``."""
    if module.padding == "valid":
        return (0, 0, 0, 0)
    if module.padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        height, width = [(t // 2, t - t // 2) for t in total]
        return (*width, *height)
    sides = [int(side) for side in module.padding]
    if len(sides) == 1:
        return (sides[0], sides[0], 0, 0)
    return (sides[1], sides[1], sides[0], sides[0])
