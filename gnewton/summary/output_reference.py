"""The Gauss–Newton matrix by textbook differentiation: the reference for the fast engines, for every model.

The outputs z are differentiated along every group, ż^s = J P_s u, by differentiating v ↦ Jᵀv. The loss as a
function of the outputs alone is then differentiated twice: Ḡ_st = ⟨ż^s, ∇²ℓ(z) ż^t⟩. Parameters that the loss
reads directly count as outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnewton.errors import InputError
from gnewton.summary.cut import CutProblem, tangents_of
from gnewton.summary.group_parts import GroupDirections, check_carried
from gnewton.summary.isolation import without_side_effects
from gnewton.summary.problem import Request
from gnewton.summary.reference import gradient_noise
from gnewton.summary.result import Summary
from gnewton.summary.smooth import SmoothNorms

FLAT = (
    "summary: curvature=gauss_newton: the loss is linear in the outputs of the model, so its Gauss–Newton "
    "matrix is zero; split the computation into a model and a loss_fn that is convex in the model's outputs"
)

NOT_CONVEX = (
    "summary: curvature=gauss_newton: the loss is not convex in the outputs of the model; use "
    "curvature=hessian, or curvature=fisher for a likelihood"
)


def reference_gauss_newton(problem: CutProblem, request: Request, *, diagonal: bool = False) -> Summary:
    """Gradient and Gauss–Newton matrix of a batch, at the cost of about 2S backward passes.

    Args:
        problem: model, loss and partition of S groups.
        request: the batch and the direction.
        diagonal: whether to keep only the diagonal of the matrix.

    Raises:
        InputError: if the loss is linear in the outputs, or not convex in them.
    """
    device = problem.device()
    check_carried(problem.partition, "the Gauss–Newton matrix by the reference engine")
    with without_side_effects(problem), SmoothNorms():
        leaves = {name: p.requires_grad_() for name, p in problem.parameters().items()}
        parameters = list(leaves.values())
        rows = GroupDirections(problem.partition, request.direction, list(leaves))
        trees = (problem.constants(), *request.batch)
        copies = pytree.tree_map_only(Tensor, torch.clone, trees)
        loss, *outputs = problem.results(leaves, *copies)
        grads: Any = [None] * len(parameters)
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        gradient = rows.gradient(grads, device)
        tangents = tangents_of(outputs, parameters, rows)
    with without_side_effects(problem), SmoothNorms():
        cut = [z.detach().requires_grad_() for z in outputs]
        fresh = {name: p.requires_grad_() for name, p in problem.parameters().items()}
        copies = pytree.tree_map_only(Tensor, torch.clone, trees)
        value = problem.loss_at(cut, fresh, *copies)
        variables = [*cut, *fresh.values()]
        matrix = _curvature(value, variables, [[*t, *r] for t, r in zip(tangents, rows, strict=True)], device)
    if not matrix.any() and gradient.any():
        raise InputError(FLAT)
    check_convex(matrix)
    noise, rounding = gradient_noise(problem, request, gradient)
    matrix = matrix.diagonal().clone() if diagonal else (matrix + matrix.T) / 2
    return Summary(
        gradient=gradient,
        hessian=matrix,
        third=None,
        loss=loss.detach().double(),
        gradient_noise=noise,
        hessian_noise=rounding.curved * matrix.abs(),
        matrix="gauss_newton",
    )


def _curvature(value: Tensor, variables: list[Tensor], rows: list[Any], device: torch.device) -> Tensor:
    """⟨a_s, ∇²value a_t⟩ for the rows a_s, (S, S), float64."""
    size = len(rows)
    matrix = torch.zeros(size, size, dtype=torch.float64, device=device)
    if not value.requires_grad:
        return matrix
    slopes = torch.autograd.grad(value, variables, create_graph=True, allow_unused=True)
    curved = [(k, g) for k, g in enumerate(slopes) if g is not None and g.requires_grad]
    for t, row in enumerate(rows):
        pairs = [(g, row[k]) for k, g in curved if row[k] is not None]
        if not pairs:
            continue
        products = torch.autograd.grad(
            [g for g, _ in pairs], variables, [a for _, a in pairs], retain_graph=True, allow_unused=True
        )
        for s, other in enumerate(rows):
            for a, h in zip(other, products, strict=True):
                if a is not None and h is not None:
                    matrix[s, t] += (a * h).sum(dtype=torch.float64)
    return matrix


def check_convex(matrix: Tensor, coarse: bool = False) -> None:
    """Check that a Gauss–Newton matrix (S, S) is positive semi-definite, up to rounding.

    Raises:
        InputError: if it is not: then the loss is not convex in the outputs.
    """
    entries = matrix if matrix.dim() == 1 else torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    lowest, size = entries.amin(), entries.abs().amax()
    if bool(lowest < -(1e-2 if coarse else 1e-6) * size):
        raise InputError(NOT_CONVEX)
