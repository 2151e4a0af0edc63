"""The statistics of a layer: sums over the samples of a step, and their running averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gnewton.backend import sum_over_processes, world_size
from gnewton.optim.kfac.kronecker_blocks import Layer, Module, rows

_SQUARES_NUMBERS = 2**25
"""Most numbers in the gradients of single samples that are held at once."""


@dataclass(frozen=True)
class Basis:
    """Orthogonal matrices; gradients of single samples are squared in the basis of their columns (EKFAC)."""

    inputs: Tensor
    outputs: Tensor


class Sums:
    """Sums over all positions of all samples of a layer since the last step.

    Attributes:
        a: Σ ā āᵀ of the inputs, with a 1 appended if there is a bias: (inputs, inputs).
        g: Σ g gᵀ of the gradients with respect to the outputs: (outputs, outputs).
        squares: Σ_n (Q_Gᵀ ∇W_n Q_A)², entry by entry: (outputs, inputs); None without a basis.
        rows: number of positions in all samples.
    """

    def __init__(self, layer: Layer, basis: Basis | None) -> None:
        weight = layer.weight.detach()
        kind = {
            "dtype": torch.promote_types(weight.dtype, torch.float32),
            "device": weight.device,
        }
        self._layer = layer
        self._basis = basis
        self.a = torch.zeros(layer.inputs, layer.inputs, **kind)  # type: ignore[call-overload]
        self.g = torch.zeros(layer.outputs, layer.outputs, **kind)  # type: ignore[call-overload]
        self.squares = None if basis is None else torch.zeros_like(self.a[:1]).repeat(layer.outputs, 1)
        self.rows = 0

    def add(self, module: Module, inputs: Tensor, gradient: Tensor, samples: int) -> None:
        """Add one call of ``module``: its inputs and the gradient with respect to its outputs."""
        fan_in = self._layer.fan_in
        weight_part = self.a[:fan_in, :fan_in]
        features = self._layer.outputs
        total = gradient.numel() // features
        positions = total // samples if samples and total % samples == 0 else 1
        for x, g in rows(module, inputs, gradient):
            weight_part.addmm_(x.T, x)
            if self._layer.bias is not None:
                column = x.sum(0)
                self.a[fan_in, :fan_in] += column
                self.a[:fan_in, fan_in] += column
                self.a[fan_in, fan_in] += len(x)
            self.g.addmm_(g.T, g)
            if self._basis is not None and self.squares is not None:
                self._add_squares(self._basis, x, g, positions)
        self.rows += total

    def _add_squares(self, basis: Basis, x: Tensor, g: Tensor, positions: int) -> None:
        assert self.squares is not None
        right = basis.inputs
        x = torch.addmm(right[-1], x, right[:-1]) if self._layer.bias is not None else x @ right
        g = g @ basis.outputs
        if positions == 1:
            self.squares.addmm_(g.square().T, x.square())
            return
        of_sample_x = x.reshape(-1, positions, x.shape[1])
        of_sample_g = g.reshape(-1, positions, g.shape[1])
        size = max(_SQUARES_NUMBERS // self.squares.numel(), 1)
        for some_x, some_g in zip(of_sample_x.split(size), of_sample_g.split(size), strict=True):
            self.squares += torch.bmm(some_g.transpose(1, 2), some_x).square_().sum(0)


@dataclass(frozen=True)
class Moments:
    """The moments of a layer in one step: A, G and, with a basis, the squares of its gradients."""

    a: Tensor
    g: Tensor
    squares: Tensor | None


def moments(
    pending: Mapping[Layer, Sums], samples: int, gradient_scale: float, reference_scaling: bool
) -> dict[Layer, Moments]:
    """Turn the sums of a step into means, over all processes.

    With N samples, S positions each and per-sample gradients ĝ = N g:
    A = (1/N) Σ ā āᵀ and G = (1/(N S)) Σ ĝ ĝᵀ, squares (1/N) Σ_n (…)².

    Args:
        pending: the sums of each layer.
        samples: N in this process.
        gradient_scale: ĝ/g, the factor on the gradients in the sums.
        reference_scaling: divide A by S² and multiply G by S², as the preset ``reference`` has it.
    """
    parts: list[Tensor] = []
    for sums in pending.values():
        parts += [sums.a, sums.g.mul_(gradient_scale**2)]
        if sums.squares is not None:
            parts.append(sums.squares.mul_(gradient_scale**2))
    total: float | Tensor = float(samples)
    if world_size() > 1:
        *parts, total = sum_over_processes([*parts, parts[0].new_tensor(samples)])
    means = {}
    remaining = iter(parts)
    for layer, sums in pending.items():
        positions = sums.rows / samples
        a, g = next(remaining).div_(total), next(remaining).div_(total * positions)
        if reference_scaling:
            a, g = a.div_(positions**2), g.mul_(positions**2)
        squares = next(remaining).div_(total) if sums.squares is not None else None
        means[layer] = Moments(a, g, squares)
    return means


class Factors:
    """The running averages M ← decay·M + (1 − decay)·M_new of A and G of one layer.

    They start from the first moments, or from the identity. Moments that are not finite change nothing; this
    is decided on the device, so the host never waits.

    Attributes:
        a, g: the averages.
        seen: whether there is anything in them, a boolean scalar on the device.
    """

    def __init__(self, layer: Layer, decay: float, identity: bool) -> None:
        weight = layer.weight.detach()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self._decay = decay
        start = torch.eye if identity else lambda size, **kind: torch.zeros(size, size, **kind)
        self.a: Tensor = start(layer.inputs, dtype=dtype, device=weight.device)
        self.g: Tensor = start(layer.outputs, dtype=dtype, device=weight.device)
        self.seen = torch.tensor(identity, device=weight.device)

    def average(self, new: Moments) -> Tensor:
        """Add the moments of a step.

        Returns:
            Whether they were finite, a boolean scalar on the device.
        """
        # |A_ij|² <= A_ii A_jj: the diagonals are finite exactly if the matrices are
        finite = torch.isfinite(new.a.diagonal().sum() + new.g.diagonal().sum())
        weight = 1 - self._decay * self.seen.to(self.a.dtype)  # all of the first moments
        for average, moment in ((self.a, new.a), (self.g, new.g)):
            average.lerp_(torch.where(finite, moment, average), weight)
        self.seen = self.seen | finite
        return finite

    def state(self) -> dict[str, Tensor]:
        """The averages, and whether there is anything in them."""
        return {"a": self.a, "g": self.g, "seen": self.seen}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the value of :meth:`state`."""
        self.a, self.g, self.seen = state["a"], state["g"], state["seen"]
