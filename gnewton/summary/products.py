"""Gradient and Hessian-vector product of a batch loss, over all parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnewton.summary.batch import opened
from gnewton.summary.problem import Problem, untouched


def hessian_vector_product(
    problem: Problem, inputs: Any, targets: Any, vector: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """∇L and ∇²L v by reverse over reverse differentiation, at the present parameters.

    Costs about as much as two gradients and touches nothing: parameters, ``.grad``, buffers and random
    streams stay as they are.

    Args:
        problem: model and loss; the partition plays no part.
        inputs, targets: the batch, as the model and the loss take them.
        vector: v by parameter name, in the shapes of the parameters.

    Returns:
        the gradient and the product by parameter name, detached.
    """
    with untouched(problem.device()):
        leaves = {name: p.requires_grad_() for name, p in problem.parameters().items()}
        # the model may write into what it is given
        batch = opened((inputs, targets))
        copies = pytree.tree_map_only(Tensor, torch.clone, (problem.constants(), *batch))
        loss = problem.loss(leaves, *copies)
        wanted = list(leaves.values())
        gradient = torch.autograd.grad(
            loss, wanted, create_graph=True, allow_unused=True, materialize_grads=True
        )
        curved = [(g, vector[name]) for name, g in zip(leaves, gradient, strict=True) if g.requires_grad]
        if curved:
            along = [v for _, v in curved]
            product = torch.autograd.grad(
                [g for g, _ in curved], wanted, along, allow_unused=True, materialize_grads=True
            )
        else:  # the loss is linear in every parameter
            product = tuple(torch.zeros_like(leaf) for leaf in wanted)
    return (
        {name: g.detach() for name, g in zip(leaves, gradient, strict=True)},
        {name: h.detach() for name, h in zip(leaves, product, strict=True)},
    )
