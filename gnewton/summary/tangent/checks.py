"""Checks of a program against the model, and of the two gradients of a summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnewton.summary.isolation import without_side_effects
from gnewton.summary.problem import Problem
from gnewton.summary.result import SummaryError
from gnewton.summary.tangent.passes import Passes, forward
from gnewton.summary.tangent.program import Program, TraceError

_FIDELITY = {torch.float64: 1e-9, torch.float32: 1e-4}  # of a gradient, relative
_AGREEMENT = {torch.float64: 1e-7, torch.float32: 1e-2}  # of a gradient entry, to its scale
_COARSE = 5e-2  # half precision
_ROUNDING = 16.0  # of the rounding errors of a gradient entry, which are estimates


def check_program(
    problem: Problem, program: Program, inputs: Any, targets: Any, *, nearby: bool = False
) -> None:
    """Compare loss and gradient of a program with those of the model.

    The comparison is made at the model's parameters or, with ``nearby``, at others close to them. There no
    gradient is zero because of values that a parameter happens to have, such as those of a last layer that
    starts at 0.

    A trace sees neither the backward pass of a custom ``autograd.Function`` nor choices of Python code that
    depend on more than shapes; this comparison detects both. It costs two gradients and a transfer to the
    host.

    Raises:
        TraceError: if they differ.
    """
    leaves = _nearby(problem) if nearby else problem.copied_parameters()
    constants = problem.constants()
    state = _random_state(problem.device())
    values = forward(program, leaves, pytree.tree_leaves((constants, inputs, targets)))
    traced = _gradients(values[program.loss], list(leaves.values()))
    _set_random_state(problem.device(), state)
    copies = pytree.tree_map_only(Tensor, torch.clone, (constants, inputs, targets))
    loss = problem.loss(leaves, *copies)
    eager = _gradients(loss, list(leaves.values()))
    norm = sum(
        (g.double().square().sum() for g in eager), torch.zeros((), device=loss.device, dtype=torch.float64)
    )
    tolerance = _FIDELITY.get(loss.dtype, _COARSE)
    wrong = torch.stack([(a - b).double().norm() for a, b in zip(traced, eager, strict=True)])
    gap = (values[program.loss].detach() - loss.detach()).double().abs()
    bad = (wrong > tolerance * norm.sqrt()) & (wrong > 0)
    report = torch.cat(
        [bad, (gap > tolerance * loss.detach().double().abs().clamp_min(1e-300)).reshape(1)]
    ).tolist()
    for name, is_bad in zip([*leaves, None], report, strict=True):
        if is_bad:
            quantity = "loss" if name is None else f"gradient of '{name}'"
            raise TraceError(
                f"the trace does not reproduce the model's {quantity}: a custom backward pass, or Python "
                "code that depends on more than the shapes of tensors"
            )


def _nearby(problem: Problem) -> dict[str, Tensor]:
    """Parameters at a tenth of their size from those of the model, in a fixed random direction."""
    generator = torch.Generator(problem.device()).manual_seed(0)  # the random streams stay where they are
    moved = {}
    for name, p in problem.parameters().items():
        noise = torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
        size = p.square().mean().sqrt() + 0.1
        moved[name] = (p + 0.1 * size * noise).requires_grad_()
    return moved


def eager_loss(problem: Problem, inputs: Any, targets: Any) -> Tensor:
    """The loss of the model on a batch, by an ordinary forward pass without side effects."""
    with without_side_effects(problem):
        copies = pytree.tree_map_only(Tensor, torch.clone, (problem.constants(), inputs, targets))
        return problem.loss(problem.copied_parameters(), *copies).detach()


def _gradients(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)]


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def disagreement(passes: Passes, dtype: torch.dtype) -> Tensor:
    """For each group, whether its two gradients differ by more than rounding: boolean, (S,), on the device.

    One is the inner product of adjoints with the direction, the other the tangent of the loss. They may
    differ by a share of the entry and of √(|H̄_ss| |L|), which has the same unit, and by a multiple of the
    rounding errors of the products in the sums, which do not vanish with the loss. Where the gradient of a
    group is 0 but for rounding (a bias before a batch normalisation), its adjoint is noise, and these do not
    show it: an entry below one unit of the coarsest type of the largest entry is not compared. If an entry
    is not finite, nothing is compared.
    """
    sums, slope = passes.sums, passes.slope
    curvature = sums.hessian if sums.diagonal else sums.hessian.diagonal()
    size = torch.maximum(sums.gradient.abs(), slope.abs())
    scale = size + (curvature * passes.loss).abs().sqrt()
    scale = torch.maximum(scale, 1e-3 * scale.max())
    allowed = _AGREEMENT.get(dtype, _COARSE) * scale + _ROUNDING * sums.gradient_noise
    above = size > sums.rounding.unit * scale.max()
    return above & ((sums.gradient - slope).abs() > allowed) & (scale + slope).isfinite().all()


def report_disagreement(bad: Tensor, names: Sequence[str]) -> None:
    """Raise an error if :func:`disagreement` is true for any group.

    Raises:
        SummaryError: naming the groups.
    """
    disagreeing = [name for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
    if disagreeing:
        raise SummaryError(
            "summary: the gradient by adjoints and the gradient by tangents disagree in "
            f"{', '.join(disagreeing)}: "
            "a rule of the tangent engine is wrong for this model; use engine='reference'"
        )
