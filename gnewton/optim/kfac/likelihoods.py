"""Random vectors at the outputs of a model, with the curvature of the loss as covariance (the true Fisher).

For the loss ℓ_n of sample n as a function of the outputs f_n, a sampler draws δ_n with E[δ_n] = 0 and
E[δ_n δ_nᵀ] = ∂²ℓ_n/∂f_n². Where ℓ is a negative log-likelihood, δ_n = ∂ℓ(f_n, ŷ)/∂f_n with a label ŷ drawn
from the model itself has this property. A loss that is a mean over K outputs or positions of a sample is not
a negative log-likelihood but 1/K of one; the factors 1/√K below give its curvature the scale of the loss.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gnewton.backend import rank
from gnewton.errors import InputError
from gnewton.options import did_you_mean

Sampler = Callable[[Tensor, torch.Generator], Tensor]
"""(outputs, generator) -> δ, of the shape of the outputs, with samples along the first axis."""


def categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """δ = softmax(f) − e_ŷ for mean cross-entropy.

    Args:
        logits: (N, C), or (N, C, …) with a label at each of P positions; classes along axis 1, as in
            ``torch.nn.functional.cross_entropy``.
        generator: random generator of the labels, on the device of ``logits``.

    Returns:
        δ/√P, of the shape of ``logits``.

    Raises:
        InputError: if there is no axis of classes.
    """
    if logits.dim() < 2:
        raise InputError(f"likelihood=categorical: the outputs must be (N, C, …), not {tuple(logits.shape)}")
    # the Gumbel trick: unlike torch.multinomial it never waits for the device and takes any logits
    noise = torch.empty_like(logits).exponential_(generator=generator).log_()
    labels = (logits - noise).argmax(dim=1, keepdim=True)
    classes = torch.arange(logits.shape[1], device=logits.device)
    classes = classes.view(1, -1, *[1] * (logits.dim() - 2))
    delta = torch.softmax(logits, dim=1).sub_((classes == labels).to(logits.dtype))
    positions = logits[0, 0].numel() if len(logits) else 1
    return delta if positions == 1 else delta.div_(math.sqrt(positions))


def categorical_last(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The same for logits (N, …, C), such as those of a sequence model: classes along the last axis."""
    return categorical(logits.movedim(-1, 1), generator).movedim(1, -1)


def gaussian(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """δ ~ N(0, 2/K) for the mean squared error over N samples of K numbers, whose curvature is 2/K."""
    delta = torch.empty_like(outputs).normal_(generator=generator)
    return delta.mul_(math.sqrt(2 / _numbers(outputs)))


def bernoulli(logits: Tensor, generator: torch.Generator) -> Tensor:
    """δ = (sigmoid(f) − b̂)/√K for the mean binary cross-entropy over N samples of K logits."""
    probability = torch.sigmoid(logits)
    drawn = torch.empty_like(logits).uniform_(generator=generator) < probability
    return probability.sub_(drawn.to(logits.dtype)).div_(math.sqrt(_numbers(logits)))


SAMPLERS: dict[str, Sampler] = {
    "categorical": categorical,
    "categorical_last": categorical_last,
    "gaussian": gaussian,
    "bernoulli": bernoulli,
}


def sampler(likelihood: str | Sampler) -> Sampler:
    """The sampler with this name, or the function itself.

    Raises:
        InputError: for an unknown name.
    """
    if callable(likelihood):
        return likelihood
    if likelihood not in SAMPLERS:
        names = ", ".join(SAMPLERS)
        hint = did_you_mean(str(likelihood), SAMPLERS)
        raise InputError(f"likelihood={likelihood}: must be one of {names}, or a function{hint}")
    return SAMPLERS[likelihood]


def _numbers(outputs: Tensor) -> int:
    return max(outputs.numel() // max(len(outputs), 1), 1)


class LabelStream:
    """The random stream of drawn labels: a generator per draw, seeded by (seed, process, number of the draw).

    Torch's own stream is not touched.

    Args:
        seed: seed of the stream; None: torch's initial seed.

    Attributes:
        seed: seed of the stream.
        count: number of draws so far.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = torch.initial_seed() if seed is None else seed
        self.count = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def next(self, device: torch.device) -> torch.Generator:
        """The generator for the next draw, valid until the following draw."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        key = f"{self.seed},{rank()},{self.count}"
        self.count += 1
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        return self._generators[device].manual_seed(seed)
