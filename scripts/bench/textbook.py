"""The summary as one writes it down first: a yardstick for ``scripts/bench/summary.py``, not for use.

One backward pass gives the gradient with its graph. For every group s in turn, ⟨∇L, P_s u⟩ is differentiated
again for a row of H̄ (S double backward passes, each with a graph of its own), and the diagonal entry of that
row once more, by the parameters of s, for D3_s (S triple ones). The project's reference engine does the same
with more care for what is zero or not needed; the ratios to both are stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def textbook_summary(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    direction: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """(ḡ, H̄, D3) of the partition that has a group for every tensor; shapes (S,), (S, S), (S,)."""
    parameters = list(model.parameters())
    u = [direction[name] for name, _ in model.named_parameters()]
    gradient = torch.autograd.grad(loss_fn(model(inputs), targets), parameters, create_graph=True)
    first = torch.stack([(a * b).sum() for a, b in zip(gradient, u, strict=True)])
    rows, thirds = [], []
    for s in range(len(u)):
        twice = _differentiate(first[s], parameters)
        row = torch.stack([(a * b).sum() for a, b in zip(twice, u, strict=True)])
        (thrice,) = _differentiate(row[s], parameters[s : s + 1], last=True)
        rows.append(row.detach())
        thirds.append((thrice * u[s]).sum().detach())
    return first.detach(), torch.stack(rows), torch.stack(thirds)


def _differentiate(scalar: Tensor, parameters: list[nn.Parameter], last: bool = False) -> list[Tensor]:
    if not scalar.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    grads = torch.autograd.grad(
        scalar, parameters, create_graph=not last, retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
