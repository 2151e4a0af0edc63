"""The second moment of the patches of a convolution, without the patches.

With patches x̄_p of entries x[c, p_y + u, p_x + w] (row u and column w of the kernel), Σ_p x̄_p x̄_pᵀ needs the
products of image rows y = p_y + u and y + τ at every position p_x. Each is taken once, for every lag τ below
the height k of the kernel, and serves all u: the sum over p_y is a sum of the products of rows over a window.
That is H/(H − k + 1)/k of the multiplications of the product of the patches, and a k-th of their memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnewton.optim.kfac.kronecker_blocks import PATCH_NUMBERS, Module, padded, piece_size


def applies(module: Module, inputs: Tensor) -> bool:
    """Whether the kernel moves row by row over images, is more than a row, and the products are few."""
    if not isinstance(module, nn.Conv2d) or inputs.dim() != 4 or module.kernel_size[0] == 1:
        return False
    features = module.in_channels * module.kernel_size[1]
    numbers = 2 * inputs.shape[2] * module.kernel_size[0] * features**2  # padding at most doubles the height
    return module.stride[0] == module.dilation[0] == 1 and numbers <= PATCH_NUMBERS


def patch_moments(module: nn.Conv2d, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_p x̄_p x̄_pᵀ and Σ_p x̄_p over all positions of all samples.

    Args:
        module: a layer for which :func:`applies`.
        inputs: its input, (N, C, H, W).

    Returns:
        Matrices (fan_in, fan_in) and (fan_in,), in float32 at least.
    """
    inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    images = padded(module, inputs)
    channels, height, width = images.shape[1:]
    size_y, size_x = module.kernel_size
    window = height - size_y + 1
    positions = (width - module.dilation[1] * (size_x - 1) - 1) // module.stride[1] + 1
    features = channels * size_x
    products = images.new_zeros(height, features, size_y * features)
    sums = images.new_zeros(height, features)
    for some in images.split(piece_size(features * height * positions)):
        lines = _lines(some, module, positions)
        numbers = lines.shape[2]
        # row y beside the rows y, y + 1, … below it, which overlap: a view
        shape, strides = (height, size_y * features, numbers), (features * numbers, numbers, 1)
        products.baddbmm_(lines[:height], lines.as_strided(shape, strides).transpose(1, 2))
        sums += lines[:height].sum(2)
    by_lag = products.view(height, features, size_y, features)
    kernel = (channels, size_y, size_x)
    second = images.new_empty(*kernel, *kernel)
    first = images.new_empty(kernel)
    for u in range(size_y):
        first[:, u] = sums[u : u + window].sum(0).view(channels, size_x)
        for v in range(u, size_y):
            block = by_lag[u : u + window, :, v - u].sum(0)
            second[:, u, :, :, v] = block.view(channels, size_x, channels, size_x)
            if v > u:
                second[:, v, :, :, u] = block.T.reshape(channels, size_x, channels, size_x)
    return second.view(module.weight[0].numel(), -1), first.flatten()


def _lines(images: Tensor, module: nn.Conv2d, positions: int) -> Tensor:
    """The numbers under one row of the kernel, (H + k − 1, C · kernel width, N · positions); at the end 0."""
    samples, channels, height, _ = images.shape
    size_y, size_x = module.kernel_size
    by_sample, by_channel, by_row, by_column = images.stride()
    shape = (height, channels, size_x, samples, positions)
    strides = (
        by_row,
        by_channel,
        by_column * module.dilation[1],
        by_sample,
        by_column * module.stride[1],
    )
    lines = images.new_zeros(height + size_y - 1, channels * size_x, samples * positions)
    lines[:height].view(shape).copy_(images.as_strided(shape, strides, images.storage_offset()))
    return lines
