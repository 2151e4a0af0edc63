"""The statistics of a layer: sums over the samples of a step, and their running averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.backend import sum_over_processes, world_size
from gnewton.optim.kfac.kronecker_blocks import Layer, Module, rows
from gnewton.optim.kfac.layer_gradient import Parts
from gnewton.optim.kfac.patch_moments import applies, patch_moments

_SQUARES_NUMBERS = 2**25
"""Most numbers in the gradients of single samples that are held at once."""


@dataclass(frozen=True)
class Basis:
    """Orthogonal matrices; gradients of single samples are squared in the basis of their columns (EKFAC)."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Rows:
    """The matrix factor · Σ_r x_r x_rᵀ, kept as its rows until it is added to an average.

    Attributes:
        rows: x, (R, n).
        factor: a positive number.
    """

    rows: Tensor
    factor: float

    def trace(self) -> Tensor:
        """The trace, a scalar."""
        return self.rows.square().sum() * self.factor


class Sums:
    """Sums over all positions of all samples of a layer since the last step.

    The rows of a single call of a linear layer in a single process on the CPU stay as they are, if they are
    few: products of matrices can then be added to the averages as they are made, in one pass over memory.

    Attributes:
        squares: Σ_n (Q_Gᵀ ∇W_n Q_A)², entry by entry: (outputs, inputs); None without a basis.
        rows: number of positions in all samples.
        trace: Σ_r g_r t_r, (outputs,), as :meth:`traced` has it of the gradient of a layer; None for a
            convolution without bias.
    """

    def __init__(self, layer: Layer, basis: Basis | None) -> None:
        weight = layer.weight.detach()
        self._kind: dict[str, Any] = {
            "dtype": torch.promote_types(weight.dtype, torch.float32),
            "device": weight.device,
        }
        self._layer = layer
        self._basis = basis
        self._a: Tensor | None = None
        self._g: Tensor | None = None
        self._pending: tuple[Tensor, Tensor] | None = None
        self.squares = None if basis is None else self._zeros(layer.outputs, layer.inputs)
        self.rows = 0
        known = layer.bias is not None or isinstance(layer.modules[0], nn.Linear)
        self.trace = self._zeros(layer.outputs) if known else None

    def add(self, module: Module, inputs: Tensor, gradient: Tensor, samples: int) -> None:
        """Add one call of ``module``: its inputs and the gradient with respect to its outputs."""
        features = self._layer.outputs
        total = gradient.numel() // features
        positions = total // samples if samples and total % samples == 0 else 1
        self.rows += total
        if self._basis is None and applies(module, inputs):
            self._add_patches(module, inputs, gradient)  # type: ignore[arg-type]
            return
        waits = self.rows == total and self._may_wait(module, total)
        for x, g in rows(module, inputs, gradient):
            self._add_trace(x, g)
            if waits:
                self._pending = self._extended(x), g.clone()  # copies: others may write to these tensors
            else:
                self._multiply(x, g)
            if self._basis is not None and self.squares is not None:
                self._add_squares(self._basis, x, g, positions)

    def second_moments(
        self, of_a: float | Tensor, of_g: float | Tensor
    ) -> tuple[Tensor | Rows, Tensor | Rows]:
        """of_a · Σ ā āᵀ of the inputs, with a 1 appended if there is a bias, and of_g · Σ g gᵀ of the
        gradients with respect to the outputs: (inputs, inputs) and (outputs, outputs).

        The matrices are those of this object, which is not to be used any more.
        """
        if self._pending is not None:
            x, g = self._pending
            return Rows(x, float(of_a)), Rows(g, float(of_g))
        a, g = self.matrices()
        return a.mul_(of_a), g.mul_(of_g)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Σ ā āᵀ and Σ g gᵀ."""
        if self._pending is not None:
            (x, g), self._pending = self._pending, None
            self._multiply(x[:, : self._layer.fan_in], g)
        if self._a is None or self._g is None:
            self._a = self._zeros(self._layer.inputs, self._layer.inputs)
            self._g = self._zeros(self._layer.outputs, self._layer.outputs)
        return self._a, self._g

    def traced(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The gradient of the bias, or without one the sums over the rows of that of the weight."""
        return weight.flatten(1).sum(1) if bias is None else bias

    def _add_trace(self, x: Tensor, g: Tensor) -> None:
        if self.trace is not None:
            self.trace += g.sum(0) if self._layer.bias is not None else x.sum(1) @ g

    def _may_wait(self, module: Module, total: int) -> bool:
        device: torch.device = self._kind["device"]
        small = total <= min(self._layer.inputs, self._layer.outputs)
        return small and isinstance(module, nn.Linear) and device.type == "cpu" and world_size() == 1

    def _extended(self, x: Tensor) -> Tensor:
        if self._layer.bias is None:
            return x.clone()
        return torch.cat([x, x.new_ones(len(x), 1)], dim=1)

    def _multiply(self, x: Tensor, g: Tensor) -> None:
        sum_a, sum_g = self.matrices()
        fan_in = self._layer.fan_in
        sum_a[:fan_in, :fan_in].addmm_(x.T, x)
        if self._layer.bias is not None:
            self._add_ones(x.sum(0), len(x))
        sum_g.addmm_(g.T, g)

    def _add_patches(self, module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> None:
        sum_a, sum_g = self.matrices()
        fan_in = self._layer.fan_in
        second, first = patch_moments(module, inputs)
        sum_a[:fan_in, :fan_in] += second
        if self._layer.bias is not None:
            self._add_ones(first, gradient.numel() // self._layer.outputs)
        g = gradient.to(sum_g.dtype).transpose(0, 1).reshape(self._layer.outputs, -1)
        if self.trace is not None:
            self.trace += g.sum(1)
        sum_g.addmm_(g, g.T)

    def _add_ones(self, column: Tensor, count: int) -> None:
        """The part of A that the 1 in ā makes; ``column`` is the sum of the rows."""
        sum_a, fan_in = self.matrices()[0], self._layer.fan_in
        sum_a[fan_in, :fan_in] += column
        sum_a[:fan_in, fan_in] += column
        sum_a[fan_in, fan_in] += count

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, **self._kind)

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

    a: Tensor | Rows
    g: Tensor | Rows
    squares: Tensor | None


UNSCALED = 2.0**-8
"""A gradient shorter than this share of what the backward pass made was scaled back by a ``GradScaler``, with
a scale that starts at 2¹⁶; clipping and the mean over processes shorten it less."""


def scaled_back(pending: Mapping[Layer, Sums], gradients: Mapping[Layer, Parts]) -> Tensor | float:
    """The factor by which gradients were scaled back after the backward pass, a scalar on the device; else 1.

    Args:
        pending: the sums of layers, of the gradients in that pass.
        gradients: the gradients of their parameters by now.
    """
    before, after = [], []
    for layer, sums in pending.items():
        if layer in gradients and sums.trace is not None:
            before.append(sums.trace)
            after.append(sums.traced(*gradients[layer]).to(sums.trace.dtype))
    if not before:
        return 1.0
    ratio = torch.cat(after).norm() / torch.cat(before).norm()
    return torch.where(ratio < UNSCALED, ratio, 1.0)


def moments(
    pending: Mapping[Layer, Sums], samples: int, scales: Sequence[float | Tensor], reference_scaling: bool
) -> dict[Layer, Moments]:
    """Turn the sums of a step into means, over all processes.

    With N samples, S positions each and per-sample gradients ĝ = N g:
    A = (1/N) Σ ā āᵀ and G = (1/(N S)) Σ ĝ ĝᵀ, squares (1/N) Σ_n (…)².

    Args:
        pending: the sums of each layer; they are used up. With several processes every one of them must
            have sums, perhaps of nothing, of the same layers.
        samples: N in this process; with a single process > 0.
        scales: ĝ/g of each layer, the factor on the gradients in its sums.
        reference_scaling: divide A by S² and multiply G by S², as the preset ``reference`` has it.
    """
    squares: list[Any] = [scale**2 for scale in scales]
    total: float | Tensor = float(samples)
    counts: list[Any] = [sums.rows for sums in pending.values()]
    if world_size() > 1:  # each process scales gradients by its own number of samples
        total, *counts = _join(list(pending.values()), samples, squares)
        squares = [1.0] * len(squares)
    means = {}
    for (layer, sums), count, square in zip(pending.items(), counts, squares, strict=True):
        reference = (count / total) ** 2 if reference_scaling else 1.0
        a, g = sums.second_moments(1 / (total * reference), square * reference / count)
        of_gradients = sums.squares.mul_(square / total) if sums.squares is not None else None
        means[layer] = Moments(a, g, of_gradients)
    return means


def _join(pending: Sequence[Sums], samples: int, squares: Sequence[Any]) -> list[Tensor]:
    """Add up the sums of all processes, in place, by one all-reduce.

    Args:
        squares: of each layer, factor on the squares of the gradients of this process.

    Returns:
        The number of samples in all processes, and those of the positions in the calls of each layer.
    """
    parts: list[Tensor] = []
    for sums, square in zip(pending, squares, strict=True):
        a, g = sums.matrices()
        parts += [a, g.mul_(square)]
        if sums.squares is not None:
            parts.append(sums.squares.mul_(square))
    numbers = [samples, *(sums.rows for sums in pending)]
    *joined, totals = sum_over_processes([*parts, parts[0].new_tensor(numbers)])
    for part, sum_of_all in zip(parts, joined, strict=True):
        part.copy_(sum_of_all)
    return list(totals)


class Factors:
    """The running averages M ← decay·M + (1 − decay)·M_new of A and G of one layer.

    They start from the first moments, or from the identity. Moments that are not finite change nothing; on
    devices other than the CPU this is decided there, so the host never waits.

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
        finite = torch.isfinite(_trace(new.a) + _trace(new.g))
        pairs = ((self.a, new.a), (self.g, new.g))
        if self.a.device.type == "cpu":  # passes over memory dominate, and reading the flags is free
            if finite:
                weight = 1 - self._decay * float(self.seen)  # all of the first moments
                for average, moment in pairs:
                    _blend(average, moment, weight)
        else:
            share = 1 - self._decay * self.seen.to(self.a.dtype)
            for average, moment in pairs:
                assert isinstance(moment, Tensor)  # rows wait on the CPU alone
                average.lerp_(torch.where(finite, moment, average), share)
        self.seen = self.seen | finite
        return finite

    def state(self) -> dict[str, Tensor]:
        """The averages, and whether there is anything in them."""
        return {"a": self.a, "g": self.g, "seen": self.seen}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the value of :meth:`state`."""
        self.a, self.g, self.seen = state["a"], state["g"], state["seen"]


def _trace(moment: Tensor | Rows) -> Tensor:
    return moment.trace() if isinstance(moment, Rows) else moment.diagonal().sum()


def _blend(average: Tensor, moment: Tensor | Rows, weight: float) -> None:
    """average ← (1 − weight) · average + weight · moment, in place and in one pass over it."""
    if isinstance(moment, Rows):
        rows = moment.rows
        average.addmm_(rows.T, rows, beta=1 - weight, alpha=weight * moment.factor)
    else:
        average.lerp_(moment, weight)
